"""A board made of the contract, for tests: the agent's own link, key and trust store, and answers that the test chooses.

It fetches no blobs and runs no model; everything it says is really signed, everything it hears really verified.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract import topics
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import (
    Ack,
    AppState,
    Birth,
    Capability,
    Deployment,
    DeviceState,
    Instant,
    Report,
    Series,
    Telemetry,
    decode,
    encode,
)
from jetfleet_contract.sketch import sketch_of
from jetfleet_contract.trust import message_digest


class ContractDevice:
    """Introduces itself at every connection, verifies deployments, and answers them as `answers` says (by version).

    An answer of "" stays silent. Reports are repeated every half second until they are acknowledged.
    """

    def __init__(self, folder: Path, root: bytes, port: int, name: str, *, device_class: str = "cpu-x86", session: int = 1,
                 tls: dict[str, Any] | None = None) -> None:
        self.name = name
        self.device_class = device_class
        self.session = session
        self.identity = Identity.load_or_create(folder)
        self.trust = TrustStore(folder / "trust", root)
        self.answers: dict[str, str] = {}
        self.deployments: list[Deployment] = []
        self.acked: set[int] = set()
        self.refused: list[str] = []
        self._apps: dict[str, AppState] = {}
        self._waiting: dict[int, bytes] = {}
        self._pending: list[bytes] = []
        self._last = (0, "")
        self._next_report = 0
        self._stop = threading.Event()
        will = (topics.state(name), encode(DeviceState(name, False, session)))
        self.link = MqttLink(BrokerSettings("127.0.0.1", port, **tls or {}), f"dev-{name}", self._heard, self._up, lambda _: None, will)
        self.link.subscribe(topics.META, 1)
        self.link.subscribe(topics.desired(name), 1)
        self.link.subscribe(topics.ack(name), 1)
        self._resender = threading.Thread(target=self._resend, daemon=True)

    def __enter__(self) -> ContractDevice:
        self.link.start()
        self._resender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.say(topics.state(self.name), encode(DeviceState(self.name, False, self.session)))
        self.link.stop()
        self._resender.join()

    @property
    def numbers(self) -> list[int]:
        """The `seq` of every deployment that was accepted, in order."""
        return [deployment.seq for deployment in self.deployments]

    def version(self, app: str) -> str:
        return self._apps[app].version if app in self._apps else ""

    def birth(self) -> bytes:
        capability = Capability(self.device_class, self.device_class, "x86_64", simulated=True)
        birth = Birth(self.name, self.session, "0.1.0", 1, self.identity.public_hex, capability, tuple(self._apps.values()), self._last[0])
        return self.identity.sign("birth", birth)

    def say(self, topic: str, payload: bytes) -> None:
        assert self.link.publish(topic, payload)

    def send_window(self, number: int, milliseconds: list[float], *, app: str = "reader") -> None:
        """One telemetry window with these totals, in ms."""
        state = self._apps.get(app, AppState(app))
        series = Series(app, state.bundle, state.version, "fp32@onnxruntime:fp32", "front", len(milliseconds), len(milliseconds),
                        {"stale": 1}, {"total": sketch_of(milliseconds), "age": sketch_of([ms + 5 for ms in milliseconds])})
        gauges = {"cpu_pct": 12.0, "rss_mb": 60.0, "temperature_c": 51.0, f"{app}.rss_mb": 200.0}
        window = Telemetry(self.name, self.session, number, time.time(), 10.0, (series,), gauges)
        self.say(topics.telemetry(self.name), self.identity.sign("telemetry", window))

    def report(self, report: Report) -> None:
        """Send a report until it is acknowledged."""
        self._waiting[report.id] = self.identity.sign("report", report)
        self.say(topics.report(self.name), self._waiting[report.id])

    # --- the link's thread ------------------------------------------------------------------------------------

    def _up(self) -> None:
        self.say(topics.state(self.name), encode(DeviceState(self.name, True, self.session)))
        self.link.publish(topics.birth(self.name), self.birth(), retain=True)

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic == topics.META:
            self.trust.update(payload, _now())
            pending, self._pending = self._pending, []
            for envelope in pending:
                self._deploy(envelope)
        elif topic == topics.ack(self.name):
            number = decode(payload, Ack).id
            self.acked.add(number)
            self._waiting.pop(number, None)
        else:
            self._deploy(payload)

    def _deploy(self, envelope: bytes) -> None:
        try:
            deployment = self.trust.deployment(envelope, self.name, *self._last, _now())
            for app in deployment.apps:
                self.trust.bundle(app.bundle)
        except JetfleetError as error:
            self.refused.append(str(error))
            self._pending.append(envelope)
            return
        if deployment.seq == self._last[0]:
            return
        self._last = (deployment.seq, message_digest(deployment))
        self.deployments.append(deployment)
        for app in deployment.apps:
            old = self._apps.get(app.app, AppState(app.app))
            outcome = "committed" if old.bundle == app.bundle else self.answers.get(app.version, "committed")
            if not outcome:
                continue
            if outcome == "committed":
                self._apps[app.app] = AppState(app.app, app.bundle, app.name, app.version, "fp32@onnxruntime:fp32", "committed")
            self._next_report += 1
            code = "" if outcome == "committed" else "trial.probe"
            self.report(Report(self.name, self.session * 1000 + self._next_report, deployment.seq, app.app, time.time(), "idle", app.bundle,
                               app.version, old.version, outcome, code, "", rollout=deployment.rollout))  # type: ignore[arg-type]

    def _resend(self) -> None:
        while not self._stop.wait(0.5):
            for envelope in list(self._waiting.values()):
                self.link.publish(topics.report(self.name), envelope)


def _now() -> Instant:
    return Instant(time.monotonic(), "test", time.time(), True)
