"""Alembic's entry: runs migrations on the connection that `Database.open` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from jetfleet_host.store.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
