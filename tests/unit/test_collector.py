"""The collector: what is stored, what is acknowledged, and what is refused without stopping the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from databases import postgres_url
from sqlalchemy import func, select

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import MAX_GAUGES, Birth, Capability, DeviceState, Report, Result, Series, Telemetry, encode
from jetfleet_contract.messages import Alarm as Standing
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import Sketch, sketch_of
from jetfleet_host import views
from jetfleet_host.collector import Collector, Incoming, Ingested
from jetfleet_host.signing import verify_device
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Alarm, Device, ReportRow, ResultRow, WindowRow


class Board:
    """A board's messages."""

    def __init__(self, folder: Path, name: str = "dock-1") -> None:
        self.name = name
        self.identity = Identity.load_or_create(folder)

    def birth(self, *, session: int = 1, device: str = "", key: str = "", instance: str = "") -> Incoming:
        capability = Capability("cpu-x86", "cpu-x86", "x86_64")
        birth = Birth(device or self.name, session, "0.1", 1, key or self.identity.public_hex, capability, instance=instance)
        return Incoming(topics.birth(self.name), self.identity.sign("birth", birth), 100.0)

    def report(self, number: int = 1, **changes: object) -> Incoming:
        report = Report(self.name, number, 1, "reader", 0.0, "idle", "cd" * 32, "2", "1", "committed")
        changed: Report = msgspec.structs.replace(report, **changes)
        return Incoming(topics.report(self.name), self.identity.sign("report", changed), 101.0)

    def telemetry(self, number: int = 1, sketch: Sketch | None = None, **changes: object) -> Incoming:
        series = Series("reader", "cd" * 32, "1", "c", "front", 3, 3, {}, {"total": sketch or sketch_of([1.0, 2.0])})
        window: Telemetry = msgspec.structs.replace(Telemetry(self.name, 1, number, 0.0, 10.0, (series,), {}), **changes)
        return Incoming(topics.telemetry(self.name), self.identity.sign("telemetry", window), 102.0)

    def state(self, online: bool, session: int) -> Incoming:
        return Incoming(topics.state(self.name), encode(DeviceState(self.name, online, session)), 103.0)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}" if request.param == "sqlite" else postgres_url()
    with closing(Database.open(url)) as opened:
        yield opened


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


def ingest(database: Database, *messages: Incoming) -> Ingested:
    return Collector(database, verify_device).ingest(messages)


def codes(database: Database) -> dict[str, int]:
    with database.reading() as session:
        return {name.removeprefix("rejected."): n for name, n in views.counters(session).items() if name != "rejected"}


def device(database: Database) -> Device:
    with database.reading() as session:
        return session.get_one(Device, "dock-1")


def test_a_batch_of_everything(database: Database, board: Board) -> None:
    result = Result("reader", "front", 7, 1.0, 5.0, "1", "c", (Detection("word", 0.9, (0, 0, 5, 5)),))
    outcome = ingest(database, board.birth(), board.state(True, 1), board.report(), board.telemetry(),
                     Incoming(topics.result("dock-1"), encode(result), 104.0))
    assert outcome.acks == [("dock-1", 1)]
    assert [report.version for report in outcome.reports] == ["2"]
    assert (outcome.rejected, codes(database)) == (0, {})
    with database.reading() as session:
        for table in (ReportRow, WindowRow, ResultRow):
            assert session.scalar(select(func.count(table.id))) == 1


def test_a_repeated_report_is_acknowledged_again_and_told_once(database: Database, board: Board) -> None:
    first = ingest(database, board.birth(), board.report(), board.report())
    again = ingest(database, board.report())
    assert (len(first.reports), first.acks) == (1, [("dock-1", 1)] * 2)
    assert (again.reports, again.acks) == ([], [("dock-1", 1)])


def test_one_bad_message_stops_no_other(database: Database, board: Board, tmp_path: Path) -> None:
    thief = Board(tmp_path / "thief")
    broken = Incoming(topics.telemetry("dock-1"), b"{", 1.0)
    wrong_topic = msgspec.structs.replace(board.telemetry(5), topic=topics.telemetry("dock-2"))
    strange = Incoming("jf/1/d/dock-1/deeper/report", b"{}", 1.0)
    outcome = ingest(database, board.birth(), broken, thief.report(9), wrong_topic, strange, board.report(2), board.telemetry(1))
    assert outcome.acks == [("dock-1", 2)]
    assert outcome.rejected == 4
    assert codes(database) == {"message.bad": 1, "trust.unknown-key": 1, "device.unknown": 1, "topic.bad": 1}
    assert device(database).windows == 1


def test_another_key_is_refused_and_raises_one_alarm(database: Database, board: Board, tmp_path: Path) -> None:
    thief = Board(tmp_path / "thief")
    outcome = ingest(database, board.birth(), thief.birth(session=9), thief.birth(session=10))
    assert outcome.rejected == 2
    assert device(database).key == board.identity.public_hex
    assert device(database).session == 1
    with database.reading() as session:
        [alarm] = session.scalars(select(Alarm))
        assert (alarm.code, alarm.count) == ("device.key-changed", 2)


@pytest.mark.parametrize(("change", "code"), [
    ({"device": "dock-2"}, "message.device"),
    ({"key": "ab" * 32}, "birth.key"),
])
def test_a_birth_has_to_speak_for_itself(database: Database, board: Board, change: dict[str, str], code: str) -> None:
    assert ingest(database, board.birth(**change)).rejected == 1  # type: ignore[arg-type]
    assert codes(database) == {code: 1}


def test_telemetry_that_the_board_did_not_sign_counts_for_nothing(database: Database, board: Board, tmp_path: Path) -> None:
    """Latency gates rest on telemetry: whoever may publish on the topic must not be able to fail, or pass, a rollout."""
    thief = Board(tmp_path / "thief")
    plain = msgspec.structs.replace(board.telemetry(), payload=encode(Telemetry("dock-1", 1, 1, 0.0, 10.0)))
    as_report = msgspec.structs.replace(board.telemetry(), payload=board.report().payload)
    assert ingest(database, board.birth(), thief.telemetry(), plain, as_report).rejected == 3
    assert codes(database) == {"trust.unknown-key": 1, "message.bad": 1, "trust.type": 1}
    assert device(database).windows == 0


def test_a_board_that_was_shown_two_bodies_of_one_number_raises_the_alarm(database: Database, board: Board) -> None:
    fork: dict[str, Any] = {"gauges": {"refused.trust.seq-fork": 1.0, "refused.message.bad": 5.0}}
    ingest(database, board.birth(), board.telemetry(1), board.telemetry(2, **fork), board.telemetry(3, **fork), board.telemetry(3, **fork))
    with database.reading() as session:
        assert [(alarm.code, alarm.count) for alarm in session.scalars(select(Alarm))] == [("trust.seq-fork", 1)]


@pytest.mark.parametrize(("births", "alarms"), [
    ([(1, "a"), (2, "b"), (3, "c")], 0),
    ([(2, "a"), (2, "a")], 0),
    ([(2, ""), (2, "a")], 0),  # an agent that was updated without a restart of its counter
    ([(2, "a"), (2, "b"), (2, "a")], 2),
    ([(5, "a"), (2, "b"), (5, "a"), (3, "c")], 2),
])
def test_two_boards_with_one_identity_raise_the_alarm(database: Database, board: Board, births: list[tuple[int, str]], alarms: int) -> None:
    ingest(database, *(board.birth(session=session, instance=instance) for session, instance in births))
    with database.reading() as session:
        assert [(alarm.code, alarm.count) for alarm in session.scalars(select(Alarm))] == [("device.cloned", alarms)] * (alarms > 0)


def test_an_old_birth_changes_nothing(database: Database, board: Board) -> None:
    ingest(database, board.birth(session=5), board.birth(session=4))
    assert device(database).session == 5
    assert codes(database) == {"birth.stale": 1}


def test_the_will_of_an_earlier_life_is_ignored(database: Database, board: Board) -> None:
    ingest(database, board.birth(session=5), board.state(False, 4))
    assert device(database).online
    ingest(database, board.state(False, 5))
    assert not device(database).online


def test_reports_before_the_birth_wait(database: Database, board: Board) -> None:
    assert ingest(database, board.report()).acks == []
    assert ingest(database, board.birth(), board.report()).acks == [("dock-1", 1)]


@pytest.mark.parametrize(("message", "code"), [
    ({"sketch": Sketch(5, 1.0, 1.0, 1.0, {1: 2})}, "telemetry.sketch"),
    ({"number": -1}, "message.bounds"),
    ({"number": 1 << 60}, "message.bounds"),
    ({"gauges": {"x" * 100: 1.0}}, "message.bounds"),
    ({"gauges": {f"g{n}": 1.0 for n in range(MAX_GAUGES + 1)}}, "message.bounds"),
    ({"duration_s": -1.0}, "message.bounds"),
    ({"alarms": (Standing("reader", "front", "drift"),) * 33}, "message.bounds"),
    ({"alarms": (Standing("../reader", "front", "drift"),)}, "name.bad"),
])
def test_windows_out_of_bounds_are_refused(database: Database, board: Board, message: dict[str, object], code: str) -> None:
    ingest(database, board.birth())
    assert ingest(database, board.telemetry(**message)).rejected == 1  # type: ignore[arg-type]
    assert codes(database) == {code: 1}


def test_a_standing_alarm_of_a_board_is_one_alarm_that_counts_up(database: Database, board: Board) -> None:
    standing = (Standing("reader", "front", "drift", "luma moved\x1b[31m"),)
    ingest(database, board.birth(), board.telemetry(1, alarms=standing), board.telemetry(2, alarms=standing), board.telemetry(3))
    with database.reading() as session:
        alarm = session.scalars(select(Alarm)).one()
        assert (alarm.device, alarm.code, alarm.count) == ("dock-1", "drift", 2)
        assert alarm.what.startswith("reader/front: luma moved ")


def test_text_that_would_break_a_database_or_a_terminal_is_cleaned(database: Database, board: Board) -> None:
    outcome = ingest(database, board.birth(), board.report(1, detail="a\0b\x1b[31mc" + "d" * 5000))
    assert outcome.rejected == 0
    with database.reading() as session:
        detail = session.scalar(select(ReportRow.detail))
    assert detail is not None
    assert detail.startswith("a b [31mc")
    assert len(detail) == 2000
    assert ingest(database, board.report(2, code="a\0b")).rejected == 1


def test_an_error_of_the_database_stores_nothing_of_the_batch(board: Board, tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")
    collector = Collector(database, verify_device)
    collector.ingest([board.birth()])
    with database.session() as session:
        session.connection().exec_driver_sql("ALTER TABLE telemetry_series RENAME TO gone")
    with pytest.raises(StorageError):
        collector.ingest([board.report(), board.telemetry()])
    with database.session() as session:
        assert session.scalar(select(func.count(ReportRow.id))) == 0
        session.connection().exec_driver_sql("ALTER TABLE gone RENAME TO telemetry_series")
    assert collector.ingest([board.report(), board.telemetry()]).acks == [("dock-1", 1)]
    database.close()
