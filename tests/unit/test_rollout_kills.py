"""The rollout driver killed at any commit or publication: no board is issued twice, and the end is the same."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from rollout_host import V2, Host
from sqlalchemy import event, select

from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import (
    Report,
)
from jetfleet_contract.rollout_plan import Budget, Selector
from jetfleet_host import views
from jetfleet_host.store import fleet, journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.journal import ControlRequest
from jetfleet_host.store.models import Issued


class Killed(BaseException):
    """The process ends here."""


class MortalHost(Host):
    """A host whose process can be killed at any database commit or publication, and boards that answer whatever they got."""

    def __init__(self, database: Database, die_at: int) -> None:
        self.points = itertools.count()
        self.die_at = -1
        self.told: dict[str, set[int]] = {}
        super().__init__(database)
        self.die_at = die_at
        for name in ("before_cursor_execute", "commit"):
            event.listen(database.engine, name, self._point)

    def _point(self, *_: object, **__: object) -> None:
        if self.die_at >= 0 and next(self.points) == self.die_at:
            raise Killed

    def driver_knows(self, rollout: str) -> bool:
        with self.database.reading() as session:
            return journal.exists(session, rollout)

    def over(self, rollout: str) -> bool:
        """Asked by the test, not by the process: no kill point."""
        die_at, self.die_at = self.die_at, -1
        with self.database.reading() as session:
            ended = journal.exists(session, rollout) and views.rollout(session, rollout).final
        self.die_at = die_at
        return ended

    def settle(self, device: str) -> None:
        """The board answers its newest deployment: c refuses version 2, everybody accepts everything else."""
        with self.database.reading() as session:
            current = journal.deployment_of(session, device)
        if current is None or current.seq in self.told.setdefault(device, set()):
            return
        bundle = next((app.bundle for app in current.apps), "")
        outcome = "refused" if (device, bundle) == ("c", V2) else "committed"
        report = Report(device, len(self.told[device]) + 100, current.seq, "reader", 0.0, "idle", bundle, "x", "", outcome)  # type: ignore[arg-type]
        with self.database.session() as session:
            fleet.save_report(session, report, self.now().wall)
        self.told[device].add(current.seq)  # acknowledged: the board will not say it again
        self.driver.on_reports([report], self.now())


def scenario(host: MortalHost) -> None:
    """A canary, a second wave that refuses, and the way back."""
    if not host.driver_knows("r1"):
        host.start("r1", ("a",), ("b", "c"), bundle=V2, before="1")
    for device in ("a", "b", "c"):
        host.settle(device)
    host.tick(11)
    for device in ("a", "b", "c"):
        host.settle(device)


def grown(host: MortalHost) -> None:
    """A rollout that boards join, that pauses at a breach, and that an operator overrules."""
    if not host.driver_knows("r1"):
        host.start("r1", ("a",), bundle=V2, before="1", select=Selector(names=("?",)), follow=True, on_breach="pause",
                   budget=Budget(max_bytes=10**9))
    for device in ("a", "b", "c"):
        host.settle(device)
    host.tick(11)
    for device in ("a", "b", "c"):
        host.settle(device)
    if host.phase("r1") == "paused":
        host.ask("r1", ControlRequest("resume", accept=True, by="ada"))


def live(host: MortalHost, play: Callable[[MortalHost], None]) -> bool:
    """Play a scenario; True when the process was killed in it, and another one took over."""
    try:
        play(host)
    except (Killed, StorageError):
        host.die_at = -1
        host.restart()
        return True
    return False


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of three boards that run version 1."""
    path = tmp_path_factory.mktemp("prepared") / "fleet.db"
    with closing(Database.open(f"sqlite:///{path}")) as database:
        host = Host(database)
        host.add("a", "b", "c")
        host.start("r0", ("a", "b", "c"))
        for device in ("a", "b", "c"):
            host.answer(device)
        host.tick(11)
        assert host.phase("r0") == "done"
    return path


@pytest.mark.parametrize(("play", "end", "steps"), [
    (scenario, "reverted", {(d, kind, seq) for d in "abc" for kind, seq in (("forward", 2), ("back", 3))}),
    (grown, "done", {(d, "forward", 2) for d in "abc"}),
])
@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_no_board_is_issued_twice_and_the_end_is_the_same(
        prepared: Path, tmp_path: Path, stride: int, play: Callable[[MortalHost], None], end: str,
        steps: set[tuple[str, str, int]]) -> None:
    for die_at in itertools.count(0, stride):
        copy = shutil.copy(prepared, tmp_path / f"{die_at}.db")
        with closing(Database.open(f"sqlite:///{copy}")) as database:
            host = MortalHost(database, die_at)
            host.told = {device: {1} for device in ("a", "b", "c")}
            died = False
            for _ in range(12):
                died = live(host, play) or died
                if host.over("r1"):
                    break
            host.die_at = -1
            with database.reading() as session:
                issued = [(row.rollout, row.device, row.kind, row.seq) for row in session.scalars(select(Issued).order_by(Issued.seq))]
                state = views.rollout(session, "r1")
            assert state.phase == end, (die_at, state)
            assert sorted(i[1:] for i in issued if i[0] == "r1") == sorted(steps), die_at
        if not died:
            assert die_at > 40  # there were so many places to die in
            return
