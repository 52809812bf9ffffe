"""The first tables: devices, deployments, reports, telemetry, rollouts, alarms."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("alarms",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("code", sa.String(length=63), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("first", sa.Float(), nullable=False),
        sa.Column("last", sa.Float(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alarms"))
    )
    with op.batch_alter_table("alarms") as batch_op:
        batch_op.create_index("ix_alarms_device_code", ["device", "code"], unique=False)

    op.create_table("counters",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters"))
    )
    op.create_table("devices",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("board", sa.String(length=63), nullable=False),
        sa.Column("device_class", sa.String(length=63), nullable=False),
        sa.Column("agent_version", sa.String(length=63), nullable=False),
        sa.Column("session", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("birth", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=False),
        sa.Column("window_session", sa.BigInteger(), nullable=False),
        sa.Column("last_window", sa.BigInteger(), nullable=False),
        sa.Column("windows", sa.BigInteger(), nullable=False),
        sa.Column("gaps", sa.BigInteger(), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.BigInteger(), nullable=False),
        sa.Column("gauges", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_devices"))
    )
    op.create_table("recent_results",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("received", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recent_results"))
    )
    with op.batch_alter_table("recent_results") as batch_op:
        batch_op.create_index("ix_recent_results_device_app", ["device", "app"], unique=False)

    op.create_table("rejected_messages",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("topic", sa.String(length=200), nullable=False),
        sa.Column("code", sa.String(length=63), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_messages"))
    )
    op.create_table("rollout_requests",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("rollout", sa.String(length=63), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("answered", sa.Boolean(), nullable=False),
        sa.Column("code", sa.String(length=63), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout_requests"))
    )
    with op.batch_alter_table("rollout_requests") as batch_op:
        batch_op.create_index(batch_op.f("ix_rollout_requests_answered"), ["answered"], unique=False)

    op.create_table("rollouts",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("phase", sa.String(length=20), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("keep", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("changed", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts"))
    )
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.create_index(batch_op.f("ix_rollouts_app"), ["app"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollouts_phase"), ["phase"], unique=False)

    op.create_table("app_states",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.String(length=63), nullable=False),
        sa.Column("candidate", sa.String(length=200), nullable=False),
        sa.Column("phase", sa.String(length=63), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.device"], name=op.f("fk_app_states_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "app", name=op.f("pk_app_states"))
    )
    op.create_table("desired",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("rollout", sa.String(length=63), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.device"], name=op.f("fk_desired_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_desired"))
    )
    op.create_table("issued",
        sa.Column("rollout", sa.String(length=63), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=7), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("before", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name=op.f("fk_issued_rollout"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("rollout", "device", "kind", name=op.f("pk_issued"))
    )
    op.create_table("reports",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("report", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.Float(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("phase", sa.String(length=63), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=63), nullable=False),
        sa.Column("from_version", sa.String(length=63), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("code", sa.String(length=63), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("candidate", sa.String(length=200), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("rollout", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.device"], name=op.f("fk_reports_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
        sa.UniqueConstraint("device", "report", name=op.f("uq_reports_device_report"))
    )
    with op.batch_alter_table("reports") as batch_op:
        batch_op.create_index(batch_op.f("ix_reports_received"), ["received"], unique=False)
        batch_op.create_index("ix_reports_rollout_device", ["rollout", "device"], unique=False)

    op.create_table("rollout_devices",
        sa.Column("rollout", sa.String(length=63), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("progress", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name=op.f("fk_rollout_devices_rollout"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("rollout", "device", name=op.f("pk_rollout_devices"))
    )
    op.create_table("telemetry_windows",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("session", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("started", sa.Float(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("received", sa.Float(), nullable=False),
        sa.Column("gauges", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.device"], name=op.f("fk_telemetry_windows_device"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_telemetry_windows")),
        sa.UniqueConstraint("device", "session", "number", name=op.f("uq_telemetry_windows_device_session_number"))
    )
    with op.batch_alter_table("telemetry_windows") as batch_op:
        batch_op.create_index(batch_op.f("ix_telemetry_windows_received"), ["received"], unique=False)

    op.create_table("telemetry_series",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("window_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("received", sa.Float(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("app", sa.String(length=63), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=63), nullable=False),
        sa.Column("candidate", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=63), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.Text(), nullable=False),
        sa.Column("stages", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["window_id"], ["telemetry_windows.id"], name=op.f("fk_telemetry_series_window_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_telemetry_series"))
    )
    with op.batch_alter_table("telemetry_series") as batch_op:
        batch_op.create_index("ix_telemetry_series_app_bundle_received", ["app", "bundle", "received"], unique=False)
        batch_op.create_index(batch_op.f("ix_telemetry_series_received"), ["received"], unique=False)
        batch_op.create_index(batch_op.f("ix_telemetry_series_window_id"), ["window_id"], unique=False)



def downgrade() -> None:
    with op.batch_alter_table("telemetry_series") as batch_op:
        batch_op.drop_index(batch_op.f("ix_telemetry_series_window_id"))
        batch_op.drop_index(batch_op.f("ix_telemetry_series_received"))
        batch_op.drop_index("ix_telemetry_series_app_bundle_received")

    op.drop_table("telemetry_series")
    with op.batch_alter_table("telemetry_windows") as batch_op:
        batch_op.drop_index(batch_op.f("ix_telemetry_windows_received"))

    op.drop_table("telemetry_windows")
    op.drop_table("rollout_devices")
    with op.batch_alter_table("reports") as batch_op:
        batch_op.drop_index("ix_reports_rollout_device")
        batch_op.drop_index(batch_op.f("ix_reports_received"))

    op.drop_table("reports")
    op.drop_table("issued")
    op.drop_table("desired")
    op.drop_table("app_states")
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollouts_phase"))
        batch_op.drop_index(batch_op.f("ix_rollouts_app"))

    op.drop_table("rollouts")
    with op.batch_alter_table("rollout_requests") as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollout_requests_answered"))

    op.drop_table("rollout_requests")
    op.drop_table("rejected_messages")
    with op.batch_alter_table("recent_results") as batch_op:
        batch_op.drop_index("ix_recent_results_device_app")

    op.drop_table("recent_results")
    op.drop_table("devices")
    op.drop_table("counters")
    with op.batch_alter_table("alarms") as batch_op:
        batch_op.drop_index("ix_alarms_device_code")

    op.drop_table("alarms")
