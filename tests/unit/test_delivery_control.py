"""The host's own bounds: bytes a day that survive a kill, hours, pauses by hand and by a paused rollout, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from delivery_rig import MemoryBlobs, content

from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.budgets import DAY_S, HOUR_S
from jetfleet_contract.chunks import CHUNK_BYTES, Bitmap
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import AppSpec, Instant
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import Phase, Rollout
from jetfleet_contract.topics import want
from jetfleet_contract.transfer import Want, encode_want
from jetfleet_host.delivery import Distributor
from jetfleet_host.delivery_control import DeliveryControl, HostBudget
from jetfleet_host.project import CONFIG, read_settings
from jetfleet_host.store import deliveries, journal
from jetfleet_host.store.database import Database

DAY = 20_000
COUNT = 40
MANIFEST = "ab" * 32


class QuietLink:
    """Takes everything, says nothing."""

    connected = True
    backlog = 0
    limits = BrokerLimits()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        return True


class Scene:
    """A distributor and its control over one database, in virtual time."""

    def __init__(self, database: Database, budget: HostBudget) -> None:
        self.database = database
        self.now = Instant(100.0, "boot", DAY * DAY_S + 3 * HOUR_S, wall_trusted=True)
        blobs = MemoryBlobs()
        self.blob, _ = blobs.add(content(COUNT * CHUNK_BYTES))
        self.distributor = Distributor(QuietLink(), blobs)
        self.control = DeliveryControl(database, self.distributor, budget, lambda bundle: (self.blob,) if bundle == MANIFEST else (),
                                       lambda _blob: "toy:1")

    def want(self) -> None:
        payload = encode_want(Want(CHUNK_BYTES, Bitmap.full(COUNT)))
        self.distributor.on_want(want(self.blob, "board"), payload, self.now.mono)

    def run(self, seconds: float) -> int:
        """Poll and tick; bytes published."""
        before = self.distributor.stats.published_bytes
        for turn in range(int(seconds / 0.05)):
            self.now = msgspec.structs.replace(self.now, mono=self.now.mono + 0.05, wall=self.now.wall + 0.05)
            if turn % 5 == 0:
                self.control.poll(self.now)
            self.distributor.tick(self.now.mono)
        return self.distributor.stats.published_bytes - before

    def told(self) -> deliveries.DeliveryStatus:
        with self.database.reading() as session:
            told = deliveries.status(session)
        assert told is not None
        return told


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")) as database:
        yield database


def test_the_host_publishes_its_day_s_bytes_and_no_more_even_when_it_is_killed(database: Database) -> None:
    scene = Scene(database, HostBudget(mb_per_day=1))
    scene.want()
    first = scene.run(2.0)
    assert 900_000 <= first <= 1_000_000
    assert scene.told().held == "delivery.day-budget"
    again = Scene(database, HostBudget(mb_per_day=1))  # nothing was closed
    again.want()
    assert again.run(2.0) == 0
    again.now = msgspec.structs.replace(again.now, wall=again.now.wall + DAY_S)
    again.want()
    assert again.run(2.0) > 900_000


def test_a_clean_stop_gives_back_what_was_only_reserved(database: Database) -> None:
    scene = Scene(database, HostBudget(mb_per_day=100))
    scene.want()
    published = scene.run(2.0)
    scene.control.close(scene.now)
    with database.reading() as session:
        assert deliveries.day(session).used == published


def test_outside_its_hours_the_host_publishes_nothing_and_says_until_when(database: Database) -> None:
    scene = Scene(database, HostBudget(hours=((22, 6),)))
    scene.now = msgspec.structs.replace(scene.now, wall=DAY * DAY_S + 12 * HOUR_S)
    scene.want()
    assert scene.run(2.0) == 0
    told = scene.told()
    assert (told.held, told.hours) == ("delivery.hours", ((22, 6),))
    assert told.held_until == pytest.approx(DAY * DAY_S + 22 * HOUR_S, abs=2)
    scene.now = msgspec.structs.replace(scene.now, wall=DAY * DAY_S + 22 * HOUR_S)
    scene.want()
    assert scene.run(2.0) > COUNT * CHUNK_BYTES * 0.9


@pytest.mark.parametrize("what", [MANIFEST, deliveries.EVERYTHING, ""])
def test_what_is_paused_is_remembered_and_goes_on(database: Database, what: str) -> None:
    scene = Scene(database, HostBudget())
    name = what or scene.blob
    with database.session() as session:
        deliveries.pause(session, name, "paused: toy:1", 1.0)
    scene.run(0.5)
    scene.want()
    assert scene.run(2.0) == 0
    told = scene.told()
    assert told.paused == {name: "paused: toy:1"}
    assert [(line.what, line.paused, line.wanters) for line in told.blobs] == [("toy:1", "paused: toy:1", 1)]
    with database.session() as session:
        assert deliveries.resume(session, (name,)) == 1
    assert scene.run(2.0) > 0


def test_a_paused_rollout_pauses_its_bundle_unless_another_one_brings_it(database: Database) -> None:
    scene = Scene(database, HostBudget())

    def rollout(name: str, phase: str) -> None:
        state = Rollout(Plan(name, "reader", MANIFEST, "toy", "1", (("board",),)), {}, msgspec.convert(phase, Phase))
        with database.session() as session:
            journal.add_rollout(session, state, AppSpec("reader", MANIFEST, "toy", "1"), True, 1.0)

    rollout("first", "paused")
    scene.run(0.5)
    scene.want()
    assert scene.run(2.0) == 0
    assert [line.paused for line in scene.told().blobs] == ["rollout first"]
    rollout("second", "running")
    assert scene.run(2.0) > 0


def test_hours_of_the_config_are_checked(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("[delivery]\nmb_per_day = 5\nhours = [[22, 6]]\n")
    assert read_settings(tmp_path / CONFIG).delivery.hours == ((22, 6),)
    (tmp_path / CONFIG).write_text("[delivery]\nhours = [[25, 6]]\n")
    with pytest.raises(InputError, match="no interval of hours"):
        read_settings(tmp_path / CONFIG)
