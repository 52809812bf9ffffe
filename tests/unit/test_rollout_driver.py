"""The driver: a process that dies anywhere issues each board once, signs growing numbers, and misses no stored answer."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from databases import postgres_url
from sqlalchemy import event, select

from jetfleet_contract.errors import StorageError
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import (
    AppConfig,
    AppSpec,
    Birth,
    Capability,
    Deployment,
    Instant,
    Report,
    Series,
    Source,
    Telemetry,
    decode,
    encode,
)
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.sketch import sketch_of
from jetfleet_host import views
from jetfleet_host.deployments import DEPLOYMENT_LIFE_S, RENEW_BEFORE_S
from jetfleet_host.rollouts import RolloutDriver
from jetfleet_host.store import fleet, journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.journal import ControlRequest, StartRequest
from jetfleet_host.store.models import Device, Issued

V1, V2 = "11" * 32, "22" * 32
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
                                    lambda bundle: bundle in (V1, V2))
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
              spec: AppSpec | None = None, before: str = "") -> tuple[str, str]:
        version = "1" if bundle == V1 else "2"
        spec = spec or AppSpec(app, bundle, "ocr", version, sources=(Source("front", "local:front"),))
        known = {d: before for wave in waves for d in wave} if before else {}
        return self.ask(rollout, StartRequest(Plan(rollout, app, bundle, "ocr", version, waves, before=known, gates=GATES), spec, keep))

    def answer(self, device: str, outcome: str = "committed", *, bundle: str = V1, app: str = "reader", seq: int = 0) -> Report:
        self.reports += 1
        number = seq or max(d.seq for d in self.published if d.device == device)
        report = Report(device, self.reports, number, app, 0.0, "idle", bundle, "x", "", outcome)  # type: ignore[arg-type]
        with self.database.session() as session:
            assert fleet.save_report(session, report, self.now().wall)
        self.driver.on_reports([report], self.now())
        return report

    def window(self, device: str, number: int, bundle: str, milliseconds: float) -> None:
        series = Series("reader", bundle, "1", "c", "front", 200, 200, {}, {"total": sketch_of([milliseconds] * 200)})
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


def live(host: MortalHost) -> bool:
    """Run the scenario; True when the process was killed in it, and another one took over."""
    try:
        scenario(host)
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


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_no_board_is_issued_twice_and_the_end_is_the_same(prepared: Path, tmp_path: Path, stride: int) -> None:
    for die_at in itertools.count(0, stride):
        copy = shutil.copy(prepared, tmp_path / f"{die_at}.db")
        with closing(Database.open(f"sqlite:///{copy}")) as database:
            host = MortalHost(database, die_at)
            host.told = {device: {1} for device in ("a", "b", "c")}
            died = False
            for _ in range(12):
                died = live(host) or died
                if host.over("r1"):
                    break
            host.die_at = -1
            with database.reading() as session:
                issued = [(row.rollout, row.device, row.kind, row.seq) for row in session.scalars(select(Issued).order_by(Issued.seq))]
                state = views.rollout(session, "r1")
            assert state.phase == "reverted", (die_at, state)
            assert sorted(i[1:] for i in issued if i[0] == "r1") == sorted(
                (d, kind, seq) for d in "abc" for kind, seq in (("forward", 2), ("back", 3))), die_at
        if not died:
            assert die_at > 40  # there were so many places to die in
            return
