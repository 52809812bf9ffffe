"""Real processes on two sides of a wire that is cut, slow or lossy: a half-open link is noticed, and only the rest is sent again."""

from __future__ import annotations

from pathlib import Path

import pytest
from brokers import until
from process_site import SIZE, WiredSite, wired_site

HEADROOM = 1.25  # of TCP, IP and MQTT, of telemetry, and of segments that a cut makes TCP send again


def notices(site: WiredSite) -> None:
    """The board's link is down though nothing told its TCP: only the keep-alive of five seconds can."""
    until(lambda: "Keep alive timeout" in site.agent.said(), f"the board to notice: {site.agent.said()[-2000:]}", 60)


@pytest.mark.timeout(300)
def test_a_wire_that_is_cut_is_noticed_and_only_the_rest_is_sent_again(tmp_path: Path) -> None:
    with wired_site(tmp_path) as site:
        site.begin()
        site.crossed(0.5)
        site.wire.cut()
        notices(site)
        site.wire.mend()
        before = site.wire.host.sent()
        site.arrives()
        assert site.wire.host.sent() - before <= SIZE * 0.6 * HEADROOM


@pytest.mark.timeout(300)
def test_a_wire_that_is_cut_for_eight_seconds(tmp_path: Path) -> None:
    with wired_site(tmp_path) as site:
        site.begin()
        site.crossed(0.4)
        site.wire.cut()
        _pass(8)
        site.wire.mend()
        site.arrives()
        assert site.wire.host.sent() <= SIZE * 1.5 * HEADROOM


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_partition_of_a_minute(tmp_path: Path) -> None:
    with wired_site(tmp_path) as site:
        site.begin()
        site.crossed(0.5)
        site.wire.cut()
        notices(site)
        _pass(60)
        before = site.wire.host.sent()
        site.wire.mend()
        site.arrives()
        assert site.wire.host.sent() - before <= SIZE * 0.6 * HEADROOM


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("size", "delay_s", "loss"), [(50_000_000, 0.1, 0.02), (1_000_000, 0.3, 0.2)],
                         ids=["50MB-2%-100ms", "1MB-20%-300ms"])
def test_a_slow_and_lossy_wire(tmp_path: Path, size: int, delay_s: float, loss: float) -> None:
    with wired_site(tmp_path, size=size, rate_mbit_s=0) as site:
        site.wire.shape(delay_s=delay_s, loss=loss, back_loss=loss / 4)
        site.begin()
        site.arrives(400)
        assert site.wire.host.sent() <= size * (1.1 + 2 * loss) * HEADROOM + 200_000


def _pass(seconds: float) -> None:
    """Nothing can be waited for here but time itself."""
    from threading import Event

    Event().wait(seconds)
