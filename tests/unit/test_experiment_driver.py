"""Experiments on a real database beside the real rollout driver: arms are rolled out, the slower one loses, the winner goes everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from databases import postgres_url
from sqlalchemy import event, select

from jetfleet_contract import cohorts
from jetfleet_contract import experiments as ex
from jetfleet_contract.messages import AppSpec, Birth, Capability, Deployment, Instant, Report, Series, Source, Telemetry, decode, encode
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.sketch import sketch_of
from jetfleet_host.experiments import ExperimentDriver, rollout_id
from jetfleet_host.rollouts import RolloutDriver
from jetfleet_host.store import experiments as rows
from jetfleet_host.store import fleet, journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.journal import StartRequest
from jetfleet_host.store.models import Device, Issued

V1, V2 = "11" * 32, "22" * 32
A, B = ex.Version("ocr", "1", V1), ex.Version("ocr", "2", V2)
BOARDS = [f"b{n:02}" for n in range(12)]


class Killed(BaseException):
    """The process ends here."""


class World:
    """A host whose boards run version 1 and obey at once."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.seconds = 0.0
        self.windows = itertools.count()
        self.reports = itertools.count(1)
        self.refuses: set[str] = set()
        self.answered: set[tuple[str, int]] = set()
        self.desired: dict[str, Deployment] = {}
        for name in BOARDS:
            self._add(name)
        self.restart()

    def _add(self, name: str) -> None:
        with self.database.session() as session:
            birth = Birth(name, 1, "0.1", 1, "ab" * 32, Capability("cpu-x86", "cpu-x86", "x86_64"))
            fleet.save_birth(session, None, birth, name.encode(), 0.0)
            spec = AppSpec("reader", V1, "ocr", "1", sources=(Source("front", "local:front"),))
            deployment = Deployment(name, 1, 1e12, (spec,))
            journal.save_deployment(session, deployment, encode(deployment), 0.0)
        self.desired[name] = deployment
        self.answered.add((name, 1))

    def restart(self) -> None:
        self.rollouts = RolloutDriver(self.database, encode, self._publish, lambda bundle: bundle in (V1, V2))
        self.rollouts.restore(self.now())
        self.driver = ExperimentDriver(self.database)

    def _publish(self, device: str, body: bytes) -> None:
        self.desired[device] = decode(body, Deployment)

    def now(self) -> Instant:
        return Instant(self.seconds, "boot", 1e9 + self.seconds, True)

    def turn(self, seconds: float = 2.0) -> None:
        """What `serve` does in a turn; then the boards answer."""
        self.seconds += seconds
        self.rollouts.poll_requests(self.now())
        self.rollouts.tick(self.now())
        self.driver.tick(self.now())
        for name, deployment in sorted(self.desired.items()):
            if (name, deployment.seq) not in self.answered:
                self.answered.add((name, deployment.seq))
                self._answer(name, deployment)

    def _answer(self, name: str, deployment: Deployment) -> None:
        outcome = "refused" if name in self.refuses else "committed"
        spec = deployment.apps[0]
        report = Report(name, next(self.reports), deployment.seq, "reader", 0.0, "idle", spec.bundle, spec.version, "", outcome)  # type: ignore[arg-type]
        with self.database.session() as session:
            fleet.save_report(session, report, self.now().wall)
        self.rollouts.on_reports([report], self.now())

    def measure(self, milliseconds: dict[str, float]) -> None:
        """One window a board, by the bundle that it runs."""
        for rank, (name, deployment) in enumerate(sorted(self.desired.items())):
            bundle = deployment.apps[0].bundle
            series = Series("reader", bundle, "1", "c", "front", 50, 50, {}, {"total": sketch_of([milliseconds[bundle] + rank / 10] * 50)})
            with self.database.session() as session:
                window = Telemetry(name, 1, next(self.windows), 0.0, 10.0, (series,), {"reader.rejects": float(bundle == V1)})
                fleet.save_window(session, session.get_one(Device, name), window, self.now().wall)

    def begin(self, **changes: object) -> str:
        strata = dict.fromkeys(BOARDS, "cpu-x86")
        plan = ex.Plan("exp", "reader", A, B, cohorts.draw(strata, 0.5, "exp"), strata, "p99", "lower", looks=4, duration_s=400.0)
        with self.database.session() as session:
            rows.add(session, ex.Experiment(ex.check_plan(msgspec.structs.replace(plan, **changes))), self.now().wall)
        return "exp"

    def state(self) -> ex.Experiment:
        with self.database.reading() as session:
            found = rows.load(session, "exp")
        assert found is not None
        return found

    def runs(self, bundle: str) -> list[str]:
        return sorted(name for name, deployment in self.desired.items() if deployment.apps[0].bundle == bundle)

    def go_until(self, *phases: str) -> ex.Experiment:
        for _ in range(60):
            if self.state().phase in phases:
                return self.state()
            self.turn()
        raise AssertionError(f"still {self.state().phase}: {self.state().reason}")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}" if request.param == "sqlite" else postgres_url()
    with closing(Database.open(url)) as database:
        yield World(database)


def test_both_versions_run_until_the_faster_one_is_promoted(world: World) -> None:
    world.begin()
    state = world.go_until("running")
    assert world.runs(V2) == list(state.plan.cohort("b"))
    assert world.runs(V1) == list(state.plan.cohort("a"))
    for _ in range(4):
        world.measure({V1: 40.0, V2: 20.0})
        world.turn(100.0)
        if world.state().phase != "running":
            break
    state = world.state()
    assert (state.phase, state.winner) == ("promoting", "b")
    assert 0.4 < state.looks[-1].effect < 0.6
    world.go_until("done")
    assert world.runs(V2) == BOARDS


def test_an_observed_figure_and_a_gauge_decide_as_well(world: World) -> None:
    world.begin(metric="rejects", better="lower")
    state = world.go_until("running")
    with world.database.session() as session:
        for name in BOARDS:
            rows.observe(session, name, "reader", "rejects", float(state.plan.arms[name] == "a"), world.now().wall)
    for _ in range(4):
        world.measure({V1: 10.0, V2: 10.0})
        world.turn(100.0)
    assert world.state().winner == "b"


def test_no_difference_goes_back_to_a(world: World) -> None:
    world.begin()
    world.go_until("running")
    for _ in range(4):
        world.measure({V1: 30.0, V2: 30.0})
        world.turn(101.0)
    assert world.state().winner == "a"
    world.go_until("done")
    assert world.runs(V1) == BOARDS


def test_boards_that_refuse_an_arm_end_it(world: World) -> None:
    world.begin()
    world.refuses = set(world.state().plan.cohort("b"))
    state = world.go_until("failed")
    assert state.reason.startswith("arm b: ")
    assert world.runs(V1) == BOARDS or set(world.runs(V2)) <= world.refuses


def test_an_operator_aborts_and_promotes(world: World) -> None:
    world.begin(promotes="operator", looks=1)
    world.go_until("running")
    with world.database.session() as session:
        rows.ask(session, "exp", "promote b")
    world.go_until("done")
    assert world.runs(V2) == BOARDS
    with world.database.session() as session:
        rows.ask(session, "exp", "abort")
    world.turn()
    with world.database.reading() as session:
        assert (rows.answer_of(session, "exp") or "").startswith("experiment.order")


def test_another_rollout_on_its_boards_waits_for_the_verdict(world: World) -> None:
    world.begin()
    world.go_until("running")
    plan = Plan("other", "reader", V2, "ocr", "2", (("b03",),))
    with world.database.session() as session:
        number = journal.ask(session, plan.id, StartRequest(plan, AppSpec("reader", V2, "ocr", "2"), keep=True), world.now().wall)
    world.turn()
    with world.database.reading() as session:
        answered = journal.answer_of(session, number)
    assert answered is not None
    assert answered[0] == "rollout.experiment"


def test_a_kill_at_every_statement_begins_no_arm_twice(tmp_path: Path) -> None:
    with closing(Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")) as database:
        world = World(database)
        world.begin()
        countdown = itertools.count()
        fatal = {"at": 0}

        def kill(*_: object) -> None:
            if next(countdown) == fatal["at"]:
                raise Killed

        event.listen(database.engine, "before_cursor_execute", kill)
        for at in range(0, 400, 3):
            countdown, fatal["at"] = itertools.count(), at
            try:
                world.turn()
            except Killed:
                event.remove(database.engine, "before_cursor_execute", kill)
                world.restart()
                event.listen(database.engine, "before_cursor_execute", kill)
            if world.state().phase == "running":
                break
        event.remove(database.engine, "before_cursor_execute", kill)
        world.go_until("running")
        with database.reading() as session:
            issued = session.scalars(select(Issued)).all()
        assert len(issued) == len(BOARDS)
        assert {row.rollout for row in issued} == {rollout_id("exp", "a"), rollout_id("exp", "b")}
