"""Opening the database: engine, SQLite's pragmas, and migration to the newest schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.orm import Session, sessionmaker

from jetfleet_contract.errors import InputError, StorageError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0007"
"""The newest migration: a database that is there already is opened without loading Alembic, which takes half a second."""
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_MS = 15_000


class Transactions(Protocol):
    """What drivers use of a Database, or of a Writer that fences it."""

    def session(self) -> AbstractContextManager[Session]: ...
    def reading(self) -> AbstractContextManager[Session]: ...


class Database:
    """One database of one fleet. Threads may share it; each `session` is one transaction."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(self.engine.execution_options(jetfleet_reads=True), expire_on_commit=False)

    @classmethod
    def open(cls, url: str) -> Database:
        """Connect and migrate to the newest schema.

        Raises:
            InputError: `config.database` when the URL is none, or its driver is not installed.
            StorageError: `store.database` when it cannot be opened or migrated.
        """
        database = cls(url)
        try:
            with database.engine.begin() as connection:
                if schema_version(connection) != HEAD:
                    _upgrade(connection, url)
        except StorageError:
            database.close()
            raise
        except SQLAlchemyError as error:
            database.close()
            raise _storage_error(error, url) from None
        return database

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception.

        Raises:
            StorageError: `store.database` when the database cannot (full, locked, gone), `store.value` when it will not
                take these values. Nothing was written.
        """
        with self._transaction(self._sessions) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent view that never waits for a writer (SQLite: WAL). Raises as `session` does."""
        with self._transaction(self._readers) as session:
            yield session

    @contextmanager
    def _transaction(self, sessions: sessionmaker[Session]) -> Iterator[Session]:
        try:
            with sessions.begin() as session:
                yield session
        except StatementError as error:
            raise _storage_error(error, str(self.engine.url)) from error

    def close(self) -> None:
        self.engine.dispose()


def schema_version(connection: Connection) -> str:
    """The migration that the database is at; empty for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.scalar(text("SELECT version_num FROM alembic_version")) or "")


def _upgrade(connection: Connection, url: str) -> None:
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise StorageError("store.schema", f"the database's schema is not ours: {error}", where=_shown(url),
                           remedy="it was written by a newer jetfleet: upgrade this one") from None


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for the migrations that ship in this package, on this connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql" and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError("config.database", f"not a database URL: {error}", where="jetfleet.toml: database",
                         remedy="sqlite:////path/file.db or postgresql://user@host/name") from None
    except ImportError as error:
        raise InputError("config.database", f"the database's driver is not installed: {error}",
                         remedy="pip install 'psycopg[binary]'") from None
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN itself, see _begin_immediate
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # A deferred transaction that reads first and then writes fails at once when another process wrote between (the
    # busy timeout does not apply to it). Taking the write lock first waits instead.
    reads = connection.get_execution_options().get("jetfleet_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _storage_error(error: Exception, url: str) -> StorageError:
    cause = getattr(error, "orig", None) or error
    remedy = "check that the folder is writable and the disk has space"
    if isinstance(error, OperationalError) and "postgres" in url:
        remedy = "check that PostgreSQL runs and accepts this user"
    first_line = (str(cause).splitlines() or [type(cause).__name__])[0]
    code = "store.value" if isinstance(error, (DataError, IntegrityError)) else "store.database"
    return StorageError(code, f"the database refuses: {first_line}", where=_shown(url), remedy=remedy)


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
