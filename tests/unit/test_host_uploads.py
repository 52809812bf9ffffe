"""The host's side of uploads with a simulated link and clock: restarts, full disks, repeats, expiry, too many at once, two-level tables."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from brokers import until

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics, transfer, uploads
from jetfleet_contract.chunks import BlobInfo, Tabled, chunk_count, table_of
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import Instant, encode
from jetfleet_contract.uploads import DAY_S, Bounds, Offer, Verdict
from jetfleet_host.collector import Incoming
from jetfleet_host.signing import verify_device
from jetfleet_host.store import uploads as rows
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device
from jetfleet_host.upload_files import UploadFiles, UploadPart
from jetfleet_host.uploads import MAX_JOBS_A_DEVICE, Uploads

DEVICE = "gate-1"
WALL = 1_800_000_000.0
CHUNK = 1024
BOUNDS = Bounds({"engine": 1 << 20}, 4 << 20, ("engine",))


class Link:
    connected = True

    def __init__(self) -> None:
        self.subscribed: set[str] = set()
        self.said: list[tuple[str, bytes]] = []

    def subscribe(self, topic: str, qos: int) -> None:
        self.subscribed.add(topic)

    def unsubscribe(self, topic: str) -> None:
        self.subscribed.discard(topic)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        self.said.append((topic, payload))
        return True


class Bench:
    """Host uploads on a database and a folder, and a board that answers each want with up to `gives` chunks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identity = Identity.load_or_create(folder / "identity")
        self.database = Database.open(f"sqlite:///{folder / 'fleet.db'}")
        with self.database.session() as session:
            if session.get(Device, DEVICE) is None:
                session.add(Device(device=DEVICE, key=self.identity.public_hex, first_seen=WALL, last_seen=WALL))
        self.mono = 100.0
        self.wall = WALL
        self.blobs: dict[str, tuple[bytes, BlobInfo]] = {}
        self.gives = 1 << 20
        self.sent = 0
        self.start()

    def start(self) -> None:
        self.link = Link()
        self.uploads = Uploads(self.database, self.link, UploadFiles(self.folder / "uploads"), verify_device, encode, BOUNDS)
        self.uploads.restore(self.now())

    def restart(self) -> None:
        self.uploads.close()
        self.start()

    def now(self) -> Instant:
        return Instant(self.mono, "boot", self.wall, wall_trusted=True)

    def make(self, size: int, seed: int = 1) -> tuple[Tabled, bytes]:
        data = random.Random(seed).randbytes(size)
        tabled = table_of((data[at : at + CHUNK] for at in range(0, size, CHUNK)), CHUNK)
        self.blobs[tabled.blob] = data, tabled.info
        self.blobs |= {page: (body, BlobInfo(len(body))) for page, body in tabled.pages}
        return tabled, data

    def offer(self, tabled: Tabled, number: int = 7, **changes: object) -> Offer:
        offer = msgspec.structs.replace(Offer(DEVICE, number, tabled.blob, "engine", "x.plan", tabled.info, self.wall + 600), **changes)
        envelope = self.identity.sign("offer", offer)
        self.uploads.on_offer(Incoming(topics.offer(DEVICE), envelope, self.wall), self.now())
        return offer

    def turn(self) -> bool:
        """One look of the host at the time, and the board's answers to what it asked."""
        self.mono += 0.05
        self.uploads.tick(self.now())
        for topic, payload in self.link.said[:]:
            if not uploads.is_want(payload):
                continue
            self.link.said.remove((topic, payload))
            self._answer(topic.rsplit("/", 1)[-1], payload)
        return False

    def _answer(self, blob: str, payload: bytes) -> None:
        data, info = self.blobs[blob]
        want = transfer.decode_want(payload, chunk_count(info.size, info.chunk_size))
        for index in list(want.missing)[: self.gives]:
            part = uploads.encode_part(1, index, data[index * info.chunk_size : (index + 1) * info.chunk_size])
            self.sent += len(part)
            self.uploads.on_part(topics.upload(DEVICE, blob), part, self.now())

    def verdicts(self) -> list[Verdict]:
        return [msgspec.json.decode(payload, type=Verdict) for _, payload in self.link.said if not uploads.is_want(payload)]

    def until_verdict(self) -> Verdict:
        until(lambda: self.turn() or self.verdicts(), "a verdict", 30)
        return self.verdicts()[-1]

    def states(self) -> list[tuple[str, str]]:
        with self.database.reading() as session:
            return [(row.state, row.code) for row in rows.newest(session, DEVICE, 1000)]

    def path(self, blob: str) -> Path:
        return self.folder / "uploads" / DEVICE / blob


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    with closing(made.database):
        yield made
        made.uploads.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 600_001])
def test_every_shape_of_table_arrives(bench: Bench, size: int) -> None:
    tabled, data = bench.make(size)
    bench.offer(tabled)
    assert bench.until_verdict() == Verdict(DEVICE, 7, tabled.blob)
    assert bench.path(tabled.blob).read_bytes() == data
    assert bench.states() == [("stored", "")]
    assert bench.link.subscribed == set()
    assert len(tabled.pages) == (0 if size <= CHUNK else 1 if size <= CHUNK * 256 else 4)


def test_a_restart_goes_on_with_what_is_there(bench: Bench) -> None:
    tabled, data = bench.make(600_001)
    bench.gives = 40
    bench.offer(tabled)
    until(lambda: bench.turn() or bench.sent > 250_000, "a part", 30)
    sent = bench.sent
    bench.gives = 1 << 20
    bench.restart()  # nobody offers again: the row is enough
    bench.until_verdict()
    assert bench.path(tabled.blob).read_bytes() == data
    assert bench.sent - sent < 600_001 - 200_000


def test_a_full_disk_puts_it_aside_until_it_is_offered_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tabled, data = bench.make(300_000)
    full = StorageError("store.full", "no space")

    def refuse(*_: object) -> bool:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(UploadPart, "write", refuse)
        bench.offer(tabled)
        until(lambda: bench.turn() or (bench.sent > 0 and not bench.uploads._jobs), "it to be put aside", 30)
    assert bench.states() == [("receiving", "")]
    assert not bench.verdicts(), "the board keeps it"
    bench.offer(tabled)
    assert bench.until_verdict().code == ""
    assert bench.path(tabled.blob).read_bytes() == data


def test_a_disk_without_room_lets_nothing_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadFiles, "room", lambda _self, _size: False)
    bench.offer(bench.make(1000)[0])
    assert (bench.states(), bench.verdicts()) == ([], [])


def test_a_repeat_gets_the_same_verdict_and_another_blob_under_its_number_none(bench: Bench) -> None:
    tabled, _ = bench.make(5000)
    bench.offer(tabled)
    bench.until_verdict()
    sent = bench.sent
    bench.link.said.clear()
    bench.offer(tabled)
    assert [verdict.code for verdict in bench.verdicts()] == [""]
    other, _ = bench.make(5001, seed=2)
    bench.offer(other)
    assert bench.verdicts()[-1].code == "upload.repeated"
    refused = bench.offer(bench.make(2 << 20, seed=3)[0], 8)
    bench.offer(bench.make(2 << 20, seed=3)[0], 8)
    assert [(verdict.id, verdict.code) for verdict in bench.verdicts()[-2:]] == [(refused.id, "upload.large")] * 2
    assert bench.sent == sent


def test_what_does_not_come_in_time_is_given_up_and_swept(bench: Bench) -> None:
    tabled, _ = bench.make(300_000)
    bench.gives = 5
    bench.offer(tabled)
    until(lambda: bench.turn() or bench.sent > 30_000, "a part", 30)
    bench.gives = 0
    bench.wall += 601
    assert bench.until_verdict().code == "upload.expired"
    assert bench.states() == [("refused", "upload.expired")]
    assert list(bench.path(tabled.blob).parent.iterdir()) == []


def test_too_many_at_once_wait_and_the_same_blob_is_not_fetched_twice(bench: Bench) -> None:
    bench.gives = 0
    offered = [bench.make(5000, seed)[0] for seed in range(MAX_JOBS_A_DEVICE + 1)]
    for number, tabled in enumerate(offered, 1):
        bench.offer(tabled, number)
    assert len(bench.states()) == MAX_JOBS_A_DEVICE
    bench.gives = 1 << 20
    until(lambda: bench.turn() or len(bench.verdicts()) == MAX_JOBS_A_DEVICE, "the first ones", 30)
    bench.gives = 0
    bench.offer(offered[-1], 90)
    bench.offer(offered[-1], 91)
    assert len(bench.uploads._jobs) == 1
    bench.gives = 1 << 20
    until(lambda: bench.turn() or len(bench.verdicts()) == MAX_JOBS_A_DEVICE + 1, "the last one", 30)
    sent = bench.sent
    bench.offer(offered[-1], 91)
    assert bench.verdicts()[-1] == Verdict(DEVICE, 91, offered[-1].blob)
    assert bench.sent == sent


def test_the_quota_is_of_a_day(bench: Bench) -> None:
    for number in range(1, 5):
        bench.offer(bench.make((1 << 20) - number, number)[0], number)
        until(lambda: bench.turn() or len(bench.verdicts()) == number, "each", 30)  # noqa: B023 - used at once
    bench.offer(bench.make(1000, 9)[0], 9)
    assert bench.verdicts()[-1].code == "upload.quota"
    bench.wall += DAY_S + 1
    bench.offer(bench.make(1001, 10)[0], 10)
    until(lambda: bench.turn() or bench.verdicts()[-1].id == 10, "the next day's", 30)
    assert bench.verdicts()[-1].code == ""


def test_a_flood_of_refusals_does_not_fill_the_database(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KEEP_REFUSED", 10)
    blob = hashlib.sha256(b"x").hexdigest()
    for number in range(1, 40):
        bench.offer(Tabled(blob, BlobInfo(1), ()), number, kind="logs")
    assert bench.states() == [("refused", "upload.unasked")] * 10


def test_a_board_that_nobody_knows_is_counted(bench: Bench) -> None:
    with bench.database.session() as session:
        session.delete(session.get_one(Device, DEVICE))
    bench.offer(bench.make(10)[0])
    assert (bench.states(), bench.verdicts()) == ([], [])
