"""Processes that are really killed in the middle of a transfer: broker, host, board. Only what did not arrive travels again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from brokers import Mosquitto, embedded, mosquitto, until
from process_site import SIZE, WatchedSite, watched_site

from jetfleet_host.brokers import EmbeddedBroker


def broker_of(kind: str) -> AbstractContextManager[Mosquitto | EmbeddedBroker]:
    if kind == "embedded":
        return embedded()
    return mosquitto(persistence=kind == "mosquitto-persistent")


@pytest.fixture(params=["mosquitto", "mosquitto-persistent", "embedded"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WatchedSite]:
    with broker_of(request.param) as broker, watched_site(tmp_path, broker) as made:
        yield made


@pytest.mark.timeout(300)
def test_the_broker_is_killed_and_started_again(site: WatchedSite) -> None:
    site.begin()
    site.travelled(0.4)
    site.broker.stop()  # SIGKILL: both brokers lose what they had in memory
    before = site.onlooker.chunk_bytes
    site.broker.start()
    until(lambda: site.onlooker.connected, "the onlooker's link")
    site.arrives()
    assert site.onlooker.chunk_bytes - before <= SIZE * 0.75
    assert site.fleet.stop() == 0


@pytest.mark.timeout(300)
def test_the_host_is_killed_and_started_again(site: WatchedSite) -> None:
    site.begin()
    site.travelled(0.4)
    site.fleet.kill()
    before = site.onlooker.chunk_bytes
    asked = len(site.onlooker.wanted)
    site.fleet.start()
    site.arrives()
    assert site.onlooker.chunk_bytes - before <= site.bytes_of(max(site.onlooker.wanted[asked:], default=0))
    assert site.onlooker.chunk_bytes - before <= SIZE * 0.75


@pytest.mark.timeout(300)
def test_the_board_is_killed_halfway_and_started_again(site: WatchedSite) -> None:
    site.begin()
    until(lambda: site.bytes_of(min(site.onlooker.wanted, default=SIZE)) < SIZE * 0.7, "the board to say that it has a third", 60)
    site.agent.kill()
    asked = len(site.onlooker.wanted)
    site.agent.start()
    until(lambda: len(site.onlooker.wanted) > asked, "the board to ask for the rest", 60)
    lacking = site.onlooker.wanted[asked]
    before = site.onlooker.chunk_bytes
    assert 0 < lacking <= min(site.onlooker.wanted[:asked])  # what it had said to have was on disk, though nobody wrote a journal
    site.arrives()
    assert site.onlooker.chunk_bytes - before <= site.bytes_of(lacking)
