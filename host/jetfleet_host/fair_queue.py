"""A bounded queue with a turn for each board: one that asks a lot waits for itself, not the others for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """What is urgent goes before what is not; among equals boards take turns. Safe for several threads.

    Args:
        most: items in all. most_each: items of one board; its oldest goes when there are more.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._lanes: dict[bool, dict[str, deque[T]]] = {True: {}, False: {}}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, device: str, item: T, *, urgent: bool) -> T | None:
        """Queue it; an item that had to go for it comes back (it may be the item itself, when others have filled the queue)."""
        with self._changed:
            lane = self._lanes[urgent].setdefault(device, deque())
            lost = None
            if len(lane) >= self._most_each:
                lost = lane.popleft()
            elif len(self) >= self._most:
                lost = self._make_room(urgent)
                if lost is None:
                    if not lane:
                        del self._lanes[urgent][device]
                    return item
            lane.append(item)
            self._changed.notify()
            return lost

    def _make_room(self, urgent: bool) -> T | None:
        """The oldest of the longest lane that is not more urgent; None when every lane has one item only."""
        for level in (False, True) if urgent else (False,):
            longest = max(self._lanes[level].values(), key=len, default=None)
            if longest is not None and len(longest) > (1 if level == urgent else 0):
                return longest.popleft()
        return None

    def get(self, timeout: float) -> T | None:
        """The next item; None after `timeout` seconds, or when closed."""
        with self._changed:
            if not len(self) and not self._closed:
                self._changed.wait(timeout)
            if self._closed:
                return None
            for level in (True, False):
                lanes = self._lanes[level]
                device = next((name for name, lane in lanes.items() if lane), None)
                if device is not None:
                    lane = lanes.pop(device)
                    item = lane.popleft()
                    if lane:
                        lanes[device] = lane  # behind the others
                    return item
            return None

    def take(self, device: str, fits: Callable[[T], bool], most: int) -> list[T]:
        """Up to `most` more items of a board that fit, at once and out of turn."""
        with self._changed:
            found: list[T] = []
            for lanes in self._lanes.values():
                lane = lanes.get(device, deque())
                for item in [item for item in lane if fits(item)][:most - len(found)]:
                    lane.remove(item)
                    found.append(item)
                if not lane:
                    lanes.pop(device, None)
            return found

    def close(self) -> None:
        """Nobody gets anything any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return sum(len(lane) for lanes in self._lanes.values() for lane in lanes.values())
