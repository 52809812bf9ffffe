"""The fleet's memory: SQLAlchemy models, Alembic migrations, and the queries of collector, rollout driver and views.

SQLite (WAL) by default, PostgreSQL by URL. SQLAlchemy and Alembic are imported in this folder only.
"""
