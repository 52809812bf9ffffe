"""Gives blobs to the host: offers them, answers its wants with paced chunks, keeps them until it has judged them.

Called from the supervisor's control thread; large files are copied and hashed by one worker thread. A token bucket bounds what is sent, so
that an upload takes neither the link nor the processor away from inference. Restarts of board, broker or host cost what was missing.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from jetfleet_agent.config import UploadConfig
from jetfleet_contract import pacing, rounds, topics, transfer, uploads
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.charges import BUDGET_RENEW_S, Charge
from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, chunk_count
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError
from jetfleet_contract.messages import Instant, encode
from jetfleet_contract.policy import backoff
from jetfleet_contract.uploads import Kind, Offer, Verdict

from .commands import Signer
from .upload_store import Pending, UploadStore

HOST = "host"
MARK_EVERY = 2
OFFER_BASE_S = 2.0
OFFER_CAP_S = 120.0
HEARD_S = 30.0
IDLE_S = 60.0
WAITING_S = 0.02
COPYING_S = 0.05
UNPACED_BYTES_S = 400e6
PART_BYTES = CHUNK_BYTES + 16

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    @property
    def backlog(self) -> int: ...
    @property
    def limits(self) -> BrokerLimits: ...
    def subscribe(self, topic: str, qos: int) -> None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class HostWord(Protocol):
    """What is used of a TrustStore."""

    def from_host(self, data: bytes, kind: str, message: type[T]) -> T: ...


class _Due:
    """When an offer is published again."""

    __slots__ = ("at", "attempt")

    def __init__(self) -> None:
        self.at = 0.0
        self.attempt = 0


class Uploads:
    """See the module.

    Args:
        trust: opens what the host signs. clock: for offers' ends and pacing.
    """

    def __init__(self, store: UploadStore, link: Link, device: str, identity: Signer, trust: HostWord, clock: Callable[[], Instant],
                 settings: UploadConfig) -> None:
        self._store = store
        self._link = link
        self._device = topics.check_name("device", device)
        self._identity = identity
        self._trust = trust
        self._clock = clock
        self._keep_s = settings.keep_h * 3600.0
        rate = settings.rate_kbit_s * 125.0 or UNPACED_BYTES_S
        self._pace = pacing.starting(rate, rate / 16, max(2.0 * PART_BYTES, rate / 4), clock().mono)
        self._senders: dict[str, rounds.Sender] = {}
        self._spent: dict[str, Charge] = {}
        self._due: dict[int, _Due] = {offer: _Due() for offer in store.pending}
        self._copying: list[Future[Pending]] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self._random = random.SystemRandom()
        self.sent_bytes = 0

    # --- what the board has to give ---------------------------------------------------------------------------

    def offer(self, path: Path, kind: Kind, name: str, *, command: int = 0) -> None:
        """Give the host a copy of the file as it is now; it is copied in the background, and its failure is logged with its code.

        Args:
            name: as `topics.check_name` allows. command: the number of the command that asked for it, 0 when nobody did.
        """
        add = partial(self._store.add, chunk_size=uploads.chunk_size_for(self._link.limits, self._device))
        self._copying.append(self._worker.submit(add, path, kind, name, self._end(), command))

    def offer_bytes(self, data: bytes, kind: Kind, name: str, *, command: int = 0) -> str:
        """Give the host a few bytes; their blob id. Raises as `UploadStore.add`."""
        kept = self._store.add(data, kind, name, self._end(), command,
                               chunk_size=uploads.chunk_size_for(self._link.limits, self._device))
        self._due[kept.offer.id] = _Due()
        return kept.offer.blob

    @property
    def waiting(self) -> int:
        """Offers that the host has not judged yet."""
        return len(self._due) + len(self._copying)

    def is_waiting(self, blob: str) -> bool:
        """Whether an offer of that blob has no verdict yet."""
        return any(kept.offer.blob == blob for kept in self._store.pending.values())

    # --- called by the supervisor -----------------------------------------------------------------------------

    def begin(self) -> None:
        self._link.subscribe(topics.upload_wants(self._device), 1)

    def on_message(self, topic: str, payload: bytes) -> bool:
        """Take a want or a verdict; False when `topic` carries neither. Bad ones are dropped.

        Raises:
            UntrustedError, MalformedError: a verdict that is not the host's; a want that does not fit.
        """
        head, _, blob = topic.rpartition("/")
        if head != topics.upload_wants(self._device).removesuffix("/+"):
            return False
        if uploads.is_want(payload):
            self._want(blob, payload)
        else:
            self._judged(self._trust.from_host(payload, "verdict", Verdict))
        return True

    def on_link_up(self) -> None:
        for due in self._due.values():
            due.at, due.attempt = 0.0, 0

    def on_link_down(self) -> None:
        for blob in list(self._senders):
            self._step(blob, rounds.Lost())

    def tick(self) -> float:
        """Offer what is due, send what pacing allows; seconds until the next tick."""
        now = self._clock()
        self._take_up_copies()
        self._drop_expired(now)
        wait = min(self._send_offers(now.mono), self._send_chunks(now.mono))
        return min(wait, COPYING_S) if self._copying else wait

    def close(self) -> None:
        """End the worker; what was offered stays."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    # --- offers -----------------------------------------------------------------------------------------------

    def _end(self) -> float:
        """When what is offered now expires; 0, when the host shall say, as long as the clock of this board cannot be trusted."""
        now = self._clock()
        return now.wall + self._keep_s if now.wall_trusted else 0.0

    def _take_up_copies(self) -> None:
        done = [copy for copy in self._copying if copy.done()]
        self._copying = [copy for copy in self._copying if copy not in done]
        for copy in done:
            error = copy.exception()
            if error is None:
                self._due[copy.result().offer.id] = _Due()
            elif isinstance(error, JetfleetError):
                _log.warning("an upload is not offered: %s [%s]", error.what, error.code)
            else:
                raise error

    def _drop_expired(self, now: Instant) -> None:
        if not now.wall_trusted:
            return
        for kept in self._store.pending.values():
            if 0.0 < kept.offer.expires <= now.wall and kept.offer.id in self._due:
                _log.warning("upload %s %s expired before the host took it", kept.offer.kind, kept.offer.name)
                self._forget(kept.offer)

    def _send_offers(self, mono: float) -> float:
        if not self._link.connected:
            return IDLE_S
        for number, due in self._due.items():
            kept = self._store.pending.get(number)
            if due.at <= mono and kept is not None:
                self._link.publish(topics.offer(self._device), self._identity.sign("offer", kept.offer), qos=1)
                due.at = mono + backoff(due.attempt, self._random.random(), base_s=OFFER_BASE_S, cap_s=OFFER_CAP_S)
                due.attempt += 1
        return max(0.0, min((due.at - mono for due in self._due.values()), default=IDLE_S))

    def _judged(self, verdict: Verdict) -> None:
        kept = self._store.pending.get(verdict.id)
        if kept is None or verdict.device != self._device or verdict.blob != kept.offer.blob:
            return
        if verdict.code:
            _log.warning("the host refuses %s %s: %s [%s]", kept.offer.kind, kept.offer.name, verdict.detail[:200], verdict.code)
        self._forget(kept.offer)

    def _forget(self, offer: Offer) -> None:
        self._store.drop(offer.id)
        self._due.pop(offer.id, None)
        for blob in [blob for blob in self._senders if self._store.info(blob) is None]:
            del self._senders[blob]
            self._spent.pop(blob, None)

    # --- chunks -----------------------------------------------------------------------------------------------

    def _want(self, blob: str, payload: bytes) -> None:
        info = self._store.info(topics.check_blob(blob))
        if info is None:
            return  # judged already: the host's question and its verdict crossed
        want = transfer.decode_want(payload, chunk_count(info.size, info.chunk_size))
        if want.chunk_size != info.chunk_size:
            raise MalformedError("want.bad", f"chunks of {want.chunk_size} bytes were asked for, {info.chunk_size} are offered")
        if blob not in self._senders or self._senders[blob].phase == "idle":
            self._senders[blob] = self._fresh_sender(blob, want.missing.count)
        heard = self._clock().mono + HEARD_S
        for kept in self._store.pending.values():
            if kept.offer.id in self._due and blob in (kept.offer.blob, *kept.pages):
                self._due[kept.offer.id].at = max(self._due[kept.offer.id].at, heard)  # the host knows of it
        self._step(blob, rounds.Wanted(HOST, want))

    def _fresh_sender(self, blob: str, count: int) -> rounds.Sender:
        """Few chunks are under way at a time, so that little is in vain when the host has gone; and what was really sent before counts half
        of the usual budget: it is the host that asks, and only a hostile broker could ask in its name."""
        sender = rounds.sender(count, 1 + secrets.randbelow(1 << 31))
        return msgspec.structs.replace(sender, mark_every=MARK_EVERY, charges={HOST: self._spent.get(blob, Charge(0.0, 0.0))})

    def _spend(self, blob: str, payload: int, count: int) -> None:
        now = self._clock().mono
        self._pace = pacing.spend(self._pace, payload)
        spent = self._spent.get(blob, Charge(0.0, now))
        self._spent[blob] = Charge(max(0.0, spent.chunks - (now - spent.at) * count / BUDGET_RENEW_S) + 0.5, now)

    def _send_chunks(self, mono: float) -> float:
        active = [blob for blob, sender in self._senders.items() if sender.phase != "idle"]
        if not active:
            return IDLE_S
        self._pace = pacing.refill(self._pace, mono)
        for blob in active:
            room = int(self._pace.tokens // PART_BYTES) if self._link.connected and self._link.backlog < self._pace.burst else 0
            self._step(blob, rounds.Grant(room))
        if any(_sends(self._senders[blob]) for blob in active):
            return max(0.004, (PART_BYTES - self._pace.tokens) / self._pace.rate)
        return WAITING_S

    def _step(self, blob: str, event: rounds.SenderEvent) -> None:
        now = self._clock().mono
        self._senders[blob], effects = rounds.step_sender(self._senders[blob], event, now)
        for effect in effects:
            if isinstance(effect, rounds.Send):
                self._send(blob, effect)
            elif isinstance(effect, rounds.Announce):
                self._link.publish(topics.upload(self._device, blob), uploads.encode_part_mark(encode(effect.mark)), qos=0)
            elif isinstance(effect, rounds.Observe):
                self._pace = pacing.observe(self._pace, effect.sent, effect.lost, now)
            elif isinstance(effect, rounds.Refuse):
                _log.info("the host has asked for more of upload %s than its budget; it is served as that renews", blob)

    def _send(self, blob: str, send: rounds.Send) -> None:
        info = self._store.info(blob) or BlobInfo(0)
        topic = topics.upload(self._device, blob)
        for index in send.indices:
            try:
                data = self._store.read(blob, index * info.chunk_size, info.chunk_size)
            except StorageError as error:
                _log.error("upload %s: %s", blob, error.what)
                return  # as if it were lost: the host asks again
            payload = uploads.encode_part(send.round, index, data)
            self._spend(blob, len(payload), self._senders[blob].count)
            if self._link.publish(topic, payload, qos=0):
                self.sent_bytes += len(payload)


def _sends(sender: rounds.Sender) -> bool:
    return sender.phase == "sending" and not rounds.held_back(sender)
