"""Signed commands to this board: each is obeyed at most once and answered, signed, on its own response topic."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from jetfleet_contract import __version__, topics
from jetfleet_contract.bench_orders import BenchAnswer, BenchOrder
from jetfleet_contract.broker_limits import BrokerLimits, payload_room
from jetfleet_contract.engine_use import Judged
from jetfleet_contract.errors import JetfleetError, StorageError
from jetfleet_contract.messages import MAX_MESSAGE_BYTES, AppState, Command, Instant, Response, encode
from jetfleet_contract.policy import Choice, Explanation
from jetfleet_contract.uploads import Kind

from .bench_work import BenchOutcome

log = logging.getLogger(__name__)

RESPONSE_EXPIRY_S = 3600
IDLE_S = 3600.0
FULL_S = 5.0
LOG_LINES = 500
MAX_LOG_LINES = 2000


class Publishing(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    @property
    def limits(self) -> BrokerLimits: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class Opening(Protocol):
    """What is used of a TrustStore."""

    def command(self, data: bytes, device: str, now: Instant) -> Command: ...


class Signer(Protocol):
    """What is used of an Identity."""

    @property
    def public_hex(self) -> str: ...
    def sign(self, kind: str, message: msgspec.Struct) -> bytes: ...


class Restarting(Protocol):
    """What is used of Pipelines."""

    def restart(self, app: str) -> bool: ...


class Giving(Protocol):
    """What is used of Uploads."""

    def offer_bytes(self, data: bytes, kind: Kind, name: str, *, command: int = 0) -> str: ...


class Keeping(Protocol):
    """What is used of a SecretStore."""

    def accept(self, name: str, version: int, box: str) -> None: ...
    def versions(self) -> dict[str, int]: ...


class Engineering(Protocol):
    """What is used of Engines."""

    def obey(self, op: str, command: int, args: Mapping[str, str]) -> tuple[str, str, str]: ...
    def explained(self) -> dict[str, str]: ...
    def judged(self) -> tuple[Judged, ...]: ...


class Benching(Protocol):
    """What is used of a BoardBench."""

    @property
    def outcome(self) -> BenchOutcome | None: ...
    def begin(self, command: int, args: Mapping[str, str]) -> BenchOrder: ...
    def tick(self) -> float: ...
    def answered(self) -> None: ...


class Commands:
    """Opens commands, carries them out and answers: at once, or a bench when it has ended. Used by the control thread only.

    Args:
        bench: None on a board that measures nothing for the host.
        states: what each app runs now. choices: per app, the table behind the last choice made since this start.
        log_lines: the last so many lines of this agent's log. changed: called when a secret is another one now.
    """

    def __init__(self, device: str, link: Publishing, trust: Opening, identity: Signer, pipelines: Restarting,
                 uploads: Giving, log_lines: Callable[[int], list[str]], states: Callable[[], tuple[AppState, ...]],
                 choices: Callable[[], Mapping[str, Choice]], clock: Callable[[], Instant], secrets: Keeping,
                 changed: Callable[[], None], engines: Engineering, bench: Benching | None = None) -> None:
        self._bench = bench
        self._owed = b""
        self._engines = engines
        self._device = device
        self._link = link
        self._trust = trust
        self._identity = identity
        self._pipelines = pipelines
        self._uploads = uploads
        self._log_lines = log_lines
        self._states = states
        self._choices = choices
        self._secrets = secrets
        self._changed = changed
        self._clock = clock

    def arrived(self, payload: bytes) -> None:
        """Obey an envelope from the command topic.

        Raises:
            UntrustedError, MalformedError, StorageError: as `TrustStore.command`; nothing was done and nothing is answered.
        """
        command = self._trust.command(payload, self._device, self._clock())
        log.info("command %d: %s", command.seq, command.op)
        if command.op == "bench" and self._bench is not None:
            self._begin_bench(self._bench, command)
        else:
            self._publish(command.seq, self._signed(command.seq, *self._obey(command)))

    def tick(self) -> float:
        """Answer a bench that has ended, once there is a link. Seconds until the next call is wanted."""
        if self._bench is None:
            return IDLE_S
        wait = self._bench.tick()
        outcome = self._bench.outcome
        if outcome is None or not self._link.connected:
            return wait
        self._owed = self._owed or self._bench_answer(outcome)
        if not self._publish(outcome.order.command, self._owed):
            return FULL_S
        self._owed = b""
        self._bench.answered()
        return wait

    def _signed(self, seq: int, code: str, detail: str, body: str) -> bytes:
        return self._identity.sign("response", Response(self._device, seq, self._clock().wall, code, detail, body))

    def _publish(self, seq: int, signed: bytes) -> bool:
        return self._link.publish(topics.response(self._device, seq), signed, qos=1, expiry_s=RESPONSE_EXPIRY_S)

    def _begin_bench(self, bench: Benching, command: Command) -> None:
        try:
            bench.begin(command.seq, command.args)
        except JetfleetError as error:
            self._publish(command.seq, self._signed(command.seq, error.code, error.what, ""))

    def _bench_answer(self, outcome: BenchOutcome) -> bytes:
        """The record itself, or where a message cannot hold it the name of the upload that follows."""
        seq, record = outcome.order.command, outcome.record
        if record is None:
            return self._signed(seq, outcome.code, outcome.detail, "")
        signed = self._signed(seq, "", f"{outcome.order.text} is measured", encode(BenchAnswer(record)).decode())
        if len(signed) <= payload_room(self._link.limits, topics.response(self._device, seq), MAX_MESSAGE_BYTES):
            return signed
        try:
            blob = self._uploads.offer_bytes(encode(record), "bench", f"bench-{seq}.json", command=seq)
        except StorageError as error:
            return self._signed(seq, error.code, error.what, "")
        return self._signed(seq, "", f"{outcome.order.text} is measured, its record follows", encode(BenchAnswer(blob=blob)).decode())

    def _obey(self, command: Command) -> tuple[str, str, str]:
        """Code (empty when it was done), detail and body of the answer."""
        if command.op == "restart":
            return self._restart(command.args.get("app", ""))
        if command.op == "explain":
            return "", "", self._explain()
        if command.op == "logs":
            return self._logs(command.args.get("lines", ""), command.seq)
        if command.op == "secret":
            return self._secret(command.args)
        if command.op in ("engine-build", "engine-certify"):
            return self._engines.obey(command.op, command.seq, command.args)
        return "command.unsupported", f"{command.op} is not supported yet by agent {__version__}", ""

    def _secret(self, args: Mapping[str, str]) -> tuple[str, str, str]:
        """Keep, or forget, a sealed secret; without a name only tell which ones are kept. The answer never has a value."""
        name, version = args.get("name", ""), args.get("version", "")
        if name:
            try:
                self._secrets.accept(name, int(version) if version.isascii() and version.isdigit() and len(version) < 20 else 0,
                                     args.get("box", ""))
            except JetfleetError as error:
                return error.code, error.what, ""
            if args.get("box"):
                self._changed()
        return "", "", json.dumps(self._secrets.versions(), sort_keys=True)

    def _restart(self, app: str) -> tuple[str, str, str]:
        if self._pipelines.restart(app):
            return "", f"the pipeline of {app} restarts", ""
        return "app.unknown", f"no pipeline of {app[:63]!r} runs here", ""

    def _explain(self) -> str:
        return encode(Explanation({state.app: state for state in self._states()}, dict(self._choices()),
                                  self._engines.explained(), self._engines.judged())).decode()

    def _logs(self, wanted: str, seq: int) -> tuple[str, str, str]:
        """Offer the last lines, compressed; the body names the blob and counts the lines."""
        count = min(int(wanted), MAX_LOG_LINES) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else LOG_LINES
        lines = self._log_lines(count)
        data = gzip.compress("".join(f"{line}\n" for line in lines).encode(errors="replace"), mtime=0)
        try:
            blob = self._uploads.offer_bytes(data, "logs", f"agent-{seq}.log.gz", command=seq)
        except StorageError as error:
            return error.code, error.what, ""
        return "", f"{len(lines)} lines follow", json.dumps({"blob": blob, "lines": len(lines), "size": len(data)}, sort_keys=True)
