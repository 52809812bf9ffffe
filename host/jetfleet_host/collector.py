"""The collector: a batch of messages from boards becomes one transaction, acknowledgements and news for the rollouts.

A message that is malformed, forged or of an unknown board is counted, its beginning kept (bounded), and never stops
the rest of its batch. A board's key is trusted at its first birth and pinned; another key later is refused and raises
the alarm `device.key-changed`. Two boards with one key raise `device.cloned`: their sessions go back and forth, or one
session number has two instances. A board that was shown two deployments of one number raises `trust.seq-fork`. An
acknowledgement is given only for what is committed to the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy.orm import Session

from jetfleet_contract import topics
from jetfleet_contract.errors import JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.messages import Birth, Report, Telemetry

from . import intake
from .intake import VerifyDevice
from .store import fleet
from .store.database import Database
from .store.models import Device

TRIM_EVERY = 2000
FORKS = ("trust.seq-fork", "trust.fork")


class Incoming(msgspec.Struct, frozen=True):
    """A message as it came; `at` is the host's wall clock."""

    topic: str
    payload: bytes
    at: float


class Ingested(msgspec.Struct):
    """What a batch leads to. `reports` holds new ones only; `acks` also those that were stored before."""

    acks: list[tuple[str, int]] = []
    reports: list[Report] = []
    births: list[Birth] = []
    rejected: int = 0


class Collector:
    """Stores what boards say. Used by one thread."""

    def __init__(self, database: Database, verify: VerifyDevice) -> None:
        self._database = database
        self._verify = verify
        self._since_trim = TRIM_EVERY

    def ingest(self, batch: Sequence[Incoming]) -> Ingested:
        """Store a batch in one transaction.

        Raises:
            StorageError: `store.database`; nothing of the batch is stored, and it may be given again.
        """
        outcome = Ingested()
        with self._database.session() as session:
            names = {message.topic: _named(message.topic) for message in batch}
            about_apps = {name for topic, name in names.items() if name and topic.endswith(("/birth", "/report"))}
            fleet.hold_devices(session, {name for name in names.values() if name}, with_apps=about_apps)
            for message in batch:
                self._one(session, message, outcome)
            self._since_trim += len(batch)
            if self._since_trim >= TRIM_EVERY and batch:
                fleet.trim(session, batch[-1].at)
                self._since_trim = 0
        return outcome

    def _one(self, session: Session, message: Incoming, outcome: Ingested) -> None:
        try:
            self._handler(message.topic)(session, message, outcome)
        except (MalformedError, UntrustedError) as error:
            outcome.rejected += 1
            _refuse(session, message, error)

    def _handler(self, topic: str) -> Callable[[Session, Incoming, Ingested], None]:
        leaf = topic.rpartition("/")[2]
        handlers = {"birth": self._birth, "state": self._state, "report": self._report,
                    "telemetry": self._telemetry, "result": self._result}
        if leaf not in handlers or topic != f"{topics.PREFIX}/d/{topics.device_of(topic)}/{leaf}":
            raise MalformedError("topic.bad", f"nothing is expected on {topic[:120]!r}")
        return handlers[leaf]

    def _birth(self, session: Session, message: Incoming, outcome: Ingested) -> None:
        name = topics.device_of(message.topic)
        if not message.payload:
            return  # a cleared retained birth
        known = fleet.known_device(session, name)
        claimed = intake.claimed_key(message.payload)
        if known is not None and claimed != known.key:
            fleet.raise_alarm(session, name, "device.key-changed",
                              f"board {name} shows key {claimed[:16]}..., pinned is {known.key[:16]}...: refused", message.at)
            raise UntrustedError("device.key-changed", f"board {name} signs with another key than the pinned one", where=message.topic)
        birth = intake.birth_from(message.topic, message.payload, claimed, self._verify)
        if known is not None:
            _watch_for_clones(session, known, birth, message.at)
        if known is not None and birth.session < known.session:
            raise UntrustedError("birth.stale", f"a birth of session {birth.session} came after session {known.session}")
        fleet.save_birth(session, known, birth, message.payload, message.at)
        outcome.births.append(birth)

    def _state(self, session: Session, message: Incoming, _outcome: Ingested) -> None:
        if not message.payload:
            return
        state = intake.state_from(message.topic, message.payload)
        device = _pinned(session, state.device)
        if state.session < device.session or state.online == device.online:
            return  # the Will of an earlier life, or no news
        device.online = state.online
        device.last_seen = max(device.last_seen, message.at)

    def _report(self, session: Session, message: Incoming, outcome: Ingested) -> None:
        device = _pinned(session, topics.device_of(message.topic))
        report = intake.report_from(message.topic, message.payload, device.key, self._verify)
        if fleet.save_report(session, report, message.at):
            outcome.reports.append(report)
            device.last_seen = max(device.last_seen, message.at)
        outcome.acks.append((report.device, report.id))

    def _telemetry(self, session: Session, message: Incoming, _outcome: Ingested) -> None:
        device = _pinned(session, topics.device_of(message.topic))
        window = intake.telemetry_from(message.topic, message.payload, device.key, self._verify)
        before = device.gauges
        if fleet.save_window(session, device, window, message.at):
            _tell_forks(session, before, window, message.at)
            for alarm in window.alarms:
                of = f"{alarm.app}/{alarm.source}" if alarm.source else alarm.app
                fleet.raise_alarm(session, window.device, alarm.code, intake.clean(f"{of}: {alarm.detail}"), message.at)

    def _result(self, session: Session, message: Incoming, _outcome: Ingested) -> None:
        device = _pinned(session, topics.device_of(message.topic))
        result = intake.result_from(message.topic, message.payload)
        fleet.save_result(session, device.device, result.app, message.payload, message.at)


def _named(topic: str) -> str:
    """The board that a topic names; empty when it names none."""
    try:
        return topics.device_of(topic)
    except MalformedError:
        return ""


def _pinned(session: Session, name: str) -> Device:
    device = fleet.known_device(session, name)
    if device is None:
        raise UntrustedError("device.unknown", f"board {name} has not introduced itself by a birth",
                             remedy="it is stored once the board's signed birth has come")
    return device


def _tell_forks(session: Session, before: str, window: Telemetry, now: float) -> None:
    """A board that was shown two signed bodies of one number says so in its counters."""
    known = msgspec.json.decode(before, type=dict[str, float])
    for code in FORKS:
        gauge = f"refused.{code}"
        if window.gauges.get(gauge, 0.0) > known.get(gauge, 0.0):
            what = f"board {window.device} was shown two different signed messages of one number"
            why = "somebody else signs for it, or the project was restored from an old copy"
            fleet.raise_alarm(session, window.device, code, f"{what}: {why}", now)


def _watch_for_clones(session: Session, known: Device, birth: Birth, now: float) -> None:
    """A session that goes back, or that two instances share, is no restart of one board: each start counts on and draws an instance."""
    if birth.session > known.session:
        return
    before = intake.stored_birth(known.birth) if birth.session == known.session else None
    shared = before is not None and "" not in (before.instance, birth.instance) and before.instance != birth.instance
    if birth.session < known.session or shared:
        what = f"session {birth.session} of board {birth.device} came after session {known.session} by the same key"
        why = "a second board has its identity, a backup of its state was restored, or an old birth is replayed"
        fleet.raise_alarm(session, birth.device, "device.cloned", f"{what}: {why}", now)


def _refuse(session: Session, message: Incoming, error: JetfleetError) -> None:
    fleet.save_rejected(session, message.topic, message.payload, error.code, intake.clean(error.what, 500), message.at)
