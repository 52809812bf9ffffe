"""What a host lets in, what travels, and what a board keeps for it: bounds, names, copies, sweeping."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.recent_log import MAX_LINE, RecentLines
from jetfleet_agent.supervisor import upload_store
from jetfleet_agent.supervisor.upload_store import UploadStore
from jetfleet_contract import uploads
from jetfleet_contract.broker_limits import BrokerLimits, refusal
from jetfleet_contract.chunks import CHUNK_BYTES, MIN_CHUNK_BYTES, BlobInfo
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.topics import upload
from jetfleet_contract.transfer import RoundMark
from jetfleet_contract.uploads import Bounds, Kind, Offer, check_offer, judge
from jetfleet_host.uploads import Gate

WALL = 1_800_000_000.0
BLOB = hashlib.sha256(b"x").hexdigest()
OFFER = Offer("gate-1", 7, BLOB, "engine", "resnet.plan", BlobInfo(1000), WALL + 60)
BOUNDS = Bounds({"engine": 2000, "logs": 100, "harvest": 0}, 3000, ("engine",))


# --- judging --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "asked", "used", "code"), [
    ({}, "", 0, ""),
    ({}, "", 2000, ""),
    ({"expires": 0.0}, "", 0, ""),  # a board that does not know the time
    ({"kind": "logs", "command": 5, "info": BlobInfo(100)}, "logs", 0, ""),
    ({"expires": WALL}, "", 0, "upload.expired"),
    ({"kind": "logs", "info": BlobInfo(100)}, "", 0, "upload.unasked"),
    ({"kind": "logs", "command": 5, "info": BlobInfo(100)}, "restart", 0, "upload.unasked"),
    ({"kind": "logs", "command": 5, "info": BlobInfo(100)}, "snapshot", 0, "upload.unasked"),
    ({"command": 5}, "", 0, "upload.unasked"),  # it names a command that is not open, though the kind is allowed
    ({"kind": "logs", "command": 5, "info": BlobInfo(101)}, "logs", 0, "upload.large"),
    ({"info": BlobInfo(2001)}, "", 0, "upload.large"),
    ({"kind": "snapshot", "command": 5, "info": BlobInfo(1)}, "snapshot", 0, "upload.large"),  # no bound means none of it
    ({}, "", 2001, "upload.quota"),
])
def test_an_offer_is_judged(changes: dict[str, object], asked: str, used: int, code: str) -> None:
    offer = msgspec.structs.replace(OFFER, **changes)
    if not code:
        judge(offer, BOUNDS, asked, used, WALL)
        return
    with pytest.raises(UntrustedError) as caught:
        judge(offer, BOUNDS, asked, used, WALL)
    assert caught.value.code == code


@pytest.mark.parametrize(("changes", "code"), [
    ({"device": "gate-2"}, "upload.device"),
    ({"name": "../x"}, "name.bad"),
    ({"name": "a/b"}, "name.bad"),
    ({"name": ""}, "name.bad"),
    ({"blob": "../../x"}, "blob.bad"),
    ({"info": BlobInfo(1000, table="zz")}, "blob.bad"),
    ({"info": BlobInfo(1 << 30)}, "table.bad"),
    ({"info": BlobInfo(10, table=BLOB)}, "table.bad"),
    ({"info": BlobInfo(-1)}, "blob.size"),
    ({"info": BlobInfo(10, chunk_size=1)}, "blob.chunk-size"),
    ({"info": BlobInfo(1 << 60, table=BLOB)}, "blob.size"),
    ({"id": 0}, "upload.bounds"),
    ({"id": 1 << 60}, "upload.bounds"),
    ({"command": -1}, "upload.bounds"),
    ({"expires": float("nan")}, "upload.bounds"),
    ({"expires": float("inf")}, "upload.bounds"),
])
def test_an_offer_out_of_bounds_is_malformed(changes: dict[str, object], code: str) -> None:
    with pytest.raises(MalformedError) as caught:
        check_offer(msgspec.structs.replace(OFFER, **changes), "gate-1")
    assert caught.value.code == code


def test_parts_are_what_they_were() -> None:
    part = uploads.decode_part(uploads.encode_part(3, 9, b"data"))
    assert isinstance(part, uploads.Part)
    assert (part.round, part.index, bytes(part.data)) == (3, 9, b"data")
    mark = RoundMark(3, 1, "end", 0)
    assert uploads.decode_part(uploads.encode_part_mark(msgspec.json.encode(mark))) == mark
    for bad in (b"", b"\2x", b"{}"):
        with pytest.raises(MalformedError):
            uploads.decode_part(bad)


@given(st.integers(600, 200_000))
def test_chunks_fit_the_brokers_packets(packet: int) -> None:
    limits = BrokerLimits(max_packet_bytes=packet)
    size = uploads.chunk_size_for(limits, "gate-1")
    assert MIN_CHUNK_BYTES <= size <= CHUNK_BYTES
    payload = len(uploads.encode_part(1, 1, bytes(size)))
    assert size == MIN_CHUNK_BYTES or refusal(limits, upload("gate-1", BLOB), payload, qos=0) is None


def test_what_waits_in_the_host_is_bounded() -> None:
    gate = Gate(100)
    assert gate.enter(60)
    assert not gate.enter(41)
    assert gate.enter(40)
    gate.leave(60)
    assert gate.enter(60)


# --- the board's store ----------------------------------------------------------------------------------------


def store(folder: Path, maximum: int = 4, maximum_bytes: int = 1 << 20) -> UploadStore:
    return UploadStore(folder, "gate-1", maximum, maximum_bytes)


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "uploads").iterdir()}


def test_a_copy_outlives_its_source_and_a_restart(tmp_path: Path) -> None:
    source = tmp_path / "engine.plan"
    data = bytes(range(256)) * 1000
    source.write_bytes(data)
    kept = store(tmp_path).add(source, "engine", "resnet.plan", WALL, 3)
    source.unlink()
    again = store(tmp_path)
    assert again.pending == {kept.offer.id: kept}
    blob = kept.offer.blob
    assert (hashlib.sha256(data).hexdigest(), again.info(blob), again.size) == (blob, kept.offer.info, len(data))
    assert b"".join(again.read(blob, at, CHUNK_BYTES) for at in range(0, len(data), CHUNK_BYTES)) == data
    page = kept.pages[0]
    assert (hashlib.sha256(again.read(page, 0, 1 << 16)).hexdigest(), again.info(page)) == (page, BlobInfo(4 * 32))
    again.drop(kept.offer.id)
    again.drop(kept.offer.id)
    assert names(tmp_path) == set()
    assert again.info(blob) is None


def test_two_offers_of_the_same_bytes_share_them(tmp_path: Path) -> None:
    kept = store(tmp_path)
    first, second = (kept.add(b"the same", "logs", name, WALL, command) for name, command in (("a", 1), ("b", 2)))
    assert kept.size == 8
    kept.drop(first.offer.id)
    assert kept.read(second.offer.blob, 0, 100) == b"the same"
    kept.drop(second.offer.id)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("maximum", "maximum_bytes"), [(2, 1 << 20), (9, 25)])
def test_count_and_bytes_are_bounded(tmp_path: Path, maximum: int, maximum_bytes: int) -> None:
    kept = store(tmp_path, maximum, maximum_bytes)
    kept.add(b"0123456789", "logs", "a", WALL)
    kept.add(b"9876543210", "logs", "b", WALL)
    before = names(tmp_path)
    with pytest.raises(StorageError) as caught:
        kept.add(b"0000000000", "logs", "c", WALL)
    assert caught.value.code == "upload.full"
    assert names(tmp_path) == before


def test_what_is_being_copied_counts_too(tmp_path: Path) -> None:
    kept = store(tmp_path, 9, 25)
    entered, go = threading.Event(), threading.Event()

    def copy(*given: Any) -> Any:
        entered.set()
        assert go.wait(30)
        return original(*given)

    original = upload_store._copy
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(upload_store, "_copy", copy)
        first = threading.Thread(target=kept.add, args=(b"0123456789" * 2, "logs", "a", WALL))
        first.start()
        assert entered.wait(30)
        with pytest.raises(StorageError, match="1 uploads of 20 bytes wait"):
            kept.add(b"0123456789", "logs", "b", WALL)
        go.set()
        first.join(30)
    assert (len(kept.pending), kept.size) == (1, 20)
    kept.add(b"01234", "logs", "b", WALL)


def test_no_space_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_store, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageError) as caught:
        store(tmp_path).add(b"x", "logs", "a", WALL)
    assert (caught.value.code, names(tmp_path)) == ("store.full", set())


@pytest.mark.parametrize(("source", "name", "code"), [
    (Path("/no/such/file"), "a", "upload.unreadable"), (b"x", "../a", "name.bad"), (b"x", "A b", "name.bad"),
])
def test_what_cannot_be_offered(tmp_path: Path, source: Path | bytes, name: str, code: str) -> None:
    with pytest.raises(JetfleetError) as caught:
        store(tmp_path).add(source, "logs", name, WALL)
    assert (caught.value.code, names(tmp_path)) == (code, set())


def test_leftovers_and_damage_are_swept(tmp_path: Path) -> None:
    kept = store(tmp_path)
    good = kept.add(b"good", "logs", "a", WALL)
    short = kept.add(b"short", "logs", "b", WALL)
    gone = kept.add(bytes(CHUNK_BYTES * 2), "logs", "c", WALL)
    torn = kept.add(b"torn", "logs", "d", WALL)
    folder = tmp_path / "uploads"
    (folder / short.offer.blob).write_bytes(b"sho")
    (folder / gone.pages[0]).unlink()
    (folder / f"{torn.offer.id}.json").write_bytes(b'{"offer":')
    (folder / ".abc.partial").write_bytes(b"left by a power cut")
    (folder / ("0" * 64)).write_bytes(b"named by nobody")
    assert set(store(tmp_path).pending) == {good.offer.id}
    assert names(tmp_path) == {good.offer.blob, f"{good.offer.id}.json"}


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_every_size_can_be_offered(tmp_path: Path, size: int) -> None:
    kind: Kind = "harvest"
    kept = store(tmp_path).add(bytes(size), kind, "a", WALL)
    assert check_offer(kept.offer, "gate-1").info.size == size
    assert store(tmp_path).pending == {kept.offer.id: kept}


# --- the recent log -------------------------------------------------------------------------------------------


def test_recent_lines_are_bounded_and_without_credentials() -> None:
    recent, log = RecentLines(5), logging.getLogger("test.recent")
    log.setLevel(logging.INFO)
    log.addHandler(recent)
    try:
        for number in range(9):
            log.info("line %d", number)
        log.debug("not this one")
        assert [line.rsplit(" ", 1)[-1] for line in recent.last(3)] == ["6", "7", "8"]
        assert (len(recent.last(100)), recent.last(0)) == (5, [])
        log.warning("rtsp://admin:secret@cam/1 and https://token@host/x")
        log.error("%s", "x" * 10_000 + "\nsecond line")
        lines = recent.last(3)
        assert "secret" not in "".join(lines[:1])
        assert "token" not in lines[0]
        assert "rtsp://***@cam/1 and https://***@host/x" in lines[0]
        assert (len(lines[1]), lines[2]) == (MAX_LINE, "second line")
        logging.raiseExceptions, before = False, logging.raiseExceptions
        log.info("%d", "cannot be formatted")
        logging.raiseExceptions = before
        assert recent.last(1) == ["second line"]
    finally:
        log.removeHandler(recent)
