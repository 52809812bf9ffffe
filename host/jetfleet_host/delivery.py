"""Publishes blobs to boards: drives one `rounds` sender a blob, paces them together, and accounts for every byte.

Called from serve's control thread. Nothing here persists: after a restart of the host boards ask again, and only for what they lack.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Protocol

import msgspec

from jetfleet_contract import pacing, rounds, topics, transfer
from jetfleet_contract.broker_limits import BrokerLimits, fits_chunks
from jetfleet_contract.chunks import CHUNK_BYTES, chunk_count
from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_contract.messages import encode

MAX_BLOBS = 1024
BATCH_CHUNKS = 32
BLOCKED_S = 0.004
WAITING_S = 0.02
IDLE_S = 60.0
RECENT_S = 2.0

_log = logging.getLogger(__name__)


class DeliverySettings(msgspec.Struct, frozen=True):
    """`rate_bytes_s` caps what is published, all blobs together; pacing goes down to `floor_bytes_s`. `outbox_bytes` may wait
    in the link at a time."""

    rate_bytes_s: float = 400e6
    floor_bytes_s: float = 1e6
    burst_bytes: int = 4 << 20
    outbox_bytes: int = 6 << 20


class BlobSource(Protocol):
    """Where published blobs lie."""

    def size(self, blob: str) -> int | None: ...
    def read(self, blob: str, offset: int, length: int) -> bytes: ...


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    @property
    def backlog(self) -> int: ...
    @property
    def limits(self) -> BrokerLimits: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class BlobStats(msgspec.Struct):
    """Of one blob since the host started. `payload_bytes` counts blob bytes, `published_bytes` whole payloads of chunks."""

    size: int
    chunk_size: int = CHUNK_BYTES
    payload_bytes: int = 0
    published_bytes: int = 0
    chunks: int = 0
    rounds: int = 0
    wanters: int = 0
    missing: dict[str, int] = {}


class DeliveryStats(msgspec.Struct):
    """All blobs together. `refused` counts by stable code."""

    published_bytes: int = 0
    rounds: int = 0
    rate_bytes_s: float = 0.0
    refused: dict[str, int] = {}
    blobs: dict[str, BlobStats] = {}


class Distributor:
    """Merges wants into rounds and publishes each chunk once for all who lack it.

    Args:
        link: a host MqttLink, or its like.
        blobs: where the bytes are.
        allowed: whether a device may want a blob (it is assigned to it); everybody may when None.
        chunk_size: how a blob is cut, as its signed target says; in 64 KiB when None.
    """

    def __init__(
        self,
        link: Link,
        blobs: BlobSource,
        settings: DeliverySettings | None = None,
        allowed: Callable[[str, str], bool] | None = None,
        chunk_size: Callable[[str], int] | None = None,
    ) -> None:
        self._link = link
        self._blobs = blobs
        self._settings = settings or DeliverySettings()
        self._allowed = allowed
        self._chunk_size = chunk_size or (lambda _: CHUNK_BYTES)
        self._senders: dict[str, rounds.Sender] = {}
        self._active: dict[str, None] = {}
        self._pace: pacing.Pace | None = None
        self._served = (0, float("-inf"))  # wanters of the last round, and when it began
        self._stats = DeliveryStats()

    def on_want(self, topic: str, payload: bytes, now: float) -> None:
        """Take a message of `topics.ALL_WANTS`. A bad one is counted by its code and dropped; `now` in monotonic seconds."""
        try:
            self._want(topic, payload, now)
        except JetfleetError as error:
            self._count(error.code)
            _log.warning("dropped a want on %s: %s", topic[:200], error.what)

    def on_link_down(self, now: float) -> None:
        """Forget who wants what: everybody asks again when the broker is back."""
        for blob in list(self._active):
            self._step(blob, rounds.Lost(), now)

    def tick(self, now: float) -> float:
        """Publish what pacing and the outbox allow; seconds until it wants the next tick."""
        if not self._active:
            return IDLE_S
        pace = self._refilled(now)
        room = min(pace.tokens, self._settings.outbox_bytes - self._link.backlog) if self._link.connected else 0
        blocked = room < min(self._stats.blobs[blob].chunk_size for blob in self._active)
        expected = self._served[0] if now - self._served[1] < RECENT_S else 0
        for blob in list(self._active):
            size = self._stats.blobs[blob].chunk_size
            granted = max(0, min(int(room // size), BATCH_CHUNKS))
            room -= self._step(blob, rounds.Grant(granted, expected), now) * size
        self._active = {**dict(list(self._active.items())[1:]), **dict(list(self._active.items())[:1])}  # another one is first next time
        return self._next(blocked)

    def forget(self, blob: str) -> None:
        """Stop publishing a blob that is no longer offered."""
        self._senders.pop(blob, None)
        self._active.pop(blob, None)

    @property
    def stats(self) -> DeliveryStats:
        self._stats.rate_bytes_s = self._pace.rate if self._pace else self._settings.rate_bytes_s
        for blob, sender in self._senders.items():
            entry = self._stats.blobs[blob]
            entry.wanters = len(sender.wanters)
            entry.missing = {device: len(wanter.missing) for device, wanter in sender.wanters.items()}
        return self._stats

    # --- inside -----------------------------------------------------------------------------------------------

    def _want(self, topic: str, payload: bytes, now: float) -> None:
        blob, device = topics.blob_of(topic), topics.device_of(topic)
        if self._allowed is not None and not self._allowed(device, blob):
            raise MalformedError("delivery.unassigned", f"device {device} wants a blob that is not assigned to it")
        sender = self._sender(blob)
        want = transfer.decode_want(payload, sender.count)
        cut = self._stats.blobs[blob].chunk_size
        if want.chunk_size != cut:
            raise MalformedError("want.bad", f"chunks of {want.chunk_size} bytes were asked for, {cut} are published")
        self._step(blob, rounds.Wanted(device, want), now)

    def _sender(self, blob: str) -> rounds.Sender:
        known, cut = self._senders.get(blob), self._chunk_size(blob)
        if known is not None and self._stats.blobs[blob].chunk_size == cut:
            return known
        size = self._blobs.size(blob)
        if size is None:
            raise MalformedError("delivery.unknown", f"blob {blob} is not published here")
        if not fits_chunks(self._link.limits, min(size, cut)):
            raise MalformedError("broker.packet-size", f"chunks of {cut} bytes of blob {blob[:16]} are over the broker's limit",
                                 remedy="set [delivery] chunk_kb lower and publish the model again")
        self._make_room()
        self.forget(blob)  # it may have been published again with another cut
        self._senders[blob] = rounds.sender(chunk_count(size, cut), 1 + secrets.randbelow(1 << 31))
        self._stats.blobs[blob] = BlobStats(size=size, chunk_size=cut)
        return self._senders[blob]

    def _make_room(self) -> None:
        """Senders that rest hold only budgets; the oldest go first when there are too many."""
        resting = [blob for blob, sender in self._senders.items() if sender.phase == "idle"]
        while len(self._senders) >= MAX_BLOBS and resting:
            oldest = resting.pop(0)
            self._senders.pop(oldest)
            self._stats.blobs.pop(oldest, None)
        if len(self._senders) >= MAX_BLOBS:
            raise MalformedError("delivery.busy", f"{MAX_BLOBS} blobs are on their way already")

    def _step(self, blob: str, event: rounds.SenderEvent, now: float) -> int:
        """One step of one sender and its effects; chunks that were published."""
        sender = self._senders.get(blob)
        if sender is None:
            self._active.pop(blob, None)
            return 0
        sender, effects = rounds.step_sender(sender, event, now)
        self._senders[blob] = sender
        if sender.phase == "idle":
            self._active.pop(blob, None)
        else:
            self._active[blob] = None
        return sum(self._act(blob, effect, now) for effect in effects)

    def _act(self, blob: str, effect: rounds.SenderEffect, now: float) -> int:
        if isinstance(effect, rounds.Send):
            return self._send(blob, effect)
        if isinstance(effect, rounds.Announce):
            self._announce(blob, effect.mark, now)
        elif isinstance(effect, rounds.Observe):
            self._pace = pacing.observe(self._refilled(now), effect.sent, effect.lost, now)
        else:
            self._count(effect.code)
            _log.info("device %s has used up its budget for blob %s; it is served as the budget renews", effect.device, blob)
        return 0

    def _send(self, blob: str, send: rounds.Send) -> int:
        stats = self._stats.blobs[blob]
        size = stats.chunk_size
        topic = topics.chunk(blob)
        for index in send.indices:
            try:
                data = self._blobs.read(blob, index * size, min(size, stats.size - index * size))
            except (JetfleetError, OSError) as error:
                _log.error("cannot read blob %s: %s; it is not offered any more until it is asked for again", blob, error)
                self._count("delivery.unreadable")
                self.forget(blob)
                return 0
            payload = transfer.encode_chunk(send.round, index, data)
            if not self._link.publish(topic, payload, qos=0):
                continue  # as if it were lost: it is asked for again
            stats.chunks += 1
            stats.payload_bytes += len(data)
            stats.published_bytes += len(payload)
            self._stats.published_bytes += len(payload)
            if self._pace is not None:
                self._pace = pacing.spend(self._pace, len(payload))
        return len(send.indices)

    def _announce(self, blob: str, mark: transfer.RoundMark, now: float) -> None:
        if mark.kind == "begin":
            self._served = (len(self._senders[blob].wanters), now)
            self._stats.rounds += 1
            self._stats.blobs[blob].rounds += 1
        self._link.publish(topics.blob_round(blob), encode(mark), qos=0)

    def _refilled(self, now: float) -> pacing.Pace:
        settings = self._settings
        if self._pace is None:
            self._pace = pacing.starting(settings.rate_bytes_s, settings.floor_bytes_s, settings.burst_bytes, now)
        self._pace = pacing.refill(self._pace, now)
        return self._pace

    def _next(self, blocked: bool) -> float:
        if not self._active:
            return IDLE_S
        states = [self._senders[blob] for blob in self._active]
        if any(state.phase == "sending" and not rounds.held_back(state) for state in states):
            return BLOCKED_S if blocked else 0.0
        return WAITING_S

    def _count(self, code: str) -> None:
        self._stats.refused[code] = self._stats.refused.get(code, 0) + 1
