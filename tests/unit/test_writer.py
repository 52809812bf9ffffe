"""One writer: the lease goes over when its owner is silent, never while it beats, and an owner that woke up late can write nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from competing_writers import compete
from databases import postgres_url
from sqlalchemy import select

from jetfleet_contract.errors import OrderError
from jetfleet_contract.messages import Instant
from jetfleet_host.mqtt import BrokerSettings, MqttLink
from jetfleet_host.project import Project
from jetfleet_host.serve import Server
from jetfleet_host.store import fleet
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Counter, Lease
from jetfleet_host.writer import Writer


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}" if request.param == "sqlite" else postgres_url()
    with closing(Database.open(url)) as opened:
        yield opened


def write(writer: Writer) -> None:
    with writer.session() as session:
        fleet.count(session, "written")


def written(database: Database) -> int:
    with database.reading() as session:
        row = session.get(Counter, "written")
        return row.value if row else 0


def test_the_first_serves_and_the_second_waits_until_it_is_silent(database: Database) -> None:
    first, second = Writer(database, "one"), Writer(database, "two")
    assert first.tick(0.0)
    for second_s in range(30):
        assert not second.tick(1000.0 + second_s)  # its clock is another machine's
        assert first.tick(float(second_s))
    assert second.other == "one"
    assert not second.tick(1034.0)
    assert second.tick(1045.0)  # the beat has not moved for ten seconds of its own
    assert not first.tick(50.0)
    assert not first.holds


def test_an_owner_that_was_stopped_for_a_while_writes_nothing(database: Database) -> None:
    first, second = Writer(database, "one"), Writer(database, "two")
    assert first.tick(0.0)
    write(first)
    assert not second.tick(0.0)
    assert second.tick(11.0)
    assert not first.fresh(11.0)  # it does not know yet, but it knows that it does not know
    with pytest.raises(OrderError, match=r"serve\.superseded"):
        write(first)
    assert not first.holds
    write(second)
    assert written(database) == 2
    with database.reading() as session:
        [row] = session.scalars(select(Lease))
        assert (row.owner, row.epoch) == ("two", 2)


def test_a_clean_end_and_the_same_folder_need_no_wait(database: Database) -> None:
    first, second = Writer(database, "one"), Writer(database, "two")
    assert first.tick(0.0)
    assert not second.tick(0.0)
    first.release()
    assert second.tick(0.5)
    again = Writer(database, "two")  # killed, and started again
    assert again.tick(0.6)
    with pytest.raises(OrderError):
        write(second)


def test_a_server_that_lost_the_lease_does_not_drive_on_because_it_is_free_again(tmp_path: Path) -> None:
    """What it holds in memory, and what waits to be retained, is older than what its successor did meanwhile."""
    project = Project.init(tmp_path / "fleet")
    now = Instant(1.0, "boot", 1e9, True)
    server = Server(project, lambda *heard: MqttLink(BrokerSettings("127.0.0.1", 1), "never-started", *heard), lambda: now)
    assert server._writer.tick(now.mono)
    with closing(Database.open(project.database_url)) as database:
        successor = Writer(database, "another")
        assert not successor.tick(0.0)
        assert successor.tick(11.0)
        successor.release()
    with suppress(OrderError):
        write(server._writer)
    with pytest.raises(OrderError, match=r"serve\.superseded"):
        server._stay_in_office(now)


def test_processes_that_reach_for_it_at_once_do_not_share_an_epoch(database: Database) -> None:
    context = multiprocessing.get_context("spawn")
    url = database.engine.url.render_as_string(hide_password=False)
    together = context.Barrier(4)
    processes = [context.Process(target=compete, args=(url, f"p{n}", together)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    with database.reading() as session:
        counted = [name.split() for name in session.scalars(select(Counter.name))]
    epochs = [epoch for epoch, _ in counted]
    assert len(epochs) >= 2
    assert len(set(epochs)) == len(epochs)  # each epoch had one writer
