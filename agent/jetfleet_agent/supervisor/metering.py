"""What was received of each blob and by each app in a day, and whether more may come: the deployment's `DeliveryPolicy`, obeyed.

The days are durable, so that no restart forgets what was paid for. Bytes are written down before they are taken, in steps: after a power
cut an app's day counts up to one step too much, never too little; what is told of a blob may then lack up to 16 MiB. Bytes are those of
chunk messages; marks and wants are not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from jetfleet_agent.durable import write_file
from jetfleet_contract import budgets
from jetfleet_contract.budgets import DAY_S, DayCount
from jetfleet_contract.errors import MalformedError, StorageError
from jetfleet_contract.messages import DeliveryPolicy, Instant, Message, decode, encode
from jetfleet_contract.transfer import CHUNK_HEADER_BYTES

MAX_STEP = 16 << 20
STEPS_A_DAY = 32
TURN_S = 1.0
MAX_BLOBS = 1024
MAX_APPS = 256
MAX_FILE_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Traffic(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Bytes of one blob and of its chunk table. `useful` became part of it; `received` are all that came, repeats and chunks that nobody
    here wanted included: `unicast` to this board alone, `broadcast` to everybody, `mirror` by the second transport."""

    useful: int = 0
    unicast: int = 0
    broadcast: int = 0
    mirror: int = 0

    @property
    def received(self) -> int:
        return self.unicast + self.broadcast + self.mirror

    def add(self, other: Traffic) -> None:
        self.useful += other.useful
        self.unicast += other.unicast
        self.broadcast += other.broadcast
        self.mirror += other.mirror


class Admission(msgspec.Struct, frozen=True):
    """Whether a blob may be asked for; asked again in `wait_s`. `allowed` chunks may come (None: any number), `apart` if one by one."""

    free: bool = True
    wait_s: float = DAY_S
    allowed: int | None = None
    apart: bool = False


class _Days(Message, frozen=True):
    """The file."""

    apps: dict[str, DayCount] = {}
    traffic: dict[str, Traffic] = {}


class Metering:
    """See the module. Belongs to the control thread.

    `on_held(blob, code, why)` is told once when a blob has to wait (`delivery.hours`, `delivery.day-budget`), and of what cannot be judged
    (`delivery.clock`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        found = self._load()
        self._stored = found.apps
        self._days = dict(self._stored)
        self._traffic = found.traffic
        self._unsaved = 0
        self._owners: dict[str, tuple[str, DeliveryPolicy]] = {}
        self._promised: dict[str, tuple[str, int]] = {}
        self._told: dict[str, str] = {}
        self.on_held: Callable[[str, str, str], None] = lambda _blob, _code, _why: None

    # --- whose blobs they are ---------------------------------------------------------------------------------

    def assign(self, app: str, policy: DeliveryPolicy, blobs: Iterable[str]) -> None:
        """These blobs are fetched for `app`, from now on by its policy."""
        for blob in blobs:
            self._owners.pop(blob, None)
            self._owners[blob] = app, policy
        while len(self._owners) > MAX_BLOBS:
            self._owners.pop(next(iter(self._owners)))

    def take(self, blob: str) -> Traffic:
        """What came for a blob since the last call; counted once, whoever asks."""
        self._told.pop(blob, None)
        return self._traffic.pop(blob, Traffic())

    # --- one blob's way ---------------------------------------------------------------------------------------

    def admit(self, root: str, blob: str, chunks: int, chunk_size: int, now: Instant) -> Admission:
        """Whether `chunks` of `blob`, which is `root` or a page of its table, may be asked for now."""
        self._promised.pop(blob, None)
        owner = self._owners.get(root)
        if owner is None:
            return Admission()
        app, policy = owner
        message = chunk_size + CHUNK_HEADER_BYTES
        verdict = budgets.judge(policy.hours, policy.bytes_per_day, self._days.get(app, DayCount()), now, message)
        if verdict.code or verdict.note:
            self._tell(root, verdict.code or "delivery.clock", verdict.why or verdict.note)
        if verdict.code:
            return Admission(False, verdict.wait_s)
        if verdict.left is None:
            return Admission(wait_s=verdict.wait_s)
        promised = sum(size for other, size in self._promised.values() if other == app)
        left = (verdict.left - promised) // message
        if left <= 0:
            return Admission(False, TURN_S)  # other blobs of this app have all that is left, until they are done
        plenty = chunks + chunks // 2 + 8
        allowed = min(left, plenty)
        self._promised[blob] = app, allowed * message
        return Admission(True, verdict.wait_s, allowed, left < plenty)

    def count(self, root: str, blob: str, size: int, kind: str, now: Instant) -> None:
        """A chunk message of `size` bytes came: `kind` is unicast, broadcast or mirror. A full disk stops nothing."""
        traffic = self._of(root)
        setattr(traffic, kind, getattr(traffic, kind) + size)
        self._unsaved += size
        if self._unsaved >= MAX_STEP:
            self._store(self._stored)
        app, policy = self._owners.get(root, ("", None))
        if policy is None or not policy.bytes_per_day:
            return
        if blob in self._promised:
            self._promised[blob] = app, max(0, self._promised[blob][1] - size)
        self._days[app] = budgets.used(self._days.get(app, DayCount()), size, now)
        self._note(app, max(1, min(MAX_STEP, policy.bytes_per_day // STEPS_A_DAY)))

    def useful(self, root: str, size: int) -> None:
        """`size` bytes of what came became part of the blob."""
        self._of(root).useful += size

    def ended(self, blob: str) -> None:
        """Nothing more comes of this blob: what it was promised is free, and what was used is written down exactly."""
        if self._promised.pop(blob, None) is not None and self._stored != self._days:
            self._store(dict(self._days))

    def close(self) -> None:
        """Write down what there is."""
        if self._unsaved or self._stored != self._days:
            self._store(dict(self._days))

    # --- inside -----------------------------------------------------------------------------------------------

    def _of(self, root: str) -> Traffic:
        known = self._traffic.get(root)
        if known is None:
            known = self._traffic[root] = Traffic()
            while len(self._traffic) > MAX_BLOBS:
                self._traffic.pop(next(iter(self._traffic)))
        return known

    def _tell(self, root: str, code: str, why: str) -> None:
        if self._told.get(root) != code:
            self._told[root] = code
            self.on_held(root, code, why)

    def _note(self, app: str, ahead: int) -> None:
        today, stored = self._days[app], self._stored.get(app, DayCount())
        if stored.day == today.day and today.used <= stored.used:
            return
        self._store({**self._stored, app: msgspec.structs.replace(today, used=today.used + ahead)})

    def _store(self, days: dict[str, DayCount]) -> None:
        while len(days) > MAX_APPS:
            days.pop(min(days, key=lambda app: days[app].day))
        try:
            write_file(self._path, encode(_Days(days, self._traffic)))
        except StorageError as error:
            _log.warning("the day's bytes are not stored: %s", error.what)
            return
        self._stored, self._unsaved = days, 0

    def _load(self) -> _Days:
        try:
            return decode(self._path.read_bytes(), _Days, limit=MAX_FILE_BYTES)
        except FileNotFoundError:
            return _Days()
        except (OSError, MalformedError) as error:
            _log.warning("the day's bytes cannot be read and begin anew: %s", error)
            return _Days()
