"""A virtual device's reports: signed once, outcomes kept on its disk until the host has acknowledged them, sent again with back-off."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jetfleet_contract.messages import Report
from jetfleet_contract.policy import backoff
from jetfleet_contract.slot_records import Progress

from .disk import Disk

IDS_A_SESSION = 1_000_000
RESEND_BASE_S = 2.0
RESEND_CAP_S = 20.0
_PREFIX = "report-"
_SETTLED = "settled"


class Kept(msgspec.Struct):
    """One report: `body` is the signed envelope as it is sent, `key` tells repeats apart."""

    report: Report
    key: str
    body: bytes


class _Waiting:
    __slots__ = ("attempt", "due", "kept")

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.attempt = 0
        self.due = 0.0


class Outbox:
    """See the module.

    Args:
        session: this start's number; ids of different starts never meet. born: told of each outcome once it is durable.
    """

    def __init__(self, disk: Disk, device: str, session: int, sign: Callable[[Report], bytes], unit: Callable[[], float],
                 born: Callable[[Report], None]) -> None:
        self._disk = disk
        self._device = device
        self._next_id = session * IDS_A_SESSION
        self._sign = sign
        self._unit = unit
        self._born = born
        self._settled: dict[str, str] = msgspec.json.decode(disk.get(_SETTLED) or b"{}", type=dict[str, str])
        self._waiting: dict[int, _Waiting] = {}
        for name in disk.names(_PREFIX):
            kept = msgspec.msgpack.decode(disk.get(name) or b"", type=Kept)
            self._waiting[kept.report.id] = _Waiting(kept)
            born(kept.report)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, app: str, progress: Progress, at: float) -> None:
        """Queue a report unless the same is waiting or, for an outcome, was acknowledged before. `at`: wall clock."""
        key = f"{app}/{progress.seq}/{progress.bundle[:16]}/{progress.phase}/{progress.outcome}/{progress.code}"
        if self._settled.get(app) == key or any(waiting.kept.key == key for waiting in self._waiting.values()):
            return
        self._next_id += 1
        report = Report(self._device, self._next_id, progress.seq, app, at, progress.phase, progress.bundle, progress.version,
                        progress.from_version, progress.outcome, progress.code, progress.detail[:500], progress.candidate,
                        progress.metrics, progress.rollout)
        kept = Kept(report, key, self._sign(report))
        self._waiting[report.id] = _Waiting(kept)
        if report.outcome:
            self._disk.put(f"{_PREFIX}{report.id}", msgspec.msgpack.encode(kept))
            self._born(report)

    def acknowledged(self, number: int) -> None:
        """The host has it."""
        waiting = self._waiting.pop(number, None)
        if waiting is None or not waiting.kept.report.outcome:
            return
        self._settled[waiting.kept.report.app] = waiting.kept.key
        self._disk.put(_SETTLED, msgspec.json.encode(self._settled))
        self._disk.drop(f"{_PREFIX}{number}")

    def hurry(self) -> None:
        """The broker is back: everything is due now."""
        for waiting in self._waiting.values():
            waiting.due, waiting.attempt = 0.0, 0

    def due(self, mono: float) -> list[bytes]:
        """The reports to send now, oldest first; each is due again after its back-off."""
        bodies = []
        for _, waiting in sorted(self._waiting.items()):
            if waiting.due <= mono:
                bodies.append(waiting.kept.body)
                waiting.due = mono + backoff(waiting.attempt, self._unit(), base_s=RESEND_BASE_S, cap_s=RESEND_CAP_S)
                waiting.attempt += 1
        return bodies

    def next_due(self, mono: float) -> float:
        """Seconds until the next one is due; an hour when nothing waits."""
        return max(min((w.due for w in self._waiting.values()), default=mono + 3600.0) - mono, 0.0)
