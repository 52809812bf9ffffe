"""The board's link to its broker, watched: a link whose thread hangs or has died is left behind, and another takes its place.

The control loop beats on while the link's own thread hangs (in a resolver, a TLS library, a driver of the network), so systemd's watchdog
would never see it, and would only know to restart everything, running models included. Here only the link is made anew. What it still had
to send is sent again by those who want it acknowledged, as after any loss of the broker.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Mapping

from jetfleet_contract.broker_limits import BrokerLimits

from .mqtt import MqttLink

log = logging.getLogger(__name__)

STUCK_S = 120.0
"""Longer than any wait that is none of the link's doing: a resolver without a network takes up to a minute, a back-off half of one."""
MAX_STUCK_S = 3600.0
HEALTHY = 10
"""After so many times `STUCK_S` without a hang, the next one is the first again."""
POLL_S = 5.0


class WatchedLink:
    """One link after the other, each made by `make`, with the subscriptions of the one before. `tick` belongs to the control thread, the
    rest may be called from any.

    Args:
        make: a link that is not started.
        down: told why, when a link is given up while it was up.
        clock: monotonic seconds, as `MqttLink.stuck_s` takes them.
        stuck_s: how long a thread may show no progress; twice as long after each hang, for each leaves a thread behind.
    """

    def __init__(self, make: Callable[[], MqttLink], down: Callable[[str], None], clock: Callable[[], float],
                 stuck_s: float = STUCK_S) -> None:
        self._make = make
        self._down = down
        self._clock = clock
        self._least_s = self._limit_s = stuck_s
        self._healthy_from = 0.0
        self._link = make()
        self._started = False
        self._topics: dict[str, int] = {}
        self._refused: collections.Counter[str] = collections.Counter()
        self._hangs = 0

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def backlog(self) -> int:
        """Bytes that wait in the outbox."""
        return self._link.backlog

    @property
    def limits(self) -> BrokerLimits:
        """What the broker takes."""
        return self._link.limits

    @property
    def refused(self) -> Mapping[str, int]:
        """How often what was refused, by stable code."""
        return self._refused + self._link.refused

    @property
    def gauges(self) -> Mapping[str, float]:
        """`link_hangs`: links that were given up since the start."""
        return {"link_hangs": float(self._hangs)}

    def start(self) -> None:
        self._started = True
        self._link.start()

    def stop(self) -> None:
        """Say goodbye; a thread that hangs is not waited for longer than a link's own time."""
        self._started = False
        self._link.stop()

    def subscribe(self, topic: str, qos: int) -> None:
        """Remembered, and made again by every link."""
        self._topics[topic] = qos
        self._link.subscribe(topic, qos)

    def unsubscribe(self, topic: str) -> None:
        self._topics.pop(topic, None)
        self._link.unsubscribe(topic)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        """See `MqttLink.publish`."""
        return self._link.publish(topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)

    def tick(self) -> float:
        """Give up a link that hangs. Seconds until the next call is wanted."""
        if not self._started:
            return POLL_S
        now = self._clock()
        stuck = self._link.stuck_s(now)
        died = not self._link.is_alive and now >= self._healthy_from  # one that dies again and again waits its time like one that hangs
        if died or stuck >= self._limit_s:
            self._replace(stuck, now)
        elif now >= self._healthy_from:
            self._limit_s = self._least_s
        return min(POLL_S, self._least_s)

    def _replace(self, stuck: float, now: float) -> None:
        old = self._link
        reason = f"the link's thread {'hangs' if old.is_alive else 'is dead'}: no progress for {stuck:.0f} s; another takes its place"
        log.warning("%s", reason)
        link = self._make()
        for topic, qos in list(self._topics.items()):
            link.subscribe(topic, qos)
        was_up = old.connected
        old.abandon()
        self._refused += old.refused
        self._link = link
        self._hangs += 1
        self._limit_s = min(2 * self._limit_s, max(MAX_STUCK_S, self._least_s))
        self._healthy_from = now + HEALTHY * self._limit_s
        link.start()
        if was_up:
            self._down(reason)
