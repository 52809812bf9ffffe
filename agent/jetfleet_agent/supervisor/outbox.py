"""Reports to the host: signed once, kept until the host acknowledged them, sent again with back-off.

Outcomes are kept on disk, one file each, because a rollout waits for them. Progress lives in memory only: after a restart
the machine says where it is again. The same progress twice is one report. Bounded: progress goes first when it gets full.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from jetfleet_contract.messages import Report
from jetfleet_contract.policy import backoff
from jetfleet_contract.slot_records import Progress

from .journal import Disk, RealDisk

log = logging.getLogger(__name__)

MAX_REPORTS = 128
IDS_PER_SESSION = 1_000_000
RESEND_BASE_S = 2.0
RESEND_CAP_S = 120.0


class _Kept(msgspec.Struct):
    """One report on disk: `body` is the signed envelope as it is sent."""

    id: int
    app: str
    key: str
    outcome: bool
    body: msgspec.Raw


class _Waiting:
    __slots__ = ("attempt", "due", "kept")

    def __init__(self, kept: _Kept) -> None:
        self.kept = kept
        self.attempt = 0
        self.due = 0.0


class Outbox:
    """See the module. Used by the control thread only.

    Args:
        session: this start's number; ids of different starts never meet.
        sign: makes the envelope of a report.
        unit: random numbers in 0..1 for the back-off.
    """

    def __init__(self, folder: Path, device: str, session: int, sign: Callable[[Report], bytes], unit: Callable[[], float],
                 disk: Disk | None = None) -> None:
        self._folder = folder
        self._device = device
        self._next_id = session * IDS_PER_SESSION
        self._sign = sign
        self._unit = unit
        self._disk = disk or RealDisk()
        self._waiting: dict[int, _Waiting] = {}
        self._settled: dict[str, str] = {}
        self._load()
        self._next_id = max([self._next_id, *self._waiting])  # a session that a full disk did not count must not take over their ids

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, app: str, progress: Progress, at: float) -> None:
        """Queue a report unless the same is waiting or, for an outcome, was acknowledged before.

        Args:
            at: wall-clock seconds since 1970.
        """
        key = _key(app, progress)
        if self._settled.get(app) == key or any(waiting.kept.key == key for waiting in self._waiting.values()):
            return
        self._next_id += 1
        report = Report(self._device, self._next_id, progress.seq, app, at, progress.phase, progress.bundle, progress.version,
                        progress.from_version, progress.outcome, progress.code, progress.detail[:500], progress.candidate,
                        progress.metrics, progress.rollout)
        kept = _Kept(report.id, app, key, bool(progress.outcome), msgspec.Raw(self._sign(report)))
        self._make_room()
        self._waiting[report.id] = _Waiting(kept)
        if kept.outcome:
            self._store(self._folder / f"{report.id}.json", msgspec.json.encode(kept))

    def acknowledged(self, report_id: int) -> None:
        """The host has it."""
        waiting = self._waiting.pop(report_id, None)
        if waiting is None or not waiting.kept.outcome:
            return
        self._settled[waiting.kept.app] = waiting.kept.key
        self._store(self._folder / "settled.json", msgspec.json.encode(self._settled))
        self._drop(report_id)

    def hurry(self) -> None:
        """The broker is back: everything is due now."""
        for waiting in self._waiting.values():
            waiting.due, waiting.attempt = 0.0, 0

    def due(self, mono: float) -> list[bytes]:
        """The reports to send now, oldest first; each is due again after its back-off."""
        bodies = []
        for _, waiting in sorted(self._waiting.items()):
            if waiting.due <= mono:
                bodies.append(bytes(waiting.kept.body))
                waiting.due = mono + backoff(waiting.attempt, self._unit(), base_s=RESEND_BASE_S, cap_s=RESEND_CAP_S)
                waiting.attempt += 1
        return bodies

    def next_due(self, mono: float) -> float | None:
        """Seconds until the next one is due; None when nothing waits."""
        return max(min(w.due for w in self._waiting.values()) - mono, 0.0) if self._waiting else None

    def _make_room(self) -> None:
        while len(self._waiting) >= MAX_REPORTS:
            progress = [number for number, waiting in self._waiting.items() if not waiting.kept.outcome]
            victim = min(progress or self._waiting)
            log.warning("more than %d reports wait: report %d is dropped", MAX_REPORTS, victim)
            if self._waiting.pop(victim).kept.outcome:
                self._drop(victim)

    def _load(self) -> None:
        for name in self._names():
            if not name.endswith(".json"):
                continue
            try:
                data = self._disk.read(self._folder / name) or b""
                if name == "settled.json":
                    self._settled = msgspec.json.decode(data, type=dict[str, str])
                    continue
                kept = msgspec.json.decode(data, type=_Kept)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("report file %s cannot be read and is left out: %s", name, error)
                continue
            self._waiting[kept.id] = _Waiting(kept)

    def _names(self) -> list[str]:
        try:
            return self._disk.names(self._folder)
        except OSError as error:
            log.warning("the reports' folder cannot be listed: %s", error)
            return []

    def _store(self, path: Path, data: bytes) -> None:
        """Durable when the disk lets us; a full disk must not keep a report from being sent."""
        fresh = path.with_suffix(".new")
        try:
            self._disk.put(fresh, data)
            self._disk.move(fresh, path)
        except OSError as error:
            log.warning("%s is kept in memory only: %s", path.name, error)

    def _drop(self, number: int) -> None:
        try:
            self._disk.remove(self._folder / f"{number}.json")
        except OSError as error:
            log.warning("report %d cannot be removed: %s", number, error)


def _key(app: str, progress: Progress) -> str:
    return f"{app}/{progress.seq}/{progress.bundle[:16]}/{progress.phase}/{progress.outcome}/{progress.code}"
