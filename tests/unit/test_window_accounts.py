"""The host's account of telemetry windows: in whatever order they come, gaps are what lies between the first and last of a session."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetfleet_contract.messages import Telemetry
from jetfleet_host.store import fleet
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device

_NAMES = (f"board-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder: Path = tmp_path_factory.mktemp("windows")
    opened = Database.open(f"sqlite:///{folder / 'fleet.db'}")
    yield opened
    opened.close()


def account(database: Database, arrivals: list[tuple[int, int]]) -> Device:
    """A new board's row after these (session, window) came in this order."""
    name = next(_NAMES)
    with database.session() as session:
        session.add(Device(device=name, key="k", first_seen=0.0, last_seen=0.0, birth=""))
        session.flush()
        fleet.hold_devices(session, [name])
        board = fleet.known_device(session, name)
        assert board is not None
        for number, window in arrivals:
            fleet.save_window(session, board, Telemetry(name, number, window, 0.0, 1.0), 0.0)
    return board


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), max_size=25))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gaps_are_what_is_missing_within_each_session(database: Database, arrivals: list[tuple[int, int]]) -> None:
    board = account(database, arrivals)
    sessions: dict[int, set[int]] = {}
    for number, window in arrivals:
        sessions.setdefault(number, set()).add(window)
    assert board.windows == sum(len(seen) for seen in sessions.values())
    assert board.duplicates == len(arrivals) - board.windows
    assert board.gaps == sum(max(seen) - min(seen) + 1 - len(seen) for seen in sessions.values())


def test_a_late_window_before_the_first_does_not_hide_another_sessions_gap(database: Database) -> None:
    board = account(database, [(1, 1), (1, 3), (2, 2), (2, 1)])
    assert (board.gaps, board.late) == (1, 1)


def test_a_late_window_fills_its_gap(database: Database) -> None:
    assert account(database, [(1, 1), (1, 4)]).gaps == 2
    assert account(database, [(1, 1), (1, 4), (1, 2)]).gaps == 1
    assert account(database, [(1, 1), (1, 4), (2, 1), (1, 3), (1, 2)]).gaps == 0
