"""What rollout plans need: tags of boards, overrides of an app's settings, who drives the fleet, and what was published."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("device_tags",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("value", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.device"], name=op.f("fk_device_tags_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "key", name=op.f("pk_device_tags"))
    )
    op.create_table("leases",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases"))
    )
    op.create_table("published_blobs",
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("published", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("blob", name=op.f("pk_published_blobs"))
    )
    op.add_column("rollouts", sa.Column("overrides", sa.LargeBinary(), nullable=False, server_default=sa.text("''")))
    op.add_column("rollout_devices", sa.Column("status", sa.String(length=20), nullable=False, server_default=""))
    op.create_index(op.f("ix_rollout_devices_status"), "rollout_devices", ["status"], unique=False)
    _fill_status()


def _fill_status() -> None:
    """A status that is the default is not written in the progress."""
    table = sa.table("rollout_devices", sa.column("rollout", sa.String), sa.column("device", sa.String),
                     sa.column("progress", sa.LargeBinary), sa.column("status", sa.String))
    connection = op.get_bind()
    for rollout, device, progress in connection.execute(sa.select(table.c.rollout, table.c.device, table.c.progress)).all():
        connection.execute(sa.update(table).where(table.c.rollout == rollout, table.c.device == device)
                           .values(status=json.loads(progress).get("status", "waiting")))


def downgrade() -> None:
    op.drop_index(op.f("ix_rollout_devices_status"), table_name="rollout_devices")
    with op.batch_alter_table("rollout_devices") as batch_op:
        batch_op.drop_column("status")
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.drop_column("overrides")
    op.drop_table("published_blobs")
    op.drop_table("leases")
    op.drop_table("device_tags")
