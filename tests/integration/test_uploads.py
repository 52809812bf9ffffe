"""From a board to the host over real brokers: what was asked for comes whole through every restart, the rest is refused by its code."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import BROKERS, running, until
from served_fleet import ServedFleet, fleet_on
from upload_board import DEVICE, UploadBoard, now

from jetfleet_agent.config import UploadConfig
from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics, uploads
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.uploads import Offer
from jetfleet_host.store import uploads as rows

WAIT_S = 60.0
SIZE = 5_000_000 + 77
SLOW = UploadConfig(rate_kbit_s=12_000)  # 1.5 MB/s: there is time to kill somebody
ENGINES = '\n[uploads]\nunasked = ["engine", "harvest"]\nengine_mb = 8\nharvest_mb = 0\ndevice_mb_per_day = 12\n'


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    with running(request.param) as started:
        yield started


@pytest.fixture
def rig(tmp_path: Path, broker: Any) -> Iterator[ServedFleet]:
    with fleet_on(tmp_path, f"127.0.0.1:{broker.port}") as made:
        config = made.dir / "jetfleet.toml"
        config.write_text(config.read_text().split("[uploads]")[0] + ENGINES)
        made.publish("1")
        made.start()
        yield made


@pytest.fixture
def boards(rig: ServedFleet, tmp_path: Path, broker: Any) -> Iterator[Callable[..., UploadBoard]]:
    made: list[UploadBoard] = []

    def start(settings: UploadConfig | None = None) -> UploadBoard:
        made.append(UploadBoard(tmp_path / "board", rig.root, broker.port, settings, session=len(made) + 1))
        until(lambda: rig.knows(DEVICE) and made[-1].trust.versions, "the board to be known", WAIT_S)
        return made[-1]

    yield start
    for board in made:
        board.kill()


def engine(tmp_path: Path, size: int = SIZE) -> Path:
    path = tmp_path / "engine.plan"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def listed(rig: ServedFleet) -> list[tuple[str, str, str, int]]:
    with rig.reading() as session:
        return [(row.name, row.state, row.code, row.received) for row in rows.newest(session, DEVICE, 100)]


def received(rig: ServedFleet) -> int:
    return max((row[3] for row in listed(rig)), default=0)


def stored(rig: ServedFleet, path: Path) -> Callable[[], bool]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    final = rig.dir / "uploads" / DEVICE / digest
    return lambda: final.is_file() and hashlib.sha256(final.read_bytes()).hexdigest() == digest


def test_a_large_file_arrives_and_is_forgotten_by_the_board(rig: ServedFleet, boards: Callable[..., UploadBoard], tmp_path: Path) -> None:
    board, path = boards(), engine(tmp_path)
    board.do(lambda: board.uploads.offer(path, "engine", "resnet.plan"))
    until(stored(rig, path), "the file", WAIT_S)
    until(lambda: not board.uploads.waiting, "the verdict", WAIT_S)
    assert listed(rig) == [("resnet.plan", "stored", "", SIZE)]
    assert list(board.store.folder.iterdir()) == []
    assert board.uploads.sent_bytes < SIZE * 1.1
    board.do(lambda: board.uploads.offer(path, "engine", "again.plan"))
    until(lambda: listed(rig)[0][:2] == ("again.plan", "stored"), "the same bytes, known by their digest", WAIT_S)
    assert board.uploads.sent_bytes < SIZE * 1.1, "they did not travel twice"


def test_host_board_and_broker_are_killed_on_the_way(rig: ServedFleet, boards: Callable[..., UploadBoard], tmp_path: Path,
                                                     broker: Any) -> None:
    board, path = boards(SLOW), engine(tmp_path)
    board.do(lambda: board.uploads.offer(path, "engine", "resnet.plan"))
    until(lambda: received(rig) > SIZE / 8, "an eighth", WAIT_S)
    rig.kill()
    rig.start()
    until(lambda: received(rig) > SIZE / 3, "a third, after the host's restart", WAIT_S)
    board.kill()
    sent = board.uploads.sent_bytes
    board = boards(SLOW)
    until(lambda: received(rig) > SIZE / 2, "half, after the board's restart", WAIT_S)
    broker.stop()
    broker.start()
    until(stored(rig, path), "the file, after the broker's restart", WAIT_S)
    until(lambda: not board.uploads.waiting, "the verdict", WAIT_S)
    assert sent + board.uploads.sent_bytes < SIZE * 1.6, "what was there did not travel again"
    assert [row[:3] for row in listed(rig)] == [("resnet.plan", "stored", "")]


@pytest.mark.parametrize(("kind", "size", "code"), [
    ("logs", 10, "upload.unasked"),
    ("harvest", 10, "upload.large"),
    ("engine", 9 << 20, "upload.large"),
])
@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
def test_what_may_not_come_is_refused_for_good(rig: ServedFleet, boards: Callable[..., UploadBoard], tmp_path: Path, kind: Any, size: int,
                                               code: str) -> None:
    board, path = boards(), engine(tmp_path, size)
    board.do(lambda: board.uploads.offer(path, kind, "thing"))
    until(lambda: listed(rig), "the judgement", WAIT_S)
    until(lambda: not board.uploads.waiting, "the verdict", WAIT_S)
    assert [row[:3] for row in listed(rig)] == [("thing", "refused", code)]
    assert board.uploads.sent_bytes == 0
    assert list(board.store.folder.iterdir()) == []


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
def test_a_board_has_a_quota_a_day(rig: ServedFleet, boards: Callable[..., UploadBoard], tmp_path: Path) -> None:
    board, first = boards(), engine(tmp_path, 7 << 20)
    board.do(lambda: board.uploads.offer(first, "engine", "one"))
    until(stored(rig, first), "the first", WAIT_S)
    second = engine(tmp_path, 6 << 20)
    board.do(lambda: board.uploads.offer(second, "engine", "two"))
    until(lambda: listed(rig)[0][:3] == ("two", "refused", "upload.quota"), "the refusal", WAIT_S)


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
def test_forged_offers_and_wrong_bytes_change_nothing(rig: ServedFleet, boards: Callable[..., UploadBoard], tmp_path: Path) -> None:
    board = boards()
    blob = hashlib.sha256(b"x").hexdigest()
    good = Offer(DEVICE, 7, blob, "engine", "x", BlobInfo(1), now().wall + 600)
    stranger = Identity.load_or_create(tmp_path / "stranger")

    def say(signer: Identity, offer: Offer) -> None:
        board.link.publish(topics.offer(DEVICE), signer.sign("offer", offer), qos=1)

    say(stranger, good)
    say(board.identity, msgspec.structs.replace(good, name="../../etc/passwd"))
    say(board.identity, msgspec.structs.replace(good, blob="../" + blob[3:]))
    say(board.identity, msgspec.structs.replace(good, device="other-1"))
    say(board.identity, msgspec.structs.replace(good, info=BlobInfo(1 << 30)))
    board.link.publish(topics.offer(DEVICE), board.identity.sign("report", good), qos=1)
    board.link.publish(topics.offer(DEVICE), b"\xff" * 9000, qos=1)
    expected = {"trust.unknown-key", "name.bad", "blob.bad", "upload.device", "table.bad", "trust.type", "message.large"}
    until(lambda: expected <= {e.code for e in rig.events() if e.kind == "rejected"}, "each refusal", WAIT_S)
    assert listed(rig) == []

    say(board.identity, good)  # honest, but what follows is not what it says
    until(lambda: listed(rig), "the offer to be let in", WAIT_S)
    for number in range(200):
        board.link.publish(topics.upload(DEVICE, blob), uploads.encode_part(1, number % 3, b"y"), qos=0)
    until(lambda: [row[:3] for row in listed(rig)] == [("x", "refused", "upload.wrong")], "the end of it", WAIT_S)
    folder = rig.dir / "uploads" / DEVICE
    assert not folder.exists() or list(folder.iterdir()) == []
    assert not (rig.dir.parent / "etc").exists()


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
def test_a_verdict_that_is_not_the_hosts_loses_nothing(rig: ServedFleet, boards: Callable[..., UploadBoard], tmp_path: Path) -> None:
    board, path = boards(UploadConfig(rate_kbit_s=800)), engine(tmp_path, 400_000)
    board.do(lambda: board.uploads.offer(path, "engine", "one"))
    until(lambda: board.store.pending, "the offer", WAIT_S)
    offer = next(iter(board.store.pending.values())).offer
    forged = board.identity.sign("verdict", uploads.Verdict(DEVICE, offer.id, offer.blob))
    board.link.publish(topics.upload_want(DEVICE, offer.blob), forged, qos=1)
    until(lambda: "trust.unknown-key" in board.refused, "the refusal", WAIT_S)
    assert board.store.pending
    until(stored(rig, path), "the file", WAIT_S)
