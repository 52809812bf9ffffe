"""Blobs from a host to boards over real brokers: losses, restarts of every party, forged bytes, full disks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from brokers import BROKERS, running, until
from delivery_rig import SIZE, Site, content, everybody_has_it, holds

from jetfleet_agent.supervisor import store as store_module
from jetfleet_contract import topics
from jetfleet_contract.chunks import CHUNK_BYTES, Bitmap, BlobInfo
from jetfleet_contract.transfer import Want, encode_chunk, encode_want
from jetfleet_host.delivery import DeliverySettings

SLOW = DeliverySettings(rate_bytes_s=3e6, floor_bytes_s=3e6, burst_bytes=128 << 10)
OVERHEAD = 40_000  # the table's page and the headers


@pytest.fixture(params=BROKERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with running(request.param) as broker:
        site = Site(broker, tmp_path)
        yield site
        site.close()


def wait_for(event: threading.Event) -> None:
    event.wait(20)


def test_three_boards_cost_the_host_one_copy(site: Site) -> None:
    host, boards = site.host(), [site.board(f"b{n}") for n in range(3)]
    asked = threading.Event()
    host.posted.put(partial(wait_for, asked))  # on a busy machine boards ask far apart: hear them all before the first round
    for board in boards:
        board.store.put_bytes(site.info.table, site.blobs.blobs[site.info.table])
        board.want(site.blob, site.info)
    until(lambda: host.posted.qsize() >= len(boards), "every board to ask")
    asked.set()
    everybody_has_it(site, boards)
    assert host.distributor.stats.published_bytes <= SIZE * 1.02
    until(lambda: not host.distributor.stats.blobs[site.blob].wanters, "the host to know that all have it")


def a_tenth(seed: int) -> Callable[[bytes], bool]:
    draw = random.Random(seed)
    return lambda _: draw.random() < 0.1


def test_each_loses_a_tenth_of_its_chunks(site: Site) -> None:
    host = site.host()
    boards = [site.board(f"b{n}", a_tenth(n)) for n in range(3)]
    for board in boards:
        board.want(site.blob, site.info)
    everybody_has_it(site, boards)
    assert host.distributor.stats.published_bytes <= SIZE * 2.5  # three copies would be 3.3 blobs
    assert not host.distributor.stats.refused


def test_the_broker_restarts_in_the_middle(site: Site) -> None:
    host, boards = site.host(SLOW), [site.board(f"b{n}") for n in range(2)]
    for board in boards:
        board.want(site.blob, site.info)
    until(lambda: all(board.progress() > SIZE / 4 for board in boards), "a quarter of the blob")
    site.broker.stop()
    stats = host.distributor.stats.blobs[site.blob]
    before, lacked = stats.payload_bytes, sum(SIZE - board.progress() for board in boards)
    until(lambda: all(board.downs for board in boards) and host.link.trouble, "everybody to notice")
    trouble = host.link.trouble
    assert trouble is not None
    assert trouble.code == "broker.down"
    assert str(site.broker.port) in trouble.where
    site.broker.start()
    everybody_has_it(site, boards)
    assert stats.payload_bytes - before <= lacked + 10 * CHUNK_BYTES  # boards come back one by one, each for its own holes


def test_a_board_restarts_in_the_middle_and_gets_only_the_rest(site: Site) -> None:
    host, board = site.host(SLOW), site.board("b0")
    board.want(site.blob, site.info)
    until(lambda: board.progress() > SIZE / 2, "half of the blob")
    site.stop(board)
    again = site.board("b0")
    again.want(site.blob, site.info)
    everybody_has_it(site, [again])
    assert again.chunks <= SIZE / CHUNK_BYTES * 0.6
    assert host.distributor.stats.blobs[site.blob].payload_bytes <= SIZE * 1.6  # it did not say goodbye, so the round went on for a while


def test_the_host_restarts_in_the_middle(site: Site) -> None:
    first, board = site.host(SLOW), site.board("b0")
    board.want(site.blob, site.info)
    until(lambda: board.progress() > SIZE / 2, "half of the blob")
    site.stop(first)
    second = site.host()
    everybody_has_it(site, [board])
    assert second.distributor.stats.blobs[site.blob].payload_bytes <= SIZE * 0.6


def test_a_board_that_comes_late_costs_only_its_holes(site: Site) -> None:
    host, early = site.host(SLOW), site.board("b0")
    early.want(site.blob, site.info)
    until(lambda: early.progress() > SIZE / 3, "a third of the blob")
    late = site.board("b1")
    late.want(site.blob, site.info)
    everybody_has_it(site, [early, late])
    assert host.distributor.stats.blobs[site.blob].payload_bytes < SIZE * 1.95


def test_blobs_of_differing_chunk_sizes_travel_together(site: Site) -> None:
    host, boards = site.host(), [site.board(f"b{n}") for n in range(2)]
    wanted = [(site.blob, site.info), *(site.blobs.add(content(700_001, seed=cut), cut) for cut in (4096, 32768, 262_144))]
    for board in boards:
        for blob, info in wanted:
            board.want(blob, info)
    names = {blob for blob, _ in wanted}
    until(lambda: all(names <= set(board.done) for board in boards), "all of them on every board", 60)
    assert all(holds(board, blob) for board in boards for blob in names)
    assert {blob: host.distributor.stats.blobs[blob].chunk_size for blob in names} == {blob: info.chunk_size for blob, info in wanted}


def test_a_blob_that_is_published_again_with_another_cut_goes_on_from_what_was_received(site: Site) -> None:
    host, board = site.host(SLOW), site.board("b0")
    board.want(site.blob, site.info)
    until(lambda: board.progress() > SIZE / 2, "half of the blob")
    blob, info = site.blobs.add(site.data, 32768)
    assert blob == site.blob
    board.want(blob, info)
    everybody_has_it(site, [board])
    stats = host.distributor.stats.blobs[site.blob]  # of the new cut alone: a slow board asks late, and the old round goes on until then
    assert stats.chunk_size == info.chunk_size
    assert stats.payload_bytes < SIZE * 0.6


def test_forged_chunks_and_marks_change_nothing(site: Site) -> None:
    host, board, liar = site.host(SLOW), site.board("b0"), site.board("liar")
    board.want(site.blob, site.info)
    until(lambda: site.blob in board.fetcher.progress and board.progress() > 0, "the transfer to run")
    for index in range(20, 62):
        liar.link.publish(topics.chunk(site.blob), encode_chunk(1, index, b"\xee" * CHUNK_BYTES))
    liar.link.publish(topics.chunk(site.blob), encode_chunk(1, 1 << 31, b"\xee"))
    liar.link.publish(topics.blob_round(site.blob), b'{"round":1,"mark":0,"kind":"end","chunks":0,"spread_s":1e9}')
    liar.link.publish(topics.blob_round(site.blob), b"\xff\xfe")
    liar.link.publish(topics.want(site.blob, "liar"), b"\0" * 50)
    liar.link.publish(topics.want("0" * 64, "liar"), encode_want(Want(CHUNK_BYTES, Bitmap.full(1))))
    everybody_has_it(site, [board])
    assert {"want.bad", "delivery.unknown"} <= host.distributor.stats.refused.keys()


def test_a_device_may_not_want_what_is_not_its_own(site: Site) -> None:
    host, board = site.host(), site.board("b0")
    host.distributor._allowed = lambda device, blob: device != "b0"
    board.want(site.blob, site.info)
    until(lambda: "delivery.unassigned" in host.distributor.stats.refused, "the refusal")
    assert host.distributor.stats.published_bytes == 0


def test_a_full_disk_is_one_clear_failure_and_is_forgiven_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.host()
    board = site.board("b0")
    monkeypatch.setattr(store_module, "RESERVE_BYTES", 1 << 60)
    board.want(site.blob, site.info)
    until(lambda: board.failed, "the failure")
    blob, error = board.failed.pop()
    assert (blob, error.code) == (site.blob, "store.full")
    assert not board.fetcher.progress
    monkeypatch.undo()
    board.want(site.blob, site.info)
    everybody_has_it(site, [board])


def test_small_and_empty_blobs_and_one_that_is_there_already(site: Site) -> None:
    site.host()
    board = site.board("b0")
    blobs = [site.blobs.add(data) for data in (b"", b"labels", content(CHUNK_BYTES), content(CHUNK_BYTES + 1))]
    for blob, info in blobs:
        board.want(blob, info)
        board.want(blob, info)
    until(lambda: {blob for blob, _ in blobs} <= set(board.done), "all of them")
    assert sorted(board.done) == sorted(blob for blob, _ in blobs)
    board.want(*blobs[1])
    until(lambda: board.done.count(blobs[1][0]) == 2, "the one that is there")


def test_what_is_cancelled_stops_and_resumes_when_wanted_again(site: Site) -> None:
    host, board = site.host(SLOW), site.board("b0")
    board.want(site.blob, site.info)
    until(lambda: board.progress() > SIZE / 4, "a quarter of the blob")
    board.posted.put(lambda: board.fetcher.cancel_except(set()))
    until(lambda: not board.fetcher.progress, "the cancellation")
    board.want(site.blob, site.info)
    everybody_has_it(site, [board])
    assert board.chunks <= SIZE / CHUNK_BYTES * 1.5
    assert host.distributor.stats.blobs[site.blob].payload_bytes <= SIZE * 1.95


def test_an_info_that_lies_about_its_table_is_refused(site: Site) -> None:
    board = site.board("b0")
    board.want(site.blob, BlobInfo(size=SIZE))
    until(lambda: board.faults, "the refusal")
    assert "lacks its chunk table" in str(board.faults.pop())
