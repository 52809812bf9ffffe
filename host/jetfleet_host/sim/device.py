"""A virtual device: what it is, what it keeps, what happens to it, and the ledger of what it did, which outlives all its lives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Instant, Report
from jetfleet_contract.trust import seal

from .chunk_port import PortCounts
from .disk import Cut, Disk
from .faults import Event, Faults, is_chosen, stream
from .inference import BoardClass, class_of
from .transfers import TransferCounts

if TYPE_CHECKING:
    from .life import Life
    from .world import World

STRIKE_WAIT_S = 2.0

_log = logging.getLogger(__name__)


class Told(msgspec.Struct, frozen=True):
    """An outcome that a device made durable: `at` is this process's wall clock, whatever the device's says."""

    id: int
    seq: int
    bundle: str
    version: str
    outcome: str
    code: str
    rollout: str
    at: float


class Ledger(msgspec.Struct):
    """What one device did in all its lives, as the oracle reads it.

    `accepted`: when each deployment was stored, by number, with its rollout and bundle. `windows`: frames done of each telemetry window,
    by session, in order. `cut` are the sessions that did not end by themselves. `codes` counts errors by their stable code.
    """

    accepted: dict[int, tuple[float, str, str]] = {}
    told: dict[int, Told] = {}
    acked: set[int] = set()
    windows: dict[int, list[int]] = {}
    cut: set[int] = set()
    codes: dict[str, int] = {}
    faults: dict[str, int] = {}
    port: PortCounts = msgspec.field(default_factory=PortCounts)
    transfers: TransferCounts = msgspec.field(default_factory=TransferCounts)

    def count(self, code: str) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1

    def fault(self, kind: str, more: int = 1) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + more


class BoardClock:
    """Seconds since boot, and a wall clock that may be wrong. `skew` is added to it; a board whose clock jumped still trusts it."""

    def __init__(self) -> None:
        self._boots = 0
        self._since = time.monotonic()
        self.skew = 0.0

    def reboot(self) -> None:
        self._boots += 1
        self._since = time.monotonic()

    def mono(self) -> float:
        return time.monotonic() - self._since

    def now(self) -> Instant:
        return Instant(self.mono(), f"boot-{self._boots}", time.time() + self.skew, True)


class Device:
    """See the module. All of it belongs to the event loop."""

    def __init__(self, name: str, world: World, faults: Faults, seed: int) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self.name = name
        self.world = world
        self.faults = faults
        self.seed = seed
        self.board: BoardClass = class_of(stream(seed, name, "class"))
        self.slow_s = faults.readers.slow_ms / 1000 if is_chosen(seed, name, "slow", faults.readers.slow_share) else 0.0
        self.was_slow = self.slow_s > 0
        self.disk = Disk()
        self.clock = BoardClock()
        self.ledger = Ledger()
        self.life: Life | None = None
        self.calm = True
        self._draws = stream(seed, name, "device")
        self.chunk_draws = stream(seed, name, "chunks")
        self._key = Ed25519PrivateKey.generate()
        self.public_hex = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        self._lives = 0
        self._power_goes = False
        self._down_s = 1.0

    def sign(self, kind: str, message: msgspec.Struct) -> bytes:
        """The envelope (JSON) of `message`, signed as `kind`."""
        return seal(kind, message, self.public_hex, self._key.sign)

    def refuses(self, bundle: str) -> bool:
        """Whether this board's trial finds the bundle bad."""
        return is_chosen(self.seed, self.name, f"bad-{bundle[:16]}", self.world.traits(bundle).bad_share)

    def told(self, report: Report) -> None:
        """An outcome is durable."""
        self.ledger.told.setdefault(report.id, Told(report.id, report.seq, report.bundle, report.version, report.outcome, report.code,
                                                    report.rollout, time.time()))

    # --- lives ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Power on, or start the agent again."""
        from .life import Life

        if self.life is not None:
            return
        self._lives += 1
        self.life = Life(self, stream(self.seed, self.name, f"life-{self._lives}"))
        self.guard(self.life.begin)

    def guard(self, work: Callable[[], None]) -> None:
        """Run a piece of this device's work: an error is counted by its code, a planned blow at a write ends the life."""
        try:
            work()
        except Cut:
            self._died(power=self._power_goes)
            self.world.loop.call_later(self._down_s, self.start)
        except JetfleetError as error:
            self.ledger.count(error.code)
            _log.info("%s: %s [%s]", self.name, error.what, error.code)
        except Exception:  # noqa: BLE001 - one device's fault must not end the others; the oracle finds it in the counts
            self.ledger.count("internal")
            _log.exception("%s: internal error", self.name)

    def _died(self, *, power: bool) -> None:
        life, self.life = self.life, None
        if life is not None:
            life.cut()
            self.ledger.cut.add(life.session)
        self.disk.blow = ""
        self._power_goes = False
        if power:
            self.ledger.fault("chunk-lost-with-power", self.disk.lose_power(self._draws))
            self.clock.reboot()

    # --- what happens to it -----------------------------------------------------------------------------------

    def suffer(self, event: Event) -> None:
        """One event of the schedule. A device that is down, or about to be, suffers nothing more."""
        if self.life is None or self.disk.blow or self.calm:
            return
        self.ledger.fault(event.kind)
        loop = self.world.loop
        if event.kind == "sleep":
            self.life.sleep(True)
            loop.call_later(event.lasts, self._wake, self.life)
        elif event.kind == "clock-jump":
            self.clock.skew = event.amount
            loop.call_later(event.lasts, self._set_clock)
        else:
            self._power_goes, self._down_s = event.kind == "power-cut", event.lasts
            if event.strike:
                self.disk.blow = event.strike
                loop.call_later(STRIKE_WAIT_S, self._strike_anyway, self.life)
            else:
                self._strike()

    def _strike(self) -> None:
        self._died(power=self._power_goes)
        self.world.loop.call_later(self._down_s, self.start)

    def _strike_anyway(self, life: Life) -> None:
        """Nothing was written for a while: then it dies in the midst of nothing."""
        if self.life is life and self.disk.blow:
            self._strike()

    def _wake(self, life: Life) -> None:
        if self.life is life:
            life.sleep(False)

    def _set_clock(self) -> None:
        self.clock.skew = 0.0
        if self.life is not None:
            self.life.soon()

    def heal(self) -> None:
        """Nothing more happens to it."""
        self.calm = True
        self.slow_s = 0.0
        self.disk.blow = ""
        self._set_clock()
        if self.life is not None:
            self.life.heal()
