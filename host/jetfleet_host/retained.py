"""What the broker has to hold for the boards: waits here until the link has taken it, the newest of each topic only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jetfleet_contract.errors import TransportError


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    def refuses(self, topic: str, payload: bytes) -> TransportError | None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class Retained:
    """See the module. Used by the control thread only.

    Args:
        fresh: whether this process surely is still the one that serves: what is retained stays, and must not be older than a successor's.
        refused: told what the broker's limits do not let through, and its topic.
    """

    def __init__(self, link: Link, fresh: Callable[[], bool], refused: Callable[[TransportError, str], None]) -> None:
        self._link = link
        self._fresh = fresh
        self._refused = refused
        self._waiting: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, topic: str, payload: bytes) -> None:
        """To be published in its turn."""
        self._waiting[topic] = payload

    def put_first(self, topic: str, payload: bytes) -> None:
        """To be published before everything that waits."""
        self._waiting = {topic: payload} | {name: body for name, body in self._waiting.items() if name != topic}

    def publish(self) -> None:
        """Hand over as many as the outbox takes; the rest waits for the next call."""
        while self._waiting and self._link.connected and self._fresh():
            topic, payload = next(iter(self._waiting.items()))
            error = self._link.refuses(topic, payload)
            if error is not None:
                self._refused(error, topic)
                del self._waiting[topic]  # until something changes, or the broker comes back with other limits
                continue
            if not self._link.publish(topic, payload, qos=1, retain=True):
                return
            del self._waiting[topic]
