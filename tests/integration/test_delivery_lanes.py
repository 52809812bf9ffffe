"""Who pays for whose chunks, over real brokers: late joiners, slow readers, forged messages to one board alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import BROKERS, running, until
from delivery_rig import SIZE, Site, content, everybody_has_it, holds

from jetfleet_contract import topics
from jetfleet_contract.chunks import CHUNK_BYTES
from jetfleet_contract.transfer import RoundMark, encode_chunk, encode_own_mark
from jetfleet_host.delivery import DeliverySettings

SLOW = DeliverySettings(rate_bytes_s=3e6, floor_bytes_s=3e6, burst_bytes=128 << 10)
COUNT = SIZE // CHUNK_BYTES + 1


@pytest.fixture(params=BROKERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with running(request.param) as broker:
        site = Site(broker, tmp_path)
        yield site
        site.close()


def test_a_board_that_is_nearly_done_does_not_pay_for_a_late_joiner(site: Site) -> None:
    host, early = site.host(SLOW), site.board("early")
    early.want(site.blob, site.info)
    until(lambda: early.progress() > SIZE * 0.7, "most of the blob")
    late = site.board("late")
    late.want(site.blob, site.info)
    everybody_has_it(site, [early, late])
    assert early.chunks <= COUNT + 8
    stats = host.distributor.stats.blobs[site.blob]
    assert stats.payload_bytes <= SIZE * 2
    assert sum(board.chunks for board in (early, late)) <= COUNT * 2 + 16


def test_a_slow_reader_is_left_behind_and_served_at_its_own_pace(site: Site) -> None:
    data = content(1200 * 2048, seed=9)
    blob, info = site.blobs.add(data, 2048)

    def slowly(_payload: bytes) -> bool:
        time.sleep(0.01)
        return False

    host = site.host(DeliverySettings(rate_bytes_s=2e6, floor_bytes_s=2e6, burst_bytes=64 << 10))
    quick, slow = [site.board(f"b{n}") for n in range(3)], site.board("slow", slowly)
    for board in (*quick, slow):
        for page in site.blobs.pages[blob]:
            board.store.put_bytes(page, site.blobs.blobs[page])
        board.want(blob, info)
    until(lambda: all(blob in board.done for board in quick), "the quick ones", 60)
    assert slow.progress() < len(data) * 0.9
    until(lambda: blob in slow.done, "the slow one", 120)
    assert all(holds(board, blob) for board in (*quick, slow))
    assert all(board.chunks <= 1200 * 1.1 for board in quick)
    assert slow.chunks <= 1200 * 1.5
    assert host.distributor.stats.blobs[blob].payload_bytes <= 2.2 * len(data)


def test_forged_messages_to_one_board_change_nothing(site: Site) -> None:
    site.host(SLOW)
    board, other, liar = site.board("b0"), site.board("b1"), site.board("liar")
    for wanting in (board, other):
        wanting.want(site.blob, site.info)
    until(lambda: site.blob in board.fetcher.progress and board.progress() > 0, "the transfer to run")
    own = topics.unicast(site.blob, "b0")
    for index in range(20, 40):
        liar.link.publish(own, encode_chunk(1, index, b"\xee" * CHUNK_BYTES))
    liar.link.publish(own, encode_chunk(1, 1 << 31, b"\xee"))
    liar.link.publish(own, encode_chunk(1, 0xFFFFFFFF, b"\xff\xfe"))
    liar.link.publish(own, encode_chunk(7, 3, b"\xee" * (CHUNK_BYTES + 9)))
    liar.link.publish(own, b"\0\0")
    liar.link.publish(own, encode_own_mark(RoundMark(9, 4, "end", 0)))
    liar.link.publish(topics.unicast(site.blob, "b1"), encode_chunk(1, 5, site.data[5 * CHUNK_BYTES : 6 * CHUNK_BYTES]))
    everybody_has_it(site, [board, other])


def test_a_move_to_a_lane_that_does_not_exist_costs_a_silence_and_no_more(site: Site) -> None:
    """A forged mark sends a board where nobody publishes: it asks there, and is served there."""
    host, board, liar = site.host(SLOW), site.board("b0"), site.board("liar")
    board.want(site.blob, site.info)
    until(lambda: site.blob in board.fetcher.progress and board.progress() > 0, "the transfer to run")
    liar.link.publish(topics.blob_round(site.blob), b'{"round":1,"mark":0,"kind":"move","chunks":0,"lane":5}')
    liar.link.publish(topics.blob_round(site.blob), b'{"round":1,"mark":0,"kind":"move","chunks":0,"lane":900}')
    everybody_has_it(site, [board])
    assert host.distributor.stats.blobs[site.blob].payload_bytes <= SIZE * 1.5
