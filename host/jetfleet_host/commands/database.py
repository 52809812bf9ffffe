"""The project's database, as commands open it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jetfleet_host.project import Project
    from jetfleet_host.store.database import Database


def open_database(project: Project) -> Database:
    """The project's database; whoever opens it closes it.

    Raises:
        StorageError: when it cannot be opened.
    """
    from jetfleet_host.store.database import Database

    return Database.open(project.database_url)


@contextmanager
def transaction(folder: Path) -> Iterator[tuple[Project, Session]]:
    """The project in `folder` and one transaction of its database, committed at the end, undone by an exception."""
    from jetfleet_host.project import Project

    project = Project.load(folder)
    with closing(open_database(project)) as database, database.session() as session:
        yield project, session


@contextmanager
def reading(folder: Path) -> Iterator[Session]:
    """A session that only reads the database of the project in `folder`."""
    from jetfleet_host.project import Project

    with closing(open_database(Project.load(folder))) as database, database.reading() as session:
        yield session
