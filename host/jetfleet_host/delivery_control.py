"""What holds the distributor back, and how it stands: the host's own bytes a day and hours, what a person paused, rollouts that are paused.

Called from serve's control thread. The day's bytes are reserved in the database before they are published, in steps, so that a host that
is killed counts up to two steps too much, never too little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from jetfleet_contract import budgets
from jetfleet_contract.budgets import DayCount, Hours, Verdict
from jetfleet_contract.chunks import CHUNK_BYTES
from jetfleet_contract.messages import Instant
from jetfleet_contract.transfer import CHUNK_HEADER_BYTES

from .delivery import BlobStats, DeliveryStats, Distributor
from .store import deliveries
from .store.database import Transactions
from .store.deliveries import EVERYTHING, BlobLine, DeliveryStatus

STATUS_S = 1.0
MIN_STEP = 1 << 20
MAX_STEP = 256 << 20
STEPS_A_DAY = 32
SHOWN_BLOBS = 100

_log = logging.getLogger(__name__)


class HostBudget(msgspec.Struct, frozen=True):
    """What the whole host may publish: MB (10^6 bytes) in a UTC day, 0 without a bound, and the UTC hours; none means always."""

    mb_per_day: int = 0
    hours: Hours = ()

    @property
    def bytes_per_day(self) -> int:
        return self.mb_per_day * 1_000_000


class DeliveryControl:
    """See the module.

    Args:
        blobs_of: the blobs of a published bundle, by its manifest, with the pages of their chunk tables; empty when it is not published.
        names: what a blob is part of, for people.
    """

    def __init__(self, database: Transactions, distributor: Distributor, budget: HostBudget, blobs_of: Callable[[str], Iterable[str]],
                 names: Callable[[str], str]) -> None:
        self._database = database
        self._distributor = distributor
        self._budget = budget
        self._blobs_of = blobs_of
        self._names = names
        self._count: DayCount | None = None
        self._stored = DayCount()
        self._spent = 0
        self._verdict = Verdict()
        self._judged_at = 0.0
        self._paused: dict[str, str] = {}
        self._asked: dict[str, str] = {}
        self._told: DeliveryStatus | None = None
        self._told_at = float("-inf")
        self._published = (0.0, 0)

    def poll(self, now: Instant) -> None:
        """Follow what the database says, and let the distributor have its next bytes. Raises as the database does."""
        self._follow_pauses()
        if self._budget.mb_per_day or self._budget.hours:
            self._allow(now)
        if now.mono - self._told_at >= STATUS_S:
            self._tell(now)

    def close(self, now: Instant) -> None:
        """Write down exactly what was used, and how it stood."""
        if self._count is not None:
            self._settle(now)
            self._keep_day(self._count)
        self._tell(now)

    # --- pauses -----------------------------------------------------------------------------------------------

    def _follow_pauses(self) -> None:
        with self._database.reading() as session:
            asked, rollouts = deliveries.pauses(session), deliveries.paused_rollouts(session)
        paused: dict[str, str] = {}
        for bundle, rollout in rollouts.items():
            paused |= dict.fromkeys(self._blobs_of(bundle), f"rollout {rollout}")
        for what, why in asked.items():
            paused |= dict.fromkeys((what, *self._blobs_of(what)), why)
        self._asked = asked
        if paused != self._paused:
            self._paused = paused
            self._distributor.pause(frozenset(paused), everything=EVERYTHING in paused)
            self._told_at = float("-inf")

    # --- the host's budget ------------------------------------------------------------------------------------

    def _allow(self, now: Instant) -> None:
        if self._count is None:
            with self._database.reading() as session:
                self._count = deliveries.day(session)
        self._settle(now)
        before = self._verdict.code
        self._verdict, self._judged_at = self._judged(now), now.wall
        if self._verdict.code and self._verdict.code != before:
            _log.warning("nothing is published: %s [%s]", self._verdict.why, self._verdict.code)
        self._distributor.allow(self._step())

    def _judged(self, now: Instant) -> Verdict:
        assert self._count is not None  # noqa: S101 - loaded by the caller
        largest = max((entry.chunk_size for entry in self._distributor.stats.blobs.values()), default=CHUNK_BYTES)
        return budgets.judge(self._budget.hours, self._budget.bytes_per_day, self._count, now, largest + CHUNK_HEADER_BYTES)

    def _settle(self, now: Instant) -> None:
        """Count what was published since the last time; the rest of what was reserved is free again."""
        published = self._distributor.stats.published_bytes
        if self._count is not None:
            self._count = budgets.used(self._count, published - self._spent, now)
        self._spent = published

    def _step(self) -> int | None:
        """Bytes that may be published until the next poll, written down first; None without a bound."""
        if self._verdict.code:
            return 0
        if self._verdict.left is None or self._count is None:
            return None
        step = min(self._verdict.left, max(MIN_STEP, min(MAX_STEP, self._budget.bytes_per_day // STEPS_A_DAY)))
        if self._count.day != self._stored.day or self._count.used + step > self._stored.used:
            self._keep_day(msgspec.structs.replace(self._count, used=self._count.used + min(self._verdict.left, 2 * step)))
        return step

    def _keep_day(self, count: DayCount) -> None:
        with self._database.session() as session:
            deliveries.keep_day(session, count)
        self._stored = count

    # --- how it stands ----------------------------------------------------------------------------------------

    def _tell(self, now: Instant) -> None:
        told = self._status(self._distributor.stats, now)
        same = self._told is not None and msgspec.structs.replace(told, at=self._told.at) == self._told
        self._told_at = now.mono
        if same:
            return
        with self._database.session() as session:
            deliveries.keep_status(session, told)
        self._told = told

    def _status(self, stats: DeliveryStats, now: Instant) -> DeliveryStatus:
        then, before = self._published
        self._published = now.mono, stats.published_bytes
        bytes_s = (stats.published_bytes - before) / (now.mono - then) if then and now.mono > then else 0.0
        verdict = self._verdict
        blobs = sorted(stats.blobs.items(), key=lambda item: (-item[1].wanters, -item[1].published_bytes))
        count = self._count if self._count is not None else DayCount()
        return DeliveryStatus(
            at=now.wall, rate_bytes_s=stats.rate_bytes_s, bytes_s=round(bytes_s), today_bytes=count.used,
            mb_per_day=self._budget.mb_per_day, hours=self._budget.hours, held=verdict.code, why=verdict.why or verdict.note,
            held_until=self._judged_at + verdict.wait_s if verdict.code else 0.0, refused=dict(stats.refused), paused=self._asked,
            blobs=tuple(self._line(blob, entry) for blob, entry in blobs[:SHOWN_BLOBS]))

    def _line(self, blob: str, entry: BlobStats) -> BlobLine:
        missing = sum(min(entry.size, count * entry.chunk_size) for count in entry.missing.values())
        paused = self._paused.get(blob, self._paused.get(EVERYTHING, ""))
        return BlobLine(blob, self._names(blob), entry.size, entry.wanters, missing, entry.published_bytes, entry.unicast_bytes,
                        entry.lanes, paused)
