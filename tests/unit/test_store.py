"""The fleet's database, on SQLite always and on a real PostgreSQL where its programs are installed."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import postgres_url
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from jetfleet_contract.errors import InputError, JetfleetError, StorageError
from jetfleet_contract.messages import AppSpec, AppState, Birth, Capability, Deployment, Report, Series, Telemetry
from jetfleet_contract.rollout import planned, step
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import Start
from jetfleet_contract.sketch import Sketch, sketch_of
from jetfleet_host import clock, views
from jetfleet_host.store import fleet, journal
from jetfleet_host.store.database import HEAD, Database, alembic_config, schema_version
from jetfleet_host.store.models import Alarm, Base, Device, Rejected, RolloutDevice, SeriesRow

KEY = "ab" * 32
BUNDLE = "cd" * 32


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}" if request.param == "sqlite" else postgres_url()
    with closing(Database.open(url)) as opened:
        yield opened


def birth(device: str, *, session: int = 1, apps: tuple[AppState, ...] = ()) -> Birth:
    return Birth(device, session, "0.1", 1, KEY, Capability("cpu-x86", "cpu-x86", "x86_64"), apps)


def add_device(database: Database, name: str = "dock-1", at: float = 100.0) -> None:
    with database.session() as session:
        fleet.save_birth(session, None, birth(name), b"{}", at)


def window(device: str, number: int, values: list[float], *, session: int = 1, app: str = "reader", version: str = "1") -> Telemetry:
    series = Series(app, BUNDLE, version, "fp32@onnxruntime:fp32", "front", len(values), len(values), {"stale": 1},
                    {"total": sketch_of(values)})
    return Telemetry(device, session, number, 0.0, 10.0, (series,), {"cpu_pct": float(number)})


def test_the_migrations_make_exactly_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert schema_version(connection) == HEAD
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD


def test_migrations_go_down_and_up_again(database: Database) -> None:
    with database.engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    with database.engine.begin() as connection:
        command.upgrade(alembic_config(connection), "head")
    add_device(database)


def test_a_rollout_of_the_first_schema_goes_on(database: Database) -> None:
    """A host of the first release stops in the middle of a rollout; this one opens its database."""
    with database.engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0001")
        head = (b'{"plan":{"id":"r1","app":"reader","bundle":"' + BUNDLE.encode() + b'","name":"ocr","version":"2","waves":[["a"],["b"]],'
                b'"before":{"a":"1"},"on_breach":"stop"},"devices":{},"phase":"running","wave":0,"since":{"mono":5.0,"boot_id":"x",'
                b'"wall":1e9,"wall_trusted":true}}')
        spec = b'{"app":"reader","bundle":"' + BUNDLE.encode() + b'","name":"ocr","version":"2"}'
        connection.execute(text("""INSERT INTO rollouts (id, app, phase, head, spec, keep, created, changed)
                                   VALUES ('r1', 'reader', 'running', :head, :spec, :keep, 1.0, 1.0)"""),
                           {"head": head, "spec": spec, "keep": True})
        for device, progress in (("a", b'{"wave":0,"status":"issued"}'), ("b", b'{"wave":1}')):
            connection.execute(text("INSERT INTO rollout_devices (rollout, device, progress) VALUES ('r1', :device, :progress)"),
                               {"device": device, "progress": progress})
        command.upgrade(alembic_config(connection), "head")
    with database.reading() as session:
        [state] = journal.active(session)
        assert (state.phase, {d: p.status for d, p in state.devices.items()}) == ("running", {"a": "issued", "b": "waiting"})
        assert dict(session.execute(select(RolloutDevice.device, RolloutDevice.status)).all()) == {"a": "issued", "b": "waiting"}
        request = journal.request_of(session, state)
        assert (request.keep, request.overrides, request.spec.downgrade) == (True, journal.Overrides(), False)


def test_opening_twice_keeps_what_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    with closing(Database.open(url)) as first:
        add_device(first)
    with closing(Database.open(url)) as second, second.reading() as session:
        assert session.get_one(Device, "dock-1").key == KEY
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"


def alarm_and_fail(database: Database) -> None:
    with database.session() as session:
        fleet.raise_alarm(session, "dock-1", "x.y", "text", 1.0)
        raise RuntimeError


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    add_device(database)
    with pytest.raises(RuntimeError):
        alarm_and_fail(database)
    with database.reading() as session:
        assert session.scalar(select(func.count(Alarm.id))) == 0


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    Database.open(url).close()
    with closing(sqlite3.connect(tmp_path / "fleet.db")) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    with pytest.raises(StorageError, match=r"store\.schema"):
        Database.open(url)


@pytest.mark.parametrize(("url", "code"), [
    ("nonsense", "config.database"), ("frog://x/y", "config.database"), ("sqlite:////nowhere/at/all/fleet.db", "store.database"),
    ("postgresql://u:secret@127.0.0.1:1/x", "store.database"),
])
def test_a_database_that_cannot_be_opened_is_one_clear_error(url: str, code: str) -> None:
    with pytest.raises((InputError, StorageError)) as caught:
        Database.open(url)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def fill_the_disk(database: Database) -> None:
    with database.session() as session:
        pages = session.scalar(text("PRAGMA page_count"))
        session.execute(text(f"PRAGMA max_page_count = {pages}"))  # SQLite then behaves as on a full disk
        for number in range(500):
            fleet.save_rejected(session, "t", b"x" * 2000, f"c.{number}", "r", 1.0)


def test_a_full_disk_is_a_storage_error_and_loses_nothing(tmp_path: Path) -> None:
    with closing(Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")) as database:
        add_device(database)
        with pytest.raises(JetfleetError, match="full") as caught:
            fill_the_disk(database)
        assert caught.value.code == "store.database"
        with database.reading() as session:
            assert session.scalar(select(func.count(Device.device))) == 1
            assert views.counters(session) == {}


# --- windows ---------------------------------------------------------------------------------------------------


def send(database: Database, telemetry: Telemetry, at: float = 200.0) -> bool:
    with database.session() as session:
        return fleet.save_window(session, session.get_one(Device, telemetry.device), telemetry, at)


def account(database: Database) -> tuple[int, int, int, int]:
    with database.reading() as session:
        row = session.get_one(Device, "dock-1")
        return row.windows, row.gaps, row.duplicates, row.late


def test_windows_are_accounted_for_by_number(database: Database) -> None:
    add_device(database)
    assert send(database, window("dock-1", 4, [1.0]))
    assert account(database) == (1, 0, 0, 0)
    assert send(database, window("dock-1", 7, [1.0]))
    assert account(database) == (2, 2, 0, 0)
    assert not send(database, window("dock-1", 7, [1.0]))
    assert account(database) == (2, 2, 1, 0)
    assert send(database, window("dock-1", 5, [1.0]))
    assert account(database) == (3, 1, 1, 1)
    assert send(database, window("dock-1", 0, [1.0], session=2))
    assert account(database) == (4, 1, 1, 1)
    assert send(database, window("dock-1", 6, [1.0]))
    assert account(database)[3] == 2


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "fleet.db"
    with closing(Database.open(f"sqlite:///{path}")) as database:
        add_device(database)
    return path


@settings(max_examples=25)
@given(order=st.permutations(range(8)), repeats=st.lists(st.integers(0, 7), max_size=8))
def test_no_order_counts_a_window_twice_or_loses_one(migrated: Path, order: list[int], repeats: list[int]) -> None:
    folder = Path(tempfile.mkdtemp(dir=migrated.parent))
    shutil.copy(migrated, folder)
    with closing(Database.open(f"sqlite:///{folder / 'fleet.db'}")) as database:
        for number in (*order, *repeats):
            send(database, window("dock-1", number, [float(number + 1)]))
        windows, gaps, duplicates, late = account(database)
        assert (windows, duplicates) == (8, len(repeats))
        with database.reading() as session:
            [row] = views.latency(session, by="device", stage="total", since=0.0)
        assert row.frames == 8
    shutil.rmtree(folder)
    assert gaps == 0 or late > 0


@given(parts=st.lists(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20), min_size=1, max_size=5))
def test_sketches_survive_the_database_exactly(parts: list[list[float]]) -> None:
    whole = Sketch()
    stored = Sketch()
    for values in parts:
        whole = whole.merged(sketch_of(values))
        stored = stored.merged(fleet.unpack_stage(fleet.pack_stages({"total": sketch_of(values), "age": sketch_of([1.0])}), "total"))
    assert stored == whole
    assert stored.buckets == sketch_of([v for values in parts for v in values]).buckets


def test_latency_is_the_merge_not_the_mean(database: Database) -> None:
    chance = random.Random(7)
    everything: list[float] = []
    for number in range(3):
        add_device(database, f"dock-{number}")
        values = [chance.lognormvariate(2 + number, 0.5) for _ in range(400)]
        everything += values
        send(database, window(f"dock-{number}", 1, values))
    with database.reading() as session:
        [row] = views.latency(session, by="class", stage="total", since=0.0)
        by_device = views.latency(session, by="device", stage="total", since=0.0)
        assert views.latency(session, by="version", stage="total", since=1e9) == []
        assert views.stages(session, 0.0) == ["total"]
    exact = sorted(everything)[int(0.99 * (len(everything) - 1))]
    assert row.p99_ms == pytest.approx(exact, rel=0.011)
    assert (row.frames, row.devices, len(by_device)) == (1200, 3, 3)
    assert row.p99_ms > 1.2 * sum(r.p99_ms for r in by_device) / 3  # what a mean of quantiles would have hidden


def test_top_keeps_boards_without_telemetry(database: Database) -> None:
    add_device(database, "dock-1")
    add_device(database, "dock-2")
    send(database, window("dock-1", 1, [10.0] * 50), at=1000.0)
    send(database, window("dock-1", 2, [10.0] * 30), at=1000.0)
    with database.reading() as session:
        rows = {row.device: row for row in views.top(session, 1010.0)}
    assert rows["dock-1"].p50_ms == pytest.approx(10.0, rel=0.01)
    assert rows["dock-1"].fps == pytest.approx(80 / 10.0)  # two parts of one window: the same start, counted once
    assert rows["dock-1"].cpu_pct == 2.0
    assert (rows["dock-2"].fps, rows["dock-2"].app) == (0.0, "")


# --- bounded tables, reports, journal ------------------------------------------------------------------------------


def test_refused_messages_are_counted_and_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "KEEP_REJECTED", 10)
    with database.session() as session:
        for number in range(25):
            fleet.save_rejected(session, "jf/1/d/x/report", b"z" * 10_000, "message.bad", f"number {number}", 1.0)
    with database.reading() as session:
        kept = list(session.scalars(select(Rejected).order_by(Rejected.id)))
        assert (len(kept), kept[-1].reason, len(kept[-1].head)) == (10, "number 24", fleet.REJECTED_HEAD)
        assert views.counters(session) == {"rejected": 25, "rejected.message.bad": 25}


def test_old_telemetry_goes(database: Database) -> None:
    add_device(database)
    send(database, window("dock-1", 1, [1.0]), at=1000.0)
    with database.session() as session:
        fleet.trim(session, 1000.0 + fleet.KEEP_TELEMETRY_S + 1)
        assert session.scalar(select(func.count(SeriesRow.id))) == 0


def test_a_report_is_stored_once_and_the_app_follows_commits_only(database: Database) -> None:
    add_device(database)
    report = Report("dock-1", 5, 1, "reader", 0.0, "idle", BUNDLE, "2", "1", "committed", metrics={"gap_ms": 1.5})
    with database.session() as session:
        assert fleet.save_report(session, report, 1.0)
        assert not fleet.save_report(session, report, 2.0)
        assert fleet.save_report(session, msgspec.structs.replace(report, id=6, version="3", outcome="refused", code="trial.probe"), 3.0)
    with database.reading() as session:
        [app] = views.devices(session)[0].apps
        assert (app.version, app.phase, app.reason) == ("2", "refused", "trial.probe")
        detail = views.device_detail(session, "dock-1")
        assert [r["outcome"] for r in detail["reports"]] == ["refused", "committed"]
        assert detail["reports"][1]["metrics"] == {"gap_ms": 1.5}
        with pytest.raises(InputError, match=r"device\.unknown"):
            views.device_detail(session, "nobody")


def test_the_journal_gives_back_the_machines_state(database: Database) -> None:
    plan = Plan("r1", "reader", BUNDLE, "ocr", "2", (("a",), ("b", "c")), before={"a": "1"})
    fresh = planned(plan)
    state, _ = step(fresh, Start(), clock.now())
    with database.session() as session:
        journal.add_rollout(session, fresh, AppSpec("reader", BUNDLE, "ocr", "2"), True, 1.0)
        journal.save_state(session, state, ("a",), 2.0)
    with database.reading() as session:
        assert journal.active(session) == [state]
        assert views.rollout(session, "r1") == state


def test_the_second_issue_of_a_kind_is_refused_by_the_database(database: Database) -> None:
    plan = Plan("r1", "reader", BUNDLE, "ocr", "2", (("a",),))
    deployment = Deployment("a", 1, 1e10, ())
    with database.session() as session:
        journal.add_rollout(session, planned(plan), AppSpec("reader", BUNDLE, "ocr", "2"), True, 1.0)
        journal.add_issued(session, "r1", "forward", deployment, BUNDLE, None, 1.0)
    with pytest.raises(StorageError, match=r"store\.value"), database.session() as session:
        journal.add_issued(session, "r1", "forward", deployment, BUNDLE, None, 1.0)
