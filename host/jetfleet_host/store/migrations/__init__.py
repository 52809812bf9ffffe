"""Alembic migrations: one file in `versions` a schema change, never edited after its release."""
