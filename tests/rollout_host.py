"""A host's rollout driver over a real database, with boards that answer when they are told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from databases import postgres_url

from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import (
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
from jetfleet_host.rollouts import RolloutDriver
from jetfleet_host.store import fleet, journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.journal import ControlRequest, Overrides, StartRequest
from jetfleet_host.store.models import Device

V1, V2 = "11" * 32, "22" * 32
RELEASES = {V1: ("ocr", 1), V2: ("ocr", 2)}
GATES = Gates(hold_s=10, evidence_s=20, wave_timeout_s=100)


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
