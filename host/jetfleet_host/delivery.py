"""Publishes blobs to boards: drives one `rounds` sender a lane of a blob, paces them together, and accounts for every byte.

A blob has one lane, for everybody; more when some boards read much more slowly than others (`rounds.Move`), and one for each board that
has to count every byte and is served alone.

Called from serve's control thread. Nothing here persists: after a restart of the host boards ask again, and only for what they lack.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import msgspec

from jetfleet_contract import pacing, rounds, topics, transfer
from jetfleet_contract.broker_limits import BrokerLimits, fits_chunks
from jetfleet_contract.chunks import CHUNK_BYTES, chunk_count
from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_contract.messages import encode

MAX_SENDERS = 1024
MAX_LANES = 8
BATCH_CHUNKS = 32
BLOCKED_S = 0.004
WAITING_S = 0.02
HELD_S = 0.25
IDLE_S = 60.0
RECENT_S = 4.0

_log = logging.getLogger(__name__)


class DeliverySettings(msgspec.Struct, frozen=True):
    """`rate_bytes_s` caps what is published, all blobs together; pacing goes down to `floor_bytes_s`. `outbox_bytes` may wait
    in the link at a time. Chunks that at most `few` boards lack go to these alone."""

    rate_bytes_s: float = 400e6
    floor_bytes_s: float = 1e6
    burst_bytes: int = 4 << 20
    outbox_bytes: int = 6 << 20
    few: int = rounds.FEW


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


class _Lane(NamedTuple):
    """Who is served together: all in shared lane `number`, or one device alone."""

    blob: str
    number: int = 0
    device: str = ""


class BlobStats(msgspec.Struct):
    """Of one blob since the host started. `payload_bytes` counts blob bytes, `published_bytes` whole payloads of chunks, of which
    `unicast_bytes` went to one board alone. `lanes` are those that serve somebody now."""

    size: int
    chunk_size: int = CHUNK_BYTES
    payload_bytes: int = 0
    published_bytes: int = 0
    unicast_bytes: int = 0
    chunks: int = 0
    rounds: int = 0
    wanters: int = 0
    lanes: int = 0
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
        self._senders: dict[_Lane, rounds.Sender] = {}
        self._active: dict[_Lane, None] = {}
        self._paused: frozenset[str] = frozenset()
        self._all_paused = False
        self._left: int | None = None
        self._pace: pacing.Pace | None = None
        self._served: tuple[int, float, _Lane | None] = (0, float("-inf"), None)  # wanters of the last round, when it began, and where
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
        for lane in list(self._active):
            self._step(lane, rounds.Lost(), now)

    def tick(self, now: float) -> float:
        """Publish what pacing and the outbox allow; seconds until it wants the next tick."""
        if not self._active:
            return IDLE_S
        pace = self._refilled(now)
        room = min(pace.tokens, self._settings.outbox_bytes - self._link.backlog) if self._link.connected else 0
        if self._left is not None:
            room = min(room, self._left)
        blocked = room < min(self._stats.blobs[lane.blob].chunk_size for lane in self._active)
        served, at, where = self._served
        for lane in [lane for lane in self._active if not self._is_paused(lane.blob)]:
            size = self._stats.blobs[lane.blob].chunk_size
            granted = max(0, min(int(room // size), BATCH_CHUNKS))
            expected = served if now - at < RECENT_S and where != lane else 0
            room -= self._step(lane, rounds.Grant(granted, expected), now) * size
        self._active = {**dict(list(self._active.items())[1:]), **dict(list(self._active.items())[:1])}  # another one is first next time
        return self._next(blocked)

    def pause(self, blobs: Collection[str], *, everything: bool = False) -> None:
        """Publish nothing of exactly these blobs from now on, or of any; who wants them is remembered. The empty set resumes all."""
        self._paused, self._all_paused = frozenset(blobs), everything

    def allow(self, left: int | None) -> None:
        """At most `left` bytes may be published until this is said again; None: any number."""
        self._left = left

    def _is_paused(self, blob: str) -> bool:
        return self._all_paused or blob in self._paused

    def forget(self, blob: str) -> None:
        """Stop publishing a blob that is no longer offered."""
        for lane in self._lanes(blob):
            self._senders.pop(lane, None)
            self._active.pop(lane, None)

    @property
    def stats(self) -> DeliveryStats:
        self._stats.rate_bytes_s = self._pace.rate if self._pace else self._settings.rate_bytes_s
        for blob, entry in self._stats.blobs.items():
            senders = [self._senders[lane] for lane in self._lanes(blob)]
            entry.missing = {device: len(wanter.missing) for sender in senders for device, wanter in sender.wanters.items()}
            entry.wanters = len(entry.missing)
            entry.lanes = sum(sender.phase != "idle" for sender in senders)
        return self._stats

    # --- inside -----------------------------------------------------------------------------------------------

    def _want(self, topic: str, payload: bytes, now: float) -> None:
        blob, device = topics.blob_of(topic), topics.device_of(topic)
        if self._allowed is not None and not self._allowed(device, blob):
            raise MalformedError("delivery.unassigned", f"device {device} wants a blob that is not assigned to it")
        stats = self._known(blob)
        want = transfer.decode_want(payload, chunk_count(stats.size, stats.chunk_size))
        if want.chunk_size != stats.chunk_size:
            raise MalformedError("want.bad", f"chunks of {want.chunk_size} bytes were asked for, {stats.chunk_size} are published")
        if want.lane >= MAX_LANES:
            raise MalformedError("want.bad", f"lane {want.lane} was asked for, there are {MAX_LANES}")
        lane = _Lane(blob, device=device) if want.apart else _Lane(blob, want.lane)
        self._open(lane)
        for other in self._lanes(blob):
            if other != lane and (device in self._senders[other].wanters or device in self._senders[other].charges):
                self._hand_over(other, lane, device, now)
        self._step(lane, rounds.Wanted(device, want), now)

    def _known(self, blob: str) -> BlobStats:
        """The entry of a blob that is published, as it is cut today."""
        known, cut = self._stats.blobs.get(blob), self._chunk_size(blob)
        if known is not None and known.chunk_size == cut:
            return known
        size = self._blobs.size(blob)
        if size is None:
            raise MalformedError("delivery.unknown", f"blob {blob} is not published here")
        if not fits_chunks(self._link.limits, min(size, cut)):
            raise MalformedError("broker.packet-size", f"chunks of {cut} bytes of blob {blob[:16]} are over the broker's limit",
                                 remedy="set [delivery] chunk_kb lower and publish the model again")
        self.forget(blob)  # it may have been published again with another cut
        self._stats.blobs[blob] = BlobStats(size=size, chunk_size=cut)
        return self._stats.blobs[blob]

    def _lanes(self, blob: str) -> list[_Lane]:
        return [lane for lane in self._senders if lane.blob == blob]

    def _open(self, lane: _Lane) -> None:
        if lane in self._senders:
            return
        self._make_room()
        stats = self._stats.blobs[lane.blob]
        self._senders[lane] = rounds.sender(chunk_count(stats.size, stats.chunk_size), 1 + secrets.randbelow(1 << 31), self._settings.few)

    def _make_room(self) -> None:
        """Senders that rest hold only budgets; the oldest go first when there are too many."""
        resting = [lane for lane, sender in self._senders.items() if sender.phase == "idle"]
        while len(self._senders) >= MAX_SENDERS and resting:
            oldest = resting.pop(0)
            self._senders.pop(oldest)
            if not self._lanes(oldest.blob):
                self._stats.blobs.pop(oldest.blob, None)
        if len(self._senders) >= MAX_SENDERS:
            raise MalformedError("delivery.busy", f"{MAX_SENDERS} blobs are on their way already")

    def _hand_over(self, old: _Lane, new: _Lane, device: str, now: float) -> None:
        self._senders[new], (sender, effects) = rounds.handed_over(self._senders[old], self._senders[new], device, now)
        self._settle(old, sender)
        for effect in effects:
            self._act(old, effect, now)

    def _step(self, lane: _Lane, event: rounds.SenderEvent, now: float) -> int:
        """One step of one sender and its effects; chunks that were published."""
        sender = self._senders.get(lane)
        if sender is None:
            self._active.pop(lane, None)
            return 0
        sender, effects = rounds.step_sender(sender, event, now)
        self._settle(lane, sender)
        return sum(self._act(lane, effect, now) for effect in effects)

    def _settle(self, lane: _Lane, sender: rounds.Sender) -> None:
        self._senders[lane] = sender
        if sender.phase == "idle":
            self._active.pop(lane, None)
        else:
            self._active[lane] = None

    def _act(self, lane: _Lane, effect: rounds.SenderEffect, now: float) -> int:
        if isinstance(effect, rounds.Send):
            return self._send(lane, effect)
        if isinstance(effect, rounds.Announce):
            self._announce(lane, effect.mark, now, effect.device)
        elif isinstance(effect, rounds.Move):
            self._move(lane, effect, now)
        elif isinstance(effect, rounds.Observe):
            self._pace = pacing.observe(self._refilled(now), effect.sent, effect.lost, now, effect.device)
        else:
            self._count(effect.code)
            _log.info("device %s has used up its budget for blob %s; it is served as the budget renews", effect.device, lane.blob)
        return 0

    def _send(self, lane: _Lane, send: rounds.Send) -> int:
        if lane not in self._senders:
            return 0  # it was forgotten while these effects were carried out
        stats = self._stats.blobs[lane.blob]
        size = stats.chunk_size
        device = send.device or lane.device
        topic = topics.unicast(lane.blob, device) if device else topics.chunk(lane.blob, lane.number)
        for index in send.indices:
            try:
                data = self._blobs.read(lane.blob, index * size, min(size, stats.size - index * size))
            except (JetfleetError, OSError) as error:
                _log.error("cannot read blob %s: %s; it is not offered any more until it is asked for again", lane.blob, error)
                self._count("delivery.unreadable")
                self.forget(lane.blob)
                return 0
            payload = transfer.encode_chunk(send.round, index, data)
            if not self._link.publish(topic, payload, qos=0):
                continue  # as if it were lost: it is asked for again
            stats.chunks += 1
            stats.payload_bytes += len(data)
            stats.published_bytes += len(payload)
            stats.unicast_bytes += len(payload) if device else 0
            self._stats.published_bytes += len(payload)
            if self._left is not None:
                self._left -= len(payload)
            if self._pace is not None:
                self._pace = pacing.spend(self._pace, len(payload))
        return len(send.indices)

    def _announce(self, lane: _Lane, mark: transfer.RoundMark, now: float, device: str = "") -> None:
        if mark.kind == "begin" and lane in self._senders:
            self._served = (len(self._senders[lane].wanters), now, lane)
            self._stats.rounds += 1
            self._stats.blobs[lane.blob].rounds += 1
        alone = device or lane.device
        if alone:
            self._link.publish(topics.unicast(lane.blob, alone), transfer.encode_own_mark(mark), qos=0)
        else:
            self._link.publish(topics.blob_round(lane.blob, lane.number), encode(mark), qos=0)

    def _move(self, lane: _Lane, move: rounds.Move, now: float) -> None:
        """The quick ones of a lane go to a free one; when there is none they ask again where they are."""
        numbers = (number for number in range(MAX_LANES) if number != lane.number)
        free = next((number for number in numbers if self._is_free(_Lane(lane.blob, number))), None)
        if free is None or lane.device:
            return
        _log.info("blob %s: %s cannot keep up and stay behind; %d others go on", lane.blob, ", ".join(move.stay), move.movers)
        self._served = (move.movers, now, lane)
        self._announce(lane, transfer.RoundMark(move.round, 0, "move", 0, lane=free, stay=move.stay), now)

    def _is_free(self, lane: _Lane) -> bool:
        return lane not in self._senders or self._senders[lane].phase == "idle"

    def _refilled(self, now: float) -> pacing.Pace:
        settings = self._settings
        if self._pace is None:
            self._pace = pacing.starting(settings.rate_bytes_s, settings.floor_bytes_s, settings.burst_bytes, now)
        self._pace = pacing.refill(self._pace, now)
        return self._pace

    def _next(self, blocked: bool) -> float:
        if not self._active:
            return IDLE_S
        if self._left is not None and blocked and self._left < CHUNK_BYTES:
            return HELD_S
        states = [self._senders[lane] for lane in self._active if not self._is_paused(lane.blob)]
        if not states:
            return HELD_S
        if any(state.phase == "sending" and not rounds.held_back(state) for state in states):
            return BLOCKED_S if blocked else 0.0
        return WAITING_S

    def _count(self, code: str) -> None:
        self._stats.refused[code] = self._stats.refused.get(code, 0) + 1
