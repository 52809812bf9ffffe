"""The driver: a process that dies anywhere issues each board once, signs growing numbers, and misses no stored answer."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from databases import postgres_url
from sqlalchemy import event, select

from jetfleet_contract.errors import StorageError
from jetfleet_contract.gates import Gates
from jetfleet_contract.kpis import KpiBound
from jetfleet_contract.messages import (
    AppConfig,
    AppSpec,
    Birth,
    Capability,
    DeliveryPolicy,
    Deployment,
    Instant,
    Report,
    Series,
    Source,
    Telemetry,
    decode,
    encode,
)
from jetfleet_contract.rollout_plan import Budget, Plan, Selector
from jetfleet_contract.sketch import sketch_of
from jetfleet_host import views
from jetfleet_host.deployments import DEPLOYMENT_LIFE_S, RENEW_BEFORE_S
from jetfleet_host.rollouts import RolloutDriver
from jetfleet_host.store import accounting, evidence, fleet, journal, tags
from jetfleet_host.store.database import Database
from jetfleet_host.store.journal import ControlRequest, Overrides, StartRequest
from jetfleet_host.store.models import Device, Issued

V1, V2 = "11" * 32, "22" * 32
RELEASES = {V1: ("ocr", 1), V2: ("ocr", 2)}
GATES = Gates(hold_s=10, evidence_s=20, wave_timeout_s=100)


class Killed(BaseException):
    """The process ends here."""


class Host:
    """A database that outlives its drivers, and what was published."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.published: list[Deployment] = []
        self.seconds = 0.0
        self.reports = 0
        self.driver = self.restart()

    def restart(self) -> RolloutDriver:
        self.driver = RolloutDriver(self.database, encode, lambda _device, body: self.published.append(decode(body, Deployment)),
                                    lambda bundle: bundle in (V1, V2), lambda bundle: RELEASES.get(bundle, ("", 0)))
        self.driver.restore(self.now())
        return self.driver

    def now(self, more: float = 0.0) -> Instant:
        self.seconds += more
        return Instant(self.seconds, "boot", 1e9 + self.seconds, True)

    def add(self, *names: str) -> None:
        with self.database.session() as session:
            for name in names:
                birth = Birth(name, 1, "0.1", 1, "ab" * 32, Capability("cpu-x86", "cpu-x86", "x86_64"))
                fleet.save_birth(session, None, birth, name.encode(), self.now().wall)

    def ask(self, rollout: str, request: StartRequest | ControlRequest) -> tuple[str, str]:
        with self.database.session() as session:
            number = journal.ask(session, rollout, request, self.now().wall)
        self.driver.poll_requests(self.now())
        with self.database.reading() as session:
            answer = journal.answer_of(session, number)
        assert answer is not None
        return answer

    def start(self, rollout: str, *waves: tuple[str, ...], bundle: str = V1, app: str = "reader", keep: bool = False,
              spec: AppSpec | None = None, before: str = "", overrides: Overrides | None = None, **more: object) -> tuple[str, str]:
        version = "1" if bundle == V1 else "2"
        spec = spec or AppSpec(app, bundle, "ocr", version, sources=(Source("front", "local:front"),))
        known = {d: before for wave in waves for d in wave} if before else {}
        plan = msgspec.structs.replace(Plan(rollout, app, bundle, "ocr", version, waves, before=known, gates=GATES), **more)
        return self.ask(rollout, StartRequest(plan, spec, keep, overrides or Overrides()))

    def answer(self, device: str, outcome: str = "committed", *, bundle: str = V1, app: str = "reader", seq: int = 0,
               **metrics: float) -> Report:
        self.reports += 1
        number = seq or max(d.seq for d in self.published if d.device == device)
        report = Report(device, self.reports, number, app, 0.0, "idle", bundle, "x", "", outcome, metrics=metrics)  # type: ignore[arg-type]
        with self.database.session() as session:
            assert fleet.save_report(session, report, self.now().wall)
        self.driver.on_reports([report], self.now())
        return report

    def window(self, device: str, number: int, bundle: str, milliseconds: float, **gauges: float) -> None:
        series = Series("reader", bundle, "1", "c", "front", 200, 200, {}, {"total": sketch_of([milliseconds] * 200)})
        with self.database.session() as session:
            row = session.get_one(Device, device)
            fleet.save_window(session, row, Telemetry(device, 1, number, 0.0, 10.0, (series,), gauges), self.now().wall)

    def figures(self, device: str, number: int, bundle: str, people: float) -> None:
        """A window of 50 frames with a business figure."""
        values = {"kpi.people": sketch_of([people] * 50)}
        series = Series("reader", bundle, "1", "c", "front", 50, 50, {}, {"total": sketch_of([10.0] * 50)}, values)
        with self.database.session() as session:
            row = session.get_one(Device, device)
            fleet.save_window(session, row, Telemetry(device, 1, number, 0.0, 10.0, (series,)), self.now().wall)

    def tick(self, seconds: float) -> None:
        self.driver.tick(self.now(seconds))

    def phase(self, rollout: str) -> str:
        with self.database.reading() as session:
            return views.rollout(session, rollout).phase

    def sent(self, device: str) -> list[tuple[int, list[str]]]:
        return [(d.seq, [a.bundle for a in d.apps]) for d in self.published if d.device == device]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}" if request.param == "sqlite" else postgres_url()
    with closing(Database.open(url)) as database:
        yield Host(database)


def test_waves_until_done(host: Host) -> None:
    host.add("a", "b")
    assert host.start("r1", ("a",), ("b",)) == ("", "")
    assert host.sent("b") == []
    host.answer("a")
    host.tick(11)
    assert host.sent("b") == [(1, [V1])]
    host.answer("b")
    host.tick(11)
    assert host.phase("r1") == "done"


def test_numbers_grow_beyond_what_the_board_has_seen(host: Host) -> None:
    host.add("a")
    with host.database.session() as session:
        session.get_one(Device, "a").seq = 41  # the database was lost once; the board remembers
    host.start("r1", ("a",))
    assert host.sent("a") == [(42, [V1])]


def test_a_slow_bundle_goes_back(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a")
    host.tick(11)
    host.window("a", 1, V1, 10.0)
    host.start("r2", ("a",), bundle=V2, keep=True, before="1")
    host.answer("a", bundle=V2)
    host.window("a", 2, V2, 50.0)
    host.tick(11)
    assert host.phase("r2") == "reverting"
    assert host.sent("a") == [(1, [V1]), (2, [V2]), (3, [V1])]
    host.answer("a", bundle=V1)
    assert host.phase("r2") == "reverted"
    with host.database.reading() as session:
        assert views.rollout(session, "r2").code == "rollout.latency"


def test_answers_under_a_later_number_count_and_older_ones_do_not(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a", seq=0)
    host.tick(11)
    host.start("r2", ("a",), bundle=V2, keep=True)
    host.answer("a", bundle=V2, seq=1)
    assert host.phase("r2") == "running"
    host.answer("a", bundle=V2, seq=9)
    assert host.phase("r2") == "holding"


def test_two_apps_share_a_board_and_keep_their_settings(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    chained = AppSpec("sorter", V1, "ocr", "1", input_from="reader", config=AppConfig(3, {"x": 1.0}))
    host.start("r2", ("a",), app="sorter", spec=chained)
    assert [app.app for app in host.published[-1].apps] == ["reader", "sorter"]
    host.answer("a")
    host.answer("a", app="sorter")
    host.tick(11)
    host.start("r3", ("a",), app="sorter", bundle=V2, keep=True, spec=AppSpec("sorter", V2, "ocr", "2"))
    assert host.published[-1].apps[1] == msgspec.structs.replace(chained, bundle=V2, version="2")
    host.start("r4", ("a",), bundle=V2)
    assert host.published[-1].apps[0].sources == (Source("front", "local:front"),)


def test_changed_settings_get_a_new_config_version(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a")
    host.tick(11)
    host.start("r2", ("a",), spec=AppSpec("reader", V1, "ocr", "1", config=AppConfig(options={"threshold": 0.5})))
    assert host.published[-1].apps[0].config == AppConfig(2, {"threshold": 0.5})


def test_taking_an_app_off_takes_off_what_it_feeds(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.start("r2", ("a",), app="sorter", spec=AppSpec("sorter", V1, "ocr", "1", input_from="reader"))
    host.answer("a", "refused")
    assert host.published[-1].apps == ()


@pytest.mark.parametrize(("prepare", "code"), [
    (lambda h: h.start("r1", ("nobody",)), "rollout.unknown-device"),
    (lambda h: h.start("r1", ("a",), bundle="99" * 32), "rollout.unpublished"),
    (lambda h: h.start("r1", ("a",), spec=AppSpec("reader", V1, "ocr", "1", input_from="ghost")), "rollout.deployment"),
    (lambda h: [h.start("r0", ("a",)), h.start("r1", ("a",))][1], "rollout.busy"),
    (lambda h: h.ask("r9", ControlRequest("abort")), "rollout.over"),
])
def test_requests_that_cannot_be_met(host: Host, prepare: object, code: str) -> None:
    host.add("a")
    assert prepare(host)[0] == code  # type: ignore[operator]


def test_a_withdrawn_request_is_not_carried_out(host: Host) -> None:
    host.add("a")
    plan = Plan("r1", "reader", V1, "ocr", "1", (("a",),), gates=GATES)
    with host.database.session() as session:
        number = journal.ask(session, "r1", StartRequest(plan, AppSpec("reader", V1, "ocr", "1"), False), 1.0)
        assert journal.withdraw(session, number)
        assert not journal.take(session, number)
    host.driver.poll_requests(host.now())
    assert host.published == []


def test_a_request_that_was_begun_cannot_be_withdrawn_and_is_begun_again_after_a_kill(host: Host) -> None:
    host.add("a")
    plan = Plan("r1", "reader", V1, "ocr", "1", (("a",),), gates=GATES)
    with host.database.session() as session:
        number = journal.ask(session, "r1", StartRequest(plan, AppSpec("reader", V1, "ocr", "1"), False), 1.0)
        assert journal.take(session, number)
        assert not journal.withdraw(session, number)
    host.restart().poll_requests(host.now())
    assert host.sent("a") == [(1, [V1])]


def test_a_deployment_is_renewed_before_it_expires(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a")
    host.tick(11)
    host.tick(DEPLOYMENT_LIFE_S - RENEW_BEFORE_S - 100)
    assert len(host.published) == 1
    host.tick(3700)
    assert host.sent("a") == [(1, [V1]), (2, [V1])]
    assert host.published[-1].expires == pytest.approx(host.now().wall + DEPLOYMENT_LIFE_S)


# --- downgrades, joiners, late ones, bytes -------------------------------------------------------------------------


def brought(host: Host, rollout: str, bundle: str, *devices: str, **more: object) -> None:
    """A rollout of one wave that everybody accepts."""
    assert host.start(rollout, tuple(devices), bundle=bundle, **more) == ("", "")  # type: ignore[arg-type]
    for device in devices:
        host.answer(device, bundle=bundle)
    host.tick(11)
    assert host.phase(rollout) == "done"


def test_an_older_release_needs_an_operators_word(host: Host) -> None:
    host.add("a", "b")
    brought(host, "r1", V2, "a", "b")
    code, text = host.start("r2", ("a",), ("b",))
    assert code == "rollout.downgrade"
    assert "2 boards: a, b" in text
    assert "--allow-downgrade" in text
    spec = AppSpec("reader", V1, "ocr", "1", downgrade=True)
    assert host.start("r3", ("a",), ("b",), keep=True, spec=spec, approved_by="ada@desk", before="2") == ("", "")
    assert host.published[-1].apps[0].downgrade
    with host.database.reading() as session:
        assert views.rollout(session, "r3").plan.approved_by == "ada@desk"


def test_the_way_back_is_an_approved_downgrade_and_the_next_issue_is_none(host: Host) -> None:
    host.add("a")
    brought(host, "r1", V1, "a")
    host.start("r2", ("a",), bundle=V2, keep=True, before="1")
    assert not host.published[-1].apps[0].downgrade
    host.answer("a", "rolled_back", bundle=V2)
    assert (host.published[-1].apps[0].bundle, host.published[-1].apps[0].downgrade) == (V1, True)
    host.tick(1)
    host.start("r3", ("a",), bundle=V2, keep=True, before="1")
    assert not host.published[-1].apps[0].downgrade


def test_a_plan_overrides_what_the_board_keeps(host: Host) -> None:
    host.add("a")
    brought(host, "r1", V1, "a")
    host.start("r2", ("a",), bundle=V2, keep=True, overrides=Overrides(delivery=DeliveryPolicy("full", 1000)))
    app = host.published[-1].apps[0]
    assert (app.delivery, app.sources) == (DeliveryPolicy("full", 1000), (Source("front", "local:front"),))


def test_tags_travel_with_the_next_deployment(host: Host) -> None:
    host.add("a")
    with host.database.session() as session:
        tags.put(session, "a", {"site": "berlin"})
    host.start("r1", ("a",))
    assert host.published[-1].tags == {"site": "berlin"}


def test_boards_that_come_later_join_and_others_do_not(host: Host) -> None:
    host.add("dock-1")
    host.start("r1", ("dock-1",), select=Selector(names=("dock-*",)), follow=True)
    host.add("dock-2", "gate-1")
    host.tick(6)
    assert host.sent("dock-2") == []
    host.answer("dock-1")
    host.tick(11)
    assert (host.sent("dock-2"), host.sent("gate-1")) == ([(1, [V1])], [])
    host.answer("dock-2")
    host.tick(11)
    assert host.phase("r1") == "done"


def test_a_board_that_was_off_is_silent_and_noted_when_it_wakes(host: Host) -> None:
    host.add("a", "b")
    lenient = msgspec.structs.replace(GATES, min_success=0.5)
    host.start("r1", ("a", "b"), gates=lenient)
    host.answer("a")
    host.tick(101)
    host.tick(11)
    assert host.phase("r1") == "done"
    assert host.driver.retained()[1][0] == "b"  # its deployment waits for it
    host.answer("b")
    with host.database.reading() as session:
        late = views.rollout(session, "r1").devices["b"]
    assert (late.status, late.code) == ("committed", "rollout.late")


def test_a_late_answer_that_a_killed_host_only_stored_is_noted_by_the_next(host: Host) -> None:
    host.add("a", "b")
    host.start("r1", ("a", "b"), gates=msgspec.structs.replace(GATES, min_success=0.5))
    host.answer("a")
    host.tick(101)
    host.tick(11)
    with host.database.session() as session:
        fleet.save_report(session, Report("b", 77, 1, "reader", 0.0, "idle", V1, "x", "", "committed"), host.now().wall)
    host.restart()
    with host.database.reading() as session:
        assert views.rollout(session, "r1").devices["b"].status == "committed"


def test_every_byte_is_accounted_for(host: Host) -> None:
    host.add("a", "b")
    brought(host, "r0", V1, "a", "b")
    host.start("r1", ("a", "b"), bundle=V2, keep=True, before="1", board_bytes=1000, gates=msgspec.structs.replace(GATES, max_bad=1))
    for received in (100.0, 900.0, 700.0):  # reports may come out of order
        host.answer("a", "", bundle=V2, bytes=received - 50, bytes_received=received, bytes_saved=300.0, bytes_delta=200.0)
    host.answer("b", "", bundle=V2, bytes=500.0)
    host.answer("b", "", bundle=V2, seq=9, bytes=40.0)  # a second attempt
    with host.database.session() as session:
        accounting.add_published(session, {"aa" * 32: 600, "bb" * 32: 50})
        accounting.add_published(session, {"aa" * 32: 20})
    with host.database.reading() as session:
        counted = views.rollout_bytes(session, views.rollout(session, "r1"), ["aa" * 32])
    assert msgspec.to_builtins(counted.devices["a"]) == {"received": 900, "useful": 850, "delta": 200, "saved": 300, "back": 0}
    assert (counted.devices["b"].received, counted.total.received, counted.planned, counted.published) == (540, 1440, 2000, 620)


def test_the_budget_pauses_and_its_day_is_the_utc_day(host: Host) -> None:
    host.add("a", "b")
    host.start("r1", ("a",), ("b",), board_bytes=1000, budget=Budget(max_bytes=1500))
    host.answer("a", bytes_received=900.0)
    host.tick(11)
    assert host.phase("r1") == "paused"
    with host.database.reading() as session:
        assert views.rollout(session, "r1").code == "rollout.budget"
        assert accounting.spending(session, "r1", "reader", host.now().wall).today == 900
        assert accounting.spending(session, "r1", "reader", host.now().wall + 86400).today == 0
    assert host.ask("r1", ControlRequest("resume", accept=True, by="ada")) == ("", "")
    assert host.sent("b") == [(1, [V1])]


def test_evidence_leaves_noisy_windows_out_and_counts_crashes(host: Host) -> None:
    host.add("a")
    brought(host, "r1", V1, "a")
    host.window("a", 1, V1, 10.0, **{"reader.crashes": 3.0})
    host.start("r2", ("a",), bundle=V2, keep=True, before="1")
    host.answer("a", bundle=V2, agreement=0.93)
    host.window("a", 2, V2, 11.0, throttled=0.0, temperature_c=55.0, **{"reader.crashes": 3.0})
    host.window("a", 3, V2, 99.0, throttled=1.0, temperature_c=88.0, **{"reader.crashes": 4.0})
    host.window("a", 4, V2, 99.0, board_cpu_pct=95.0, cpu_pct=10.0)
    with host.database.reading() as session:
        [seen] = evidence.of_boards(session, "r2", "reader", ["a"], sketches=True)
    assert (seen.old.count, seen.new.count, seen.noisy) == (200, 200, 2)
    assert seen.new.quantile(0.95) == pytest.approx(11.0, rel=0.02)
    assert (seen.crashes, seen.temperature_c, seen.throttled, seen.agreement) == (1.0, 88.0, 0.5, 0.93)


@pytest.mark.parametrize(("people", "phase", "code"), [(3.0, "done", ""), (1.5, "reverted", "rollout.kpi")])
def test_a_business_figure_gates_a_rollout(host: Host, people: float, phase: str, code: str) -> None:
    """The new model runs as fast, but sees half of the people: it goes back."""
    host.add("a", "b")
    brought(host, "r1", V1, "a", "b")
    for number in range(1, 9):
        for device in ("a", "b"):
            host.figures(device, number, V1, 3.0 + 0.1 * (number % 3))
    gates = msgspec.structs.replace(GATES, max_p95_ratio=0.0, kpis={"people": KpiBound(min_ratio=0.9)})
    host.start("r2", ("a", "b"), bundle=V2, keep=True, before="1", gates=gates)
    for device in ("a", "b"):
        host.answer(device, bundle=V2)
    host.tick(1)
    for number in range(9, 17):
        for device in ("a", "b"):
            host.figures(device, number, V2, people + 0.1 * (number % 3))
    host.tick(11)
    for _ in range(60):
        if host.phase("r2") in ("done", "reverted"):
            break
        for device in ("a", "b"):
            if host.phase("r2") == "reverting":
                host.answer(device, bundle=V1)
        host.tick(5)
    with host.database.reading() as session:
        state = views.rollout(session, "r2")
    assert (state.phase, state.code) == (phase, code)
    [verdict] = [v for v in state.verdicts if v.gate == "kpi"]
    assert verdict.passed is (phase == "done")
    assert "people: mean" in verdict.why


def test_two_rollouts_of_one_app_on_other_boards_and_of_two_apps_on_the_same(host: Host) -> None:
    host.add("a", "b", "c")
    host.start("r1", ("a",))
    host.start("r2", ("b",), ("c",))
    host.start("r3", ("a",), ("b",), app="sorter", spec=AppSpec("sorter", V2, "ocr", "2", sources=(Source("back", "local:back"),)))
    host.restart()
    host.answer("a")
    host.answer("b")
    host.answer("a", app="sorter", bundle=V2)
    host.tick(11)
    host.answer("b", app="sorter", bundle=V2)
    host.answer("c")
    host.restart()
    host.tick(11)
    assert {host.phase(r) for r in ("r1", "r2", "r3")} == {"done"}
    for device in "abc":
        numbers = [seq for seq, _ in host.sent(device)]
        assert numbers == sorted(set(numbers))
    with host.database.reading() as session:
        apps = {d: {app.app: app.bundle for app in deployment.apps} for d in "abc" if (deployment := journal.deployment_of(session, d))}
    assert apps == {"a": {"reader": V1, "sorter": V2}, "b": {"reader": V1, "sorter": V2}, "c": {"reader": V1}}


def test_clocks_go_on_over_a_boot(host: Host) -> None:
    host.add("a", "b")
    host.start("r1", ("a",), ("b",))
    host.answer("a")
    wall = host.now().wall
    host.driver.tick(Instant(1.0, "another boot", wall + 5, True))
    assert host.sent("b") == []
    host.driver.tick(Instant(7.0, "another boot", wall + 11, True))
    assert host.sent("b") == [(1, [V1])]


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
