"""A board's delivery policy over real brokers: bytes a day to the last chunk, hours, and going on by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import BROKERS, running, until
from delivery_rig import SIZE, Board, Site, everybody_has_it, now

from jetfleet_contract.budgets import DAY_S, HOUR_S
from jetfleet_contract.chunks import CHUNK_BYTES
from jetfleet_contract.messages import DeliveryPolicy

COUNT = SIZE // CHUNK_BYTES + 1


@pytest.fixture(params=BROKERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with running(request.param) as broker:
        site = Site(broker, tmp_path)
        yield site
        site.close()


def metered(site: Site, name: str, policy: DeliveryPolicy) -> tuple[Board, list[str]]:
    """A board whose app has a policy; the codes of what it waits for."""
    board, codes = site.board(name), []

    def assign() -> None:
        board.fetcher.meter.on_held = lambda _blob, code, _why: codes.append(code)
        board.fetcher.meter.assign("reader", policy, (site.blob,))

    board.posted.put(assign)
    return board, codes


def test_a_metered_board_takes_its_day_s_bytes_and_goes_on_the_next_day(site: Site) -> None:
    host = site.host()
    board, codes = metered(site, "metered", DeliveryPolicy(bytes_per_day=40 * CHUNK_BYTES))
    free = site.board("free")
    for each in (free, board):
        each.want(site.blob, site.info)
    everybody_has_it(site, [free])
    until(lambda: codes == ["delivery.day-budget"], "the day's end")
    assert 30 <= board.chunks <= 41
    assert not board.done
    before = board.chunks
    board.posted.put(lambda: setattr(board, "ahead_s", DAY_S))
    everybody_has_it(site, [board])
    assert board.chunks - before <= COUNT - 38
    assert host.distributor.stats.blobs[site.blob].payload_bytes <= 2.1 * SIZE


def test_outside_its_hours_nothing_is_asked_for(site: Site) -> None:
    host = site.host()
    hour = int(now().wall % DAY_S // HOUR_S)
    later = ((hour + 2) % 24, (hour + 4) % 24)
    board, codes = metered(site, "nightly", DeliveryPolicy(hours=(later,)))
    board.want(site.blob, site.info)
    until(lambda: codes == ["delivery.hours"], "the hours")
    assert (board.chunks, host.distributor.stats.published_bytes) == (0, 0)
    board.posted.put(lambda: setattr(board, "ahead_s", 2 * HOUR_S))
    everybody_has_it(site, [board])


def test_what_came_is_told_apart(site: Site) -> None:
    site.host()
    boards = [site.board(f"b{n}") for n in range(2)]
    for board in boards:
        board.want(site.blob, site.info)
    everybody_has_it(site, boards)
    for board in boards:
        traffic = board.fetcher.meter.take(site.blob)
        assert traffic.useful == SIZE + COUNT * 32  # with the page of its chunk table
        assert traffic.received >= traffic.useful
        assert traffic.mirror == 0
