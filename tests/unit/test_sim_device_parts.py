"""What a virtual device is made of: its flash, its chunk port, its fetching, its outbox."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract import topics, transfer
from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, open_table, table_of
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Report, encode
from jetfleet_contract.policy import worth_measuring
from jetfleet_contract.slot_records import Progress, Slot
from jetfleet_host.bundles import open_bundle
from jetfleet_host.sim.chunk_port import ChunkPort, PortCounts, flipped
from jetfleet_host.sim.disk import Cut, Disk
from jetfleet_host.sim.faults import ChunkFaults
from jetfleet_host.sim.inference import CLASSES, ModelTraits, trial_numbers, window_series
from jetfleet_host.sim.outbox import Outbox
from jetfleet_host.sim.rehearsal_bundles import make_bundle
from jetfleet_host.sim.transfers import SharedBytes, TransferCounts, Transfers, is_chunk

DEVICE = "sim-0001"


# --- disk -----------------------------------------------------------------------------------------------------


def test_a_blow_strikes_once_before_or_after_the_write() -> None:
    disk = Disk()
    disk.put("board", b"old")
    disk.blow = "before"
    with pytest.raises(Cut):
        disk.put("board", b"new")
    assert disk.get("board") == b"old"
    disk.blow = "after"
    with pytest.raises(Cut):
        disk.put("board", b"new")
    assert disk.get("board") == b"new"
    disk.put("board", b"newer")
    assert disk.get("board") == b"newer"


@given(st.integers(0, 1000), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_a_power_cut_takes_only_what_was_not_synced(seed: int, early: set[int], late: set[int]) -> None:
    disk, blob = Disk(), "a" * 64
    whole = {index: bytes([index + 1]) * 100 for index in early | late}
    for index in early:
        disk.write_chunk(blob, index, whole[index])
    disk.sync(blob)
    for index in late - early:
        disk.write_chunk(blob, index, whole[index])
    suffered = disk.lose_power(random.Random(seed))
    held = disk.parts.get(blob, {})
    assert all(held[index] == whole[index] for index in early)
    hurt = [index for index in late - early if held.get(index) != whole[index]]
    assert len(hurt) == suffered


# --- chunk port -----------------------------------------------------------------------------------------------


class PortRig:
    """A port whose clock is pushed by hand."""

    def __init__(self, faults: ChunkFaults, seed: int = 1) -> None:
        self.passed: list[bytes] = []
        self.timers: list[Callable[[], None]] = []
        self.counts = PortCounts()
        self.port = ChunkPort(faults, random.Random(seed), self.counts, lambda _topic, payload: self.passed.append(payload),
                              lambda _seconds, work: self.timers.append(work))

    def send(self, count: int) -> list[bytes]:
        sent = [transfer.encode_chunk(1, index, bytes([index % 256]) * 50) for index in range(count)]
        for payload in sent:
            self.port.take("t", payload)
        for work in self.timers:
            work()
        return sent


def test_an_undisturbed_port_passes_everything_in_order() -> None:
    rig = PortRig(ChunkFaults())
    assert rig.passed == rig.send(50)


@given(st.integers(0, 10_000))
def test_every_chunk_at_the_port_is_accounted_for(seed: int) -> None:
    rig = PortRig(ChunkFaults(loss=0.2, duplicate=0.2, reorder=0.3, corrupt=0.1), seed)
    rig.send(200)
    rig.port.close()
    counts = rig.counts
    assert counts.arrived + counts.doubled == counts.lost + counts.passed + counts.forgotten
    assert counts.passed == len(rig.passed)


def test_each_kind_happens_about_as_often_as_asked() -> None:
    rig = PortRig(ChunkFaults(loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1))
    sent = rig.send(5000)
    counts = rig.counts
    assert counts.lost == pytest.approx(500, rel=0.2)
    assert counts.corrupted == pytest.approx(450, rel=0.2)
    assert counts.doubled == pytest.approx(400, rel=0.25)
    assert counts.delayed > 200
    assert len([one for one in rig.passed if one not in set(sent)]) == pytest.approx(counts.corrupted, rel=0.2)


@given(st.binary(min_size=9, max_size=300), st.integers(0, 1000))
def test_damage_is_one_bit_of_the_data(payload: bytes, seed: int) -> None:
    damaged = flipped(payload, random.Random(seed))
    assert damaged[:8] == payload[:8]
    difference = int.from_bytes(damaged, "big") ^ int.from_bytes(payload, "big")
    assert difference.bit_count() == 1


# --- transfers ------------------------------------------------------------------------------------------------


class WireRig:
    """A device's transfers over a link that a test plays the host of."""

    connected = True

    def __init__(self) -> None:
        self.disk = Disk()
        self.counts = TransferCounts()
        self.now = 0.0
        self.wants: list[tuple[str, bytes]] = []
        self.topics: set[str] = set()
        self.done: list[str] = []
        self.failed: list[str] = []
        self.shared = SharedBytes()
        self.transfers = self.fresh()

    def fresh(self) -> Transfers:
        def failed(_blob: str, error: JetfleetError) -> None:
            self.failed.append(error.code)

        return Transfers(self.disk, self, DEVICE, self.shared, self.counts, random.Random(1), lambda: self.now, self.done.append, failed)

    def subscribe(self, topic: str, qos: int) -> None:
        self.topics.add(topic)

    def unsubscribe(self, topic: str) -> None:
        self.topics.discard(topic)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> None:
        self.wants.append((topic, payload))

    def chunk(self, blob: str, index: int, data: bytes) -> None:
        self.transfers.on_chunk(topics.chunk(blob), transfer.encode_chunk(1, index, data))


def cut(data: bytes) -> tuple[str, BlobInfo, list[bytes], list[tuple[str, bytes]]]:
    parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    tabled = table_of(parts)
    return tabled.blob, tabled.info, parts, list(tabled.pages)


def test_a_blob_comes_by_its_table_and_damage_is_refused() -> None:
    rig = WireRig()
    blob, info, parts, pages = cut(random.Random(1).randbytes(3 * CHUNK_BYTES + 7))
    rig.transfers.want(blob, info)
    assert topics.chunk(pages[0][0]) in rig.topics
    assert topics.chunk(blob) not in rig.topics
    rig.chunk(pages[0][0], 0, pages[0][1])
    assert {topics.chunk(blob), topics.blob_round(blob), topics.unicast(blob, DEVICE)} == rig.topics
    rig.chunk(blob, 0, flipped(transfer.encode_chunk(1, 0, parts[0]), random.Random(1))[8:])
    for index in (1, 0, 0, 3):
        rig.chunk(blob, index, parts[index])
    assert rig.done == []
    rig.chunk(blob, 2, parts[2])
    assert rig.done == [blob]
    assert hashlib.sha256(rig.disk.blobs[blob]).hexdigest() == blob
    assert (rig.counts.stored, rig.counts.spoiled, rig.counts.repeated) == (5, 1, 1)
    assert not rig.transfers.busy
    assert rig.topics == set()


def test_a_mark_moves_the_device_to_another_lane_and_its_own_topic_brings_chunks_too() -> None:
    rig = WireRig()
    blob, info, parts, pages = cut(random.Random(5).randbytes(2 * CHUNK_BYTES))
    rig.transfers.want(blob, info)
    rig.chunk(pages[0][0], 0, pages[0][1])
    move = transfer.RoundMark(1, 1, "move", 2, lane=3)
    rig.transfers.on_mark(topics.blob_round(blob), encode(move))
    assert {topics.chunk(blob, 3), topics.blob_round(blob, 3), topics.unicast(blob, DEVICE)} == rig.topics
    own = topics.unicast(blob, DEVICE)
    payload = transfer.encode_chunk(1, 0, parts[0])
    assert is_chunk(own, payload)
    assert not is_chunk(own, transfer.encode_own_mark(move))
    rig.transfers.on_chunk(own, payload)
    rig.transfers.on_chunk(topics.chunk(blob, 3), transfer.encode_chunk(1, 1, parts[1]))
    assert rig.done == [blob]


def test_after_a_power_cut_only_what_is_gone_is_asked_for() -> None:
    rig = WireRig()
    blob, info, parts, pages = cut(random.Random(2).randbytes(40 * CHUNK_BYTES))
    rig.transfers.want(blob, info)
    rig.chunk(pages[0][0], 0, pages[0][1])
    for index in range(30):
        rig.chunk(blob, index, parts[index])
    rig.disk.lose_power(random.Random(3))
    rig.transfers = rig.fresh()
    rig.wants.clear()
    rig.transfers.want(blob, info)
    rig.now = 1.0
    rig.transfers.tick()
    table = open_table(blob, info, [pages[0][1]])
    held = {index for index, data in rig.disk.parts[blob].items() if table.matches(index, data)}
    assert held >= set(range(16))  # the first 16 were synced
    want = transfer.decode_want(rig.wants[-1][1], table.count)
    assert set(want.missing) == set(range(40)) - held


def test_what_nobody_wants_any_more_is_let_go_with_its_table() -> None:
    rig = WireRig()
    blob, info, _, _ = cut(random.Random(4).randbytes(2 * CHUNK_BYTES))
    rig.transfers.want(blob, info)
    rig.transfers.cancel_except(set())
    assert not rig.transfers.busy
    assert rig.topics == set()


# --- outbox ---------------------------------------------------------------------------------------------------


def outbox(disk: Disk, session: int, born: list[Report]) -> Outbox:
    return Outbox(disk, DEVICE, session, lambda report: str(report.id).encode(), lambda: 0.5, born.append)


COMMITTED = Progress(3, "keeping", "b" * 64, "2", "1", "committed")


def test_an_outcome_outlives_a_kill_until_it_is_acknowledged() -> None:
    disk = Disk()
    born: list[Report] = []
    first = outbox(disk, 1, born)
    first.add("camera", Progress(3, "fetching"), 0.0)
    first.add("camera", COMMITTED, 0.0)
    first.add("camera", COMMITTED, 0.0)
    assert [report.id for report in born] == [1_000_002]
    second = outbox(disk, 2, born)
    assert second.due(0.0) == [b"1000002"]
    assert second.due(0.0) == []
    second.acknowledged(1_000_002)
    third = outbox(disk, 3, born)
    third.add("camera", COMMITTED, 0.0)
    assert len(third) == 0


def test_a_kill_at_the_write_leaves_it_told_or_untold_never_half() -> None:
    for blow, kept in (("before", 0), ("after", 1)):
        disk = Disk()
        born: list[Report] = []
        first = outbox(disk, 1, born)
        disk.blow = blow  # type: ignore[assignment]
        with pytest.raises(Cut):
            first.add("camera", COMMITTED, 0.0)
        assert born == []
        assert len(outbox(disk, 2, born)) == kept
        assert len(born) == kept


# --- boards and bundles ---------------------------------------------------------------------------------------


def test_a_board_fetches_one_variant_of_a_made_up_bundle(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path, "1", 5000, 7))
    for board in CLASSES:
        able = worth_measuring(bundle.spec, bundle.evaluation, board.capability)
        assert [one.backend for one in able] == [board.backend]
    assert {variant.size for variant in bundle.spec.variants} == {5000}


def test_made_up_bundles_follow_from_the_seed(tmp_path: Path) -> None:
    digests = [open_bundle(make_bundle(tmp_path / str(number), "1", 5000, seed)).manifest_digest for number, seed in enumerate((7, 7, 8))]
    assert digests[0] == digests[1] != digests[2]


def test_a_slower_version_is_seen_by_the_trial_and_in_the_windows() -> None:
    draws, board = random.Random(1), CLASSES[0]
    numbers = trial_numbers(board, ModelTraits(), ModelTraits(latency=3.0), 200, draws)
    assert numbers.challenger_p99_ms / numbers.champion_p99_ms == pytest.approx(3.0, rel=0.2)
    old, new = (window_series(board, traits, "camera", Slot("b" * 64), 30.0, 10.0, draws) for traits in (ModelTraits(), ModelTraits(3.0)))
    assert new.stages["total"].quantile(0.5) / old.stages["total"].quantile(0.5) == pytest.approx(3.0, rel=0.2)
    for series in (old, new):
        assert series.seen == series.done + sum(series.dropped.values())
        assert all(sketch.is_consistent() for sketch in series.stages.values())
