"""The hard-example set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table("hard_examples",
        sa.Column("id", serial, nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("crop", sa.BigInteger(), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("source", sa.String(length=63), nullable=False),
        sa.Column("frame", sa.BigInteger(), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=200), nullable=False),
        sa.Column("candidate", sa.String(length=200), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("size", "canvas_w", "canvas_h", "x0", "y0", "x1", "y1")),
        sa.Column("edge", sa.Text(), nullable=False),
        sa.Column("said", sa.Text(), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hard_examples")),
        sa.UniqueConstraint("device", "crop", name=op.f("uq_hard_examples_device_crop")),
    )
    op.create_index(op.f("ix_hard_examples_device"), "hard_examples", ["device"])
    op.create_index(op.f("ix_hard_examples_digest"), "hard_examples", ["digest"])
    op.create_index("ix_hard_examples_app_at", "hard_examples", ["app", "at"])


def downgrade() -> None:
    op.drop_table("hard_examples")
