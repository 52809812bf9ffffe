"""Experiments with what was observed, and what people call models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table("experiments",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("phase", sa.String(length=20), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("asked", sa.String(length=20), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("changed", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments"))
    )
    with op.batch_alter_table("experiments") as batch_op:
        batch_op.create_index(op.f("ix_experiments_app"), ["app"], unique=False)
        batch_op.create_index(op.f("ix_experiments_phase"), ["phase"], unique=False)

    op.create_table("model_tags",
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("tag", sa.String(length=63), nullable=False),
        sa.Column("version", sa.String(length=63), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", "tag", name=op.f("pk_model_tags"))
    )
    op.create_table("model_events",
        sa.Column("id", _SERIAL, nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("version", sa.String(length=63), nullable=False),
        sa.Column("what", sa.String(length=20), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_events"))
    )
    with op.batch_alter_table("model_events") as batch_op:
        batch_op.create_index(op.f("ix_model_events_model"), ["model"], unique=False)

    op.create_table("observations",
        sa.Column("id", _SERIAL, nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.device"], name=op.f("fk_observations_device_devices"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observations"))
    )
    with op.batch_alter_table("observations") as batch_op:
        batch_op.create_index("ix_observations_app_name_at", ["app", "name", "at"], unique=False)


def downgrade() -> None:
    for table in ("observations", "model_events", "model_tags", "experiments"):
        op.drop_table(table)
