"""Crops and answers in the hands of others: forged, replayed, oversized, of another board, and pictures that are bombs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundle_maker import make_bundle
from crop_worlds import DEVICE, NOTE, Wire, deployment, jpeg

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_agent.supervisor.sealing import seal
from jetfleet_contract import topics
from jetfleet_contract.crops import MAX_CROP_BYTES, MAX_JPEG_BYTES, PURPOSE, Answer, Crop, Note, jpeg_size, pack, unpack
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import Instant, encode
from jetfleet_host import signing
from jetfleet_host.collector import Incoming
from jetfleet_host.crop_answers import Answering
from jetfleet_host.crop_keys import CropKeys
from jetfleet_host.crops import CropBounds, Crops
from jetfleet_host.project import Project
from jetfleet_host.publish import publish
from jetfleet_host.store import journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device, Rejected

Change = Callable[[Crop], Crop]


class Host:
    """A host's `Crops` with a real project and database; the model is never asked here."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = Project.init(folder / "fleet")
        self.bundle = make_bundle(folder / "toy.bundle", weight_bytes=2000).removeprefix("sha256:")
        publish(self.project, folder / "toy.bundle")
        self.database = Database.open(self.project.database_url)
        self.boards = {name: Identity.load_or_create(folder / name) for name in (DEVICE, "gate-8")}
        with self.database.session() as session:
            for name, identity in self.boards.items():
                session.add(Device(device=name, key=identity.public_hex, first_seen=1.0, last_seen=1.0))
        monkeypatch.setattr(Answering, "start", lambda _self: None)
        self.wire = Wire()
        self.receiver = CropKeys(self.project.keys_dir).receiver()
        self.crops = Crops(self.project, self.database, self.wire, signing.verify_device, lambda a: signing.sign_answer(self.project, a),
                           CropBounds(60, 64, 1_000_000), lambda: None)
        self.allow("cascade")

    def allow(self, *purposes: Any) -> None:
        with self.database.session() as session:
            made = deployment(*purposes, receiver=self.receiver)
            journal.save_deployment(session, made, b"{}", time.time())

    def crop(self, number: int, *, device: str = DEVICE, signer: str = "", note: Note | None = None, picture: bytes = b"",
             change: Change = lambda crop: crop, kind: str = "crop", plain: bytes = b"") -> bytes:
        note = note or msgspec.structs.replace(NOTE, bundle=self.bundle)
        box = seal(self.receiver, plain or pack(note, picture or jpeg()), device=device, purpose=PURPOSE, name="reader", version=number)
        crop = change(Crop(device, number, "reader", 1.0, True, False, box.enc, box.box))
        return self.boards[signer or device].sign(kind, crop)

    def give(self, body: bytes, device: str = DEVICE, mono: float = 0.0) -> str:
        """The code that it is refused with; empty when it was let in."""
        before = self._codes()
        self.crops._refused.clear()
        self.crops.on_crop(Incoming(topics.crop(device), body, 1.0), Instant(mono, "b", 1.0, True))
        refused = self._codes()[len(before):]
        return refused[0] if refused else ""

    def _codes(self) -> list[str]:
        with self.database.reading() as session:
            return [row.code for row in session.query(Rejected).order_by(Rejected.id)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path, monkeypatch)
    yield made
    made.database.close()


def test_a_good_crop_is_let_in_once(host: Host) -> None:
    body = host.crop(5)
    assert host.give(body) == ""
    assert host.give(body) == "crop.replayed"
    assert host.give(host.crop(4)) == ""  # they may overtake each other
    assert len(host.crops._queue) == 2


def test_forged_crops(host: Host) -> None:
    good = host.crop(1)
    assert host.give(host.crop(1, signer="gate-8")) == "trust.unknown-key"
    assert host.give(good.replace(b'"id":1', b'"id":2')) == "trust.signature"
    assert host.give(host.crop(1, kind="offer")) == "trust.type"
    assert host.give(b"{}") == "message.bad"
    assert host.give(good) == ""


def test_a_crop_of_another_board_app_or_number(host: Host) -> None:
    assert host.give(host.crop(1, device="gate-8", signer="gate-8"), DEVICE) == "trust.unknown-key"
    assert host.give(host.crop(1, change=lambda crop: msgspec.structs.replace(crop, device="gate-8"))) == "crop.device"
    assert host.give(host.crop(1, device="gate-8", signer=DEVICE, change=lambda crop: msgspec.structs.replace(crop, device=DEVICE))) \
        == "crop.sealed"
    assert host.give(host.crop(1, change=lambda crop: msgspec.structs.replace(crop, id=2))) == "crop.sealed"
    assert host.give(host.crop(1, note=msgspec.structs.replace(NOTE, app="other"))) == "crop.bad"
    assert host.give(host.crop(1, change=lambda crop: msgspec.structs.replace(crop, app="other"))) == "crop.not-allowed"
    assert host.give(host.crop(1), "gate-9") == "device.unknown"


def test_crops_that_no_policy_allows(host: Host) -> None:
    host.allow("harvest")
    assert host.give(host.crop(1)) == "crop.not-allowed"  # it asks for an answer, which is another purpose
    host.allow()
    assert host.give(host.crop(2)) == "crop.not-allowed"


def test_oversized_crops_and_numbers(host: Host) -> None:
    assert host.give(b" " * (MAX_CROP_BYTES + 1)) == "crop.large"
    assert host.give(host.crop(1, change=lambda crop: msgspec.structs.replace(crop, box=bytes(70_000)))) == "crop.large"
    assert host.give(host.crop(1, change=lambda crop: msgspec.structs.replace(crop, id=1 << 60))) == "crop.bad"
    assert host.give(host.crop(1, change=lambda crop: msgspec.structs.replace(crop, enc=b"short"))) == "crop.bad"
    note = encode(NOTE)
    long = len(note).to_bytes(2, "big") + note + jpeg() + bytes(MAX_JPEG_BYTES)
    assert host.give(host.crop(1, plain=long)) == "crop.large"
    outside = msgspec.structs.replace(NOTE, window=(0, 0, 65, 24))
    assert host.give(host.crop(1, note=outside)) == "crop.bad"


def test_pictures_that_are_bombs(host: Host) -> None:
    small = bytearray(jpeg())
    at = small.index(b"\xff\xc0")
    small[at + 5:at + 9] = (65_000).to_bytes(2, "big") * 2  # its header promises 4 gigapixels
    assert host.give(host.crop(1, picture=bytes(small))) == "crop.picture"
    small[at + 5:at + 9] = (400).to_bytes(2, "big") * 2  # within bounds, but more than its window
    assert host.give(host.crop(2, picture=bytes(small))) == "crop.picture"
    assert host.give(host.crop(3, picture=b"\x89PNG\r\n\x1a\n" + bytes(90))) == "crop.picture"
    assert host.give(host.crop(4, picture=b"\xff\xd8" + b"\xff" * 90)) == "crop.picture"
    with pytest.raises(MalformedError):
        jpeg_size(b"\xff\xd8\xff\xe0\x00\x01" * 20)


def test_a_board_that_gives_too_many(host: Host) -> None:
    codes = [host.give(host.crop(number)) for number in range(1, 20)]
    assert "crop.rate" in codes
    assert host.give(host.crop(100), mono=3600.0) == ""


def test_a_full_queue_takes_the_boards_own_oldest_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch)
    host.crops._bounds = CropBounds(100_000, 16, 1_000_000)
    for number in range(1, 12):
        host.crops.on_crop(Incoming(topics.crop(DEVICE), host.crop(number), 1.0), Instant(float(number), "b", 1.0, True))
    said = [topic for topic, _ in host.wire.published]
    assert said == [topics.answer(DEVICE)] * 3
    opened = signing.verify_device(host.wire.published[0][1], host.project.repository.load().keys.command[0], "answer", Answer)
    assert (opened.id, opened.code) == (1, "crop.busy")
    host.database.close()


def test_a_sealed_crop_shows_nothing(host: Host) -> None:
    picture = jpeg()
    body = host.crop(1, picture=picture)
    assert picture[200:240] not in body
    assert b"front" not in body
    with pytest.raises(MalformedError):
        unpack(b"\0\0" + picture)
