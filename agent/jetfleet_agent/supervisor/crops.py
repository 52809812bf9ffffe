"""What a pipeline is not sure of, on its way to the host: the policy is enforced here again, whatever the pipeline believes.

A crop leaves only if the signed deployment allows a purpose and names a key, if the allowance has bytes left, and once the audit log tells
of it. It leaves sealed and signed. What the host may keep is repeated until the host has it; what is only asked about is not, because it
would be too late. A policy that is withdrawn takes effect with the deployment that says so: everything that waits is deleted.

    <state>/crops/<id>.json       sealed crops that the host does not have yet
    <state>/crops/allowance.json  bytes used, by app
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from jetfleet_agent import ipc
from jetfleet_agent.crop_spool import clear_spool, spool_folder, take_crop
from jetfleet_agent.durable import make_folder, write_file
from jetfleet_contract import topics
from jetfleet_contract.allowance import Allowance, ask
from jetfleet_contract.broker_limits import BrokerLimits, payload_room
from jetfleet_contract.crops import MAX_CROP_BYTES, NUMBERS_PER_SESSION, PURPOSE, Answer, Crop, check_detections, pack, unpack
from jetfleet_contract.errors import IncompatibleError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import AppConfig, Deployment, Instant, Message

from .audit import AuditLog, Departure
from .commands import Signer
from .sealing import seal

log = logging.getLogger(__name__)

MAX_PENDING = 256
MAX_WAITING = 64
AGAIN_S = 60.0
MOST_TRIES = 10
IDLE_S = 60.0
STEPS_AN_HOUR = 32
T = TypeVar("T", bound=msgspec.Struct)


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    @property
    def limits(self) -> BrokerLimits: ...
    def subscribe(self, topic: str, qos: int) -> None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class HostWord(Protocol):
    """What is used of a TrustStore."""

    def from_host(self, data: bytes, kind: str, message: type[T]) -> T: ...


class _Rules(msgspec.Struct, frozen=True):
    """What one app may do, by the deployment that counts."""

    answer: bool
    keep: bool
    receiver: str
    config: AppConfig

    @property
    def purpose(self) -> str:
        return "+".join(name for name, on in (("cascade", self.answer), ("harvest", self.keep)) if on)


class _Asked(msgspec.Struct, frozen=True):
    """A crop under way: whose pipeline asked under which name, and until when (monotonic) its answer counts."""

    app: str
    name: str
    until: float


class _Kept(Message, frozen=True):
    """A sealed crop that the host may keep and does not have yet, as it is stored. `body` is the signed envelope."""

    id: int
    app: str
    sha256: str
    receiver: str
    body: msgspec.Raw


class _Due:
    __slots__ = ("at", "kept", "tries")

    def __init__(self, kept: _Kept, at: float, tries: int) -> None:
        self.kept, self.at, self.tries = kept, at, tries


class Crops:
    """See the module. Used by the control thread only.

    Args:
        run: the folder of the supervisor's socket. session: this start's number; numbers of different starts never meet.
        tell: gives a pipeline an order.
    """

    def __init__(self, state: Path, run: Path, link: Link, device: str, session: int, identity: Signer, trust: HostWord,
                 tell: Callable[[str, ipc.Order], None], clock: Callable[[], Instant]) -> None:
        self._folder = state / "crops"
        self._run = run
        self._link = link
        self._device = topics.check_name("device", device)
        self._next = session * NUMBERS_PER_SESSION
        self._identity = identity
        self._trust = trust
        self._tell = tell
        self._clock = clock
        self._audit = AuditLog(state / "audit")
        self._rules: dict[str, _Rules] = {}
        self._asked: dict[int, _Asked] = {}
        self._waiting: dict[int, _Due] = {}
        self._allowances = self._load_allowances()
        self._stored = dict(self._allowances)
        self._counts: dict[str, int] = {"sent": 0, "bytes": 0, "refused": 0, "answers": 0}
        self._load_waiting()

    # --- called by the supervisor -----------------------------------------------------------------------------

    def begin(self) -> None:
        self._link.subscribe(topics.answer(self._device), 1)

    @property
    def gauges(self) -> dict[str, float]:
        """Crops and bytes that left since this start, those that were not let out, and answers."""
        told = {f"crops_{name}": float(value) for name, value in self._counts.items()}
        return {**told, "crops_waiting": float(len(self._waiting))} if any(self._counts.values()) or self._waiting else {}

    def follow(self, deployment: Deployment) -> None:
        """These are the rules from now on. What waited by rules that are gone is deleted."""
        rules = {app.app: rule for app in deployment.apps if (rule := _rules_of(app.config, deployment.receiver)).purpose}
        for app in {*self._rules, *rules, *(due.kept.app for due in self._waiting.values()), *self._spooled()}:
            self._change(app, self._rules.get(app), rules.get(app))
        self._rules = rules

    def ready(self, app: str, event: ipc.CropReady) -> None:
        """A pipeline has a crop for the host. Its file is gone afterwards, whatever became of it.

        Raises:
            MalformedError: what a pipeline of ours does not say. Every other refusal is told to the pipeline.
        """
        try:
            self._leave(app, event)
        except JetfleetError as error:
            self._counts["refused"] += 1
            self._tell(app, ipc.Answered(event.name, code=error.code))
            if isinstance(error, MalformedError):
                raise
            log.info("%s: a crop stays: %s [%s]", app, error.what, error.code)

    def on_message(self, topic: str, payload: bytes) -> bool:
        """Take an answer; False when `topic` carries none.

        Raises:
            UntrustedError: not signed by the host, `crop.unknown` (never asked, or answered before). MalformedError.
        """
        if topic != topics.answer(self._device):
            return False
        answer = self._trust.from_host(payload, "answer", Answer)
        if answer.device != self._device:
            raise UntrustedError("crop.device", f"an answer for {answer.device[:63]!r} came here")
        check_detections(answer.detections)
        asked, waiting = self._asked.pop(answer.id, None), self._waiting.get(answer.id)
        if waiting is not None and answer.code != "crop.busy":
            self._forget(answer.id)
        if asked is None and waiting is None:
            raise UntrustedError("crop.unknown", f"an answer to crop {answer.id}, which is not open")
        self._counts["answers"] += 1
        if asked is not None:
            self._tell(asked.app, ipc.Answered(asked.name, answer.detections, answer.code))
        return True

    def on_link_up(self) -> None:
        for due in self._waiting.values():
            due.at = 0.0

    def tick(self) -> float:
        """Send again what the host should have; seconds until the next tick."""
        now = self._clock()
        for number in [number for number, asked in self._asked.items() if asked.until < now.mono]:
            del self._asked[number]
        if not self._link.connected:
            return IDLE_S
        for number, due in list(self._waiting.items()):
            if due.at <= now.mono:
                self._send_again(number, due, now)
        return max(0.0, min((due.at - now.mono for due in self._waiting.values()), default=IDLE_S))

    # --- the rules --------------------------------------------------------------------------------------------

    def _change(self, app: str, before: _Rules | None, after: _Rules | None) -> None:
        if after is None:
            clear_spool(spool_folder(self._run, app))
        if after is None or not after.keep:
            for number in [number for number, due in self._waiting.items() if due.kept.app == app]:
                self._forget(number)
        if (before.purpose if before else "") != (after.purpose if after else ""):
            try:
                self._audit.add(Departure(self._clock().wall, "policy", app, after.purpose if after else "",
                                          receiver=after.receiver if after else ""))
            except StorageError as error:
                log.warning("%s", error.what)

    def _spooled(self) -> list[str]:
        try:
            return [entry.name for entry in (self._run / "crops").iterdir()]
        except OSError:
            return []

    # --- on the way out ---------------------------------------------------------------------------------------

    def _leave(self, app: str, event: ipc.CropReady) -> None:
        jpeg = take_crop(spool_folder(self._run, app), event.name)
        rules = self._rules.get(app)
        if rules is None:
            raise UntrustedError("crop.not-allowed", f"no signed policy lets a picture of {app} leave this board")
        if not self._link.connected and not rules.keep:
            raise IncompatibleError("crop.offline", "there is no broker to ask over")
        if event.note.app != app:
            raise MalformedError("crop.bad", f"a crop of {event.note.app[:63]!r} came from {app}")
        plain = pack(event.note, jpeg)
        unpack(plain)
        self._next += 1
        number, now = self._next, self._clock()
        sealed = seal(rules.receiver, plain, device=self._device, purpose=PURPOSE, name=app, version=number)
        crop = Crop(self._device, number, app, now.wall, rules.answer, rules.keep, sealed.enc, sealed.box)
        body = self._identity.sign("crop", crop)
        kept = _Kept(number, app, hashlib.sha256(jpeg).hexdigest(), rules.receiver, msgspec.Raw(body))
        if self._link.connected:
            self._send(kept, rules, now)
        if rules.answer and self._link.connected:
            while len(self._asked) >= MAX_PENDING:
                del self._asked[next(iter(self._asked))]
            self._asked[number] = _Asked(app, event.name, now.mono + 10.0 * _deadline(rules.config))
        if rules.keep:
            self._wait(kept, now)

    def _send(self, kept: _Kept, rules: _Rules, now: Instant) -> None:
        """Raises IncompatibleError `crop.large`, `crop.hour-budget`, `crop.day-budget`; StorageError `audit.write`."""
        body, topic = bytes(kept.body), topics.crop(self._device)
        if len(body) > payload_room(self._link.limits, topic, MAX_CROP_BYTES):
            raise IncompatibleError("crop.large", f"the broker takes no crop of {len(body)} bytes")
        self._pay(kept.app, len(body), rules.config, now)
        self._audit.add(Departure(now.wall, "sent", kept.app, rules.purpose, kept.id, len(body), kept.sha256, kept.receiver))
        if self._link.publish(topic, body, qos=1, expiry_s=max(1, round(_deadline(rules.config))) if not rules.keep else 0):
            self._counts["sent"] += 1
            self._counts["bytes"] += len(body)

    def _send_again(self, number: int, due: _Due, now: Instant) -> None:
        rules = self._rules.get(due.kept.app)
        due.at, due.tries = now.mono + AGAIN_S * (1 + due.tries), due.tries + 1
        if rules is None or due.tries > MOST_TRIES:
            self._forget(number)
            return
        try:
            self._send(due.kept, rules, now)
        except JetfleetError as error:
            log.info("%s: a crop waits: %s", due.kept.app, error.what)

    # --- bytes ------------------------------------------------------------------------------------------------

    def _pay(self, app: str, size: int, config: AppConfig, now: Instant) -> None:
        per_hour = config.cascade.bytes_per_hour if config.cascade else 0
        grant = ask(self._allowances.get(app, Allowance()), size, per_hour, config.privacy.bytes_per_day, now)
        self._allowances[app] = grant.allowance
        if grant.code:
            raise IncompatibleError(grant.code, f"{app} has no {size} bytes left")
        stored = self._stored.get(app)
        if stored is None or grant.allowance.spent > stored.spent or grant.allowance.day.used > stored.day.used or (
                grant.allowance.day.day != stored.day.day):
            self._store_ahead(app, grant.allowance, max(1, per_hour // STEPS_AN_HOUR))

    def _store_ahead(self, app: str, allowance: Allowance, step: int) -> None:
        """Written down before the bytes leave, a step more than was used: after a power cut too much was used, never too little."""
        ahead = msgspec.structs.replace(allowance, spent=allowance.spent + step,
                                        day=msgspec.structs.replace(allowance.day, used=allowance.day.used + step))
        stored = {**{name: kept for name, kept in self._stored.items() if name in self._rules}, app: ahead}
        self._need_folder()
        write_file(self._folder / "allowance.json", msgspec.json.encode(stored), mode=0o600)
        self._stored = stored

    def _load_allowances(self) -> dict[str, Allowance]:
        try:
            return msgspec.json.decode((self._folder / "allowance.json").read_bytes(), type=dict[str, Allowance])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("what crops have used cannot be read and begins anew: %s", type(error).__name__)
            return {}

    # --- what the host may keep -------------------------------------------------------------------------------

    def _wait(self, kept: _Kept, now: Instant) -> None:
        while len(self._waiting) >= MAX_WAITING:
            self._forget(min(self._waiting))
        self._need_folder()
        write_file(self._folder / f"{kept.id}.json", msgspec.json.encode(kept), mode=0o600)
        self._waiting[kept.id] = _Due(kept, now.mono + AGAIN_S if self._link.connected else 0.0, 1)

    def _forget(self, number: int) -> None:
        self._waiting.pop(number, None)
        (self._folder / f"{number}.json").unlink(missing_ok=True)

    def _load_waiting(self) -> None:
        for path in sorted(self._folder.glob("[0-9]*.json")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
                path.unlink(missing_ok=True)
                continue
            self._waiting[kept.id] = _Due(kept, 0.0, 1)
            self._next = max(self._next, kept.id)

    def _need_folder(self) -> None:
        try:
            make_folder(self._folder, mode=0o700)
        except OSError as error:
            raise StorageError("store.write", f"cannot make {self._folder}: {error.strerror}", where=str(self._folder)) from None


class NoCrops:
    """For a supervisor that was given no way out: every crop stays."""

    gauges: Mapping[str, float] = {}

    def begin(self) -> None: ...
    def follow(self, deployment: Deployment) -> None: ...
    def ready(self, app: str, event: ipc.CropReady) -> None: ...
    def on_link_up(self) -> None: ...

    def on_message(self, topic: str, payload: bytes) -> bool:  # noqa: ARG002 - the shape of Crops
        return False

    def tick(self) -> float:
        return IDLE_S


def _rules_of(config: AppConfig, receiver: str) -> _Rules:
    on = config.cascade is not None and bool(receiver)
    return _Rules(on and "cascade" in config.privacy.purposes, on and "harvest" in config.privacy.purposes, receiver, config)


def _deadline(config: AppConfig) -> float:
    return config.cascade.deadline_s if config.cascade else 1.0
