"""Engines that boards of a class share: who builds each, who tried it, and what became of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("engines",
        sa.Column("device_class", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("work", sa.Text(), nullable=False),
        sa.Column("request", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("device_class", "key", name=op.f("pk_engines")),
    )
    op.create_index(op.f("ix_engines_state"), "engines", ["state"])


def downgrade() -> None:
    op.drop_table("engines")
