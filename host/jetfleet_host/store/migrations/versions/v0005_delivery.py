"""Pauses of delivery, its status, and the host's bytes of the day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("delivery_pauses",
        sa.Column("what", sa.String(length=64), nullable=False),
        sa.Column("why", sa.String(length=200), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_delivery_pauses"))
    )
    op.create_table("delivery_states",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_delivery_states"))
    )


def downgrade() -> None:
    op.drop_table("delivery_states")
    op.drop_table("delivery_pauses")
