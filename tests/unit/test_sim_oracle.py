"""The oracle finds each kind of loss: a sound run is made by hand, then one thing in it is spoiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from sqlalchemy import delete, select

from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import AppSpec, Deployment, Report, Series, Telemetry
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import Progress, Rollout, Verdict
from jetfleet_contract.slot_records import AppSlots, Slot
from jetfleet_host.sim.device import Device, Ledger, Told
from jetfleet_host.sim.disk import Disk
from jetfleet_host.sim.oracle import RULES, Facts, judge, load_rollouts
from jetfleet_host.sim.tap import Tap
from jetfleet_host.store import fleet, journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device as DeviceRow
from jetfleet_host.store.models import ReportRow

WEIGHTS = b"weights of version 2"
BLOB = hashlib.sha256(WEIGHTS).hexdigest()
BUNDLE = "b" * 64
NAMES = ("sim-0000", "sim-0001", "sim-0002")
ROLLOUT = "camera-2-abc"


class World:
    """A run of three devices in two waves that lost nothing."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.devices = {name: SimpleNamespace(name=name, ledger=Ledger(), disk=Disk(), life=None) for name in NAMES}
        self.tap = SimpleNamespace(deployments={name: {1: {"digest"}} for name in NAMES})
        self.expected = "done"
        self.unsettled: list[str] = []
        waves = ((NAMES[0],), NAMES[1:])
        plan = Plan(ROLLOUT, "camera", BUNDLE, "rehearsal", "2", waves, gates=Gates())
        verdicts = tuple(Verdict(wave, gate, True, "") for wave in (0, 1) for gate in ("install", "latency"))
        self.state = Rollout(plan, {name: Progress(wave, "committed") for wave, members in enumerate(waves) for name in members},
                             phase="done", wave=1, verdicts=verdicts)
        with database.session() as session:
            spec = AppSpec("camera", BUNDLE, "rehearsal", "2")
            for name in NAMES:
                session.add(DeviceRow(device=name, key="k", first_seen=0.0, last_seen=0.0, birth=""))
            session.flush()
            journal.add_rollout(session, self.state, spec, False, 0.0)
            for number, name in enumerate(NAMES):
                deployment = Deployment(name, 1, 9e9, (spec,), ROLLOUT)
                journal.save_deployment(session, deployment, b"{}", 0.0)
                journal.add_issued(session, ROLLOUT, "forward", deployment, BUNDLE, None, 10.0 + (number > 0))
                fleet.save_report(session, Report(name, 7, 1, "camera", 0.0, "keeping", BUNDLE, "2", "", "committed"), 0.0)
            fleet.hold_devices(session, NAMES)
            for name in NAMES:
                for window in (1, 2, 4):  # the third was lost, and the host knows
                    self.save_window(session, name, window, done=10 * window)
        for name in NAMES:
            self.sound(name)

    def save_window(self, session: Any, name: str, window: int, *, done: int) -> None:
        device = fleet.known_device(session, name)
        assert device is not None
        series = Series("camera", BUNDLE, "2", "fp16", "front", done, done)
        fleet.save_window(session, device, Telemetry(name, 1, window, 0.0, 1.0, (series,)), 0.0)

    def sound(self, name: str) -> None:
        device = self.devices[name]
        device.ledger.accepted[1] = (0.0, ROLLOUT, BUNDLE)
        device.ledger.told[7] = Told(7, 1, BUNDLE, "2", "committed", "", ROLLOUT, 12.0)
        device.ledger.acked.add(7)
        device.ledger.windows[1] = [10, 20, 30, 40]
        device.disk.blobs[BLOB] = WEIGHTS
        slot = Slot(BUNDLE, "rehearsal", "2", weights=BLOB, blobs=(BLOB,))
        device.life = SimpleNamespace(apps=SimpleNamespace(states={"camera": AppSlots("camera", seq=1, champion=slot)}))

    def judged(self) -> dict[str, list[str]]:
        with self.database.reading() as session:
            return judge(Facts(session, cast("dict[str, Device]", self.devices), cast("Tap", self.tap), load_rollouts(session),
                               self.expected, self.unsettled))

    @contextmanager
    def changing(self) -> Iterator[Any]:
        with self.database.session() as session:
            yield session


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Database.open(f"sqlite:///{tmp_path / 'fleet.db'}"))


def test_a_sound_run_lost_nothing(world: World) -> None:
    assert world.judged() == {rule: [] for rule in RULES}


def ledger(world: World) -> Ledger:
    return cast("Ledger", world.devices[NAMES[1]].ledger)


def lose_report(world: World) -> None:
    with world.changing() as session:
        session.execute(delete(ReportRow).where(ReportRow.device == NAMES[1]))


def alter_report(world: World) -> None:
    with world.changing() as session:
        row = session.scalar(select(ReportRow).where(ReportRow.device == NAMES[1]))
        row.outcome = "failed"


def invent_report(world: World) -> None:
    with world.changing() as session:
        fleet.save_report(session, Report(NAMES[1], 9, 1, "camera", 0.0, "keeping", BUNDLE, "2", "", "committed"), 0.0)


def forget_ack(world: World) -> None:
    ledger(world).acked.clear()


def lose_last_window(world: World) -> None:
    ledger(world).windows[1].append(50)


def alter_window(world: World) -> None:
    ledger(world).windows[1][1] = 21


def miscount_gaps(world: World) -> None:
    with world.changing() as session:
        session.get(DeviceRow, NAMES[1]).gaps = 0


def wrong_model(world: World) -> None:
    states = world.devices[NAMES[1]].life.apps.states
    other = msgspec.structs.replace(states["camera"].champion, bundle="c" * 64)
    states["camera"] = msgspec.structs.replace(states["camera"], champion=other)


def damage_blob(world: World) -> None:
    world.devices[NAMES[1]].disk.blobs[BLOB] = WEIGHTS[:-1] + b"?"


def lose_blob(world: World) -> None:
    world.devices[NAMES[1]].disk.blobs.clear()


def issue_unknown(world: World) -> None:
    ledger(world).accepted[2] = (0.0, "camera-3-xyz", BUNDLE)


def publish_two_bodies(world: World) -> None:
    world.tap.deployments[NAMES[1]][1].add("another")


def publish_unissued(world: World) -> None:
    world.tap.deployments[NAMES[1]][2] = {"digest"}


def begin_early(world: World) -> None:
    with world.changing() as session:
        journal.issued(session, ROLLOUT, NAMES[1], "forward").at = 5.0  # type: ignore[union-attr]


def judge_once(world: World) -> None:
    with world.changing() as session:
        journal.save_state(session, msgspec.structs.replace(world.state, verdicts=world.state.verdicts[1:]), (), 0.0)


def end_otherwise(world: World) -> None:
    world.expected = "reverted"


def leave_stuck(world: World) -> None:
    devices = {**world.state.devices, NAMES[1]: Progress(1, "stuck")}
    with world.changing() as session:
        journal.save_state(session, msgspec.structs.replace(world.state, devices=devices), (NAMES[1],), 0.0)


def drop_chunk(world: World) -> None:
    ledger(world).port.arrived += 1


def break_order(world: World) -> None:
    ledger(world).count("slots.order")


def refuse_at_host(world: World) -> None:
    with world.changing() as session:
        fleet.save_rejected(session, "t", b"", "message.bad", "", 0.0)


def never_settle(world: World) -> None:
    world.unsettled = [NAMES[1]]


SPOILED: list[tuple[Callable[[World], None], str]] = [
    (lose_report, "every outcome is stored once and acknowledged"),
    (alter_report, "every outcome is stored once and acknowledged"),
    (invent_report, "every outcome is stored once and acknowledged"),
    (forget_ack, "every outcome is stored once and acknowledged"),
    (lose_last_window, "every telemetry window is accounted for"),
    (alter_window, "every telemetry window is accounted for"),
    (miscount_gaps, "every telemetry window is accounted for"),
    (wrong_model, "every device runs what it should, or told why not"),
    (damage_blob, "every committed model is whole"),
    (lose_blob, "every committed model is whole"),
    (issue_unknown, "no deployment was issued twice"),
    (publish_two_bodies, "no deployment was issued twice"),
    (publish_unissued, "no deployment was issued twice"),
    (begin_early, "no wave began out of order"),
    (judge_once, "no wave began out of order"),
    (end_otherwise, "the rollout ended as expected"),
    (leave_stuck, "the rollout ended as expected"),
    (drop_chunk, "every chunk is accounted for"),
    (break_order, "no unexplained error on a device"),
    (refuse_at_host, "no unexplained refusal by the host"),
    (never_settle, "every device settled"),
]


@pytest.mark.parametrize(("spoil", "rule"), SPOILED, ids=[spoil.__name__ for spoil, _ in SPOILED])
def test_each_loss_is_found_by_its_rule_and_no_other(world: World, spoil: Callable[[World], None], rule: str) -> None:
    spoil(world)
    assert [name for name, found in world.judged().items() if found] == [rule]


def test_every_rule_has_a_loss_that_it_finds() -> None:
    assert {rule for _, rule in SPOILED} == set(RULES)


def test_a_session_that_was_cut_may_lose_its_end(world: World) -> None:
    lose_last_window(world)
    ledger(world).cut.add(1)
    assert world.judged()["every telemetry window is accounted for"] == []
