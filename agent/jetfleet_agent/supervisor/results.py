"""What pipelines answered, on its way out of the board: to the broker within a budget, and to webhooks.

Never waits. What does not go out is counted by cause, as gauges ``APP.sink.mqtt.CAUSE`` and ``APP.sink.webhook-N.CAUSE`` over the life
of this process: `thinned` (more than the settings' `per_second`), `budget` (its `bytes_per_hour`), `link` (no broker, or it takes no more).
"""

from __future__ import annotations

import logging
import secrets as randomness
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from jetfleet_contract import pacing, topics
from jetfleet_contract.app_config import MqttResults, WebhookSink
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import AppConfig, Result, encode
from jetfleet_contract.pacing import Pace
from jetfleet_contract.sink_rules import SECRET, sink_name, without_doubles

from .webhooks import Address, Poster, Webhook

log = logging.getLogger(__name__)

MAX_SOURCES = 256
BURST_S = 60.0
LEAST_BURST_BYTES = 64 * 1024
LOOK_S = 5.0
CLOSE_S = 2.0


class Publishing(Protocol):
    """What is used of an MqttLink here."""

    @property
    def connected(self) -> bool: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class Revealing(Protocol):
    """What is used of a SecretStore here."""

    def reveal(self, name: str) -> str: ...


class _App:
    """One app's ways out, as its settings had them last."""

    def __init__(self) -> None:
        self.config: AppConfig | None = None
        self.pace: Pace | None = None
        self.last: dict[str, float] = {}
        self.dropped: Counter[str] = Counter()
        self.webhooks: dict[WebhookSink, tuple[str, Webhook]] = {}


class ResultDelivery:
    """See the module. Used by the control thread only.

    Args:
        config_of: the settings of an app that runs, else None. Webhooks are renewed when another object comes: a changed setting, or a
            secret that was set anew.
        webhook_ca: file with the CA of webhooks; empty: the system's.
        clock: monotonic seconds. `unit`: random numbers in 0..1.
    """

    def __init__(self, device: str, link: Publishing, config_of: Callable[[str], AppConfig | None], secrets: Revealing, webhook_ca: str,
                 clock: Callable[[], float], unit: Callable[[], float]) -> None:
        self._device = device
        self._link = link
        self._config_of = config_of
        self._secrets = secrets
        self._webhook_ca = webhook_ca
        self._clock = clock
        self._unit = unit
        self._apps: dict[str, _App] = {}

    def send(self, name: str, results: Sequence[Result]) -> None:
        """Hand on an app's results."""
        config = self._config_of(name)
        if config is None:
            return
        app = self._apps.setdefault(name, _App())
        if app.config is not config:
            self._configure(name, app, config)
        for result in results:
            body = encode(result)
            for _, webhook in app.webhooks.values():
                webhook.offer(body)
            if config.publish_results:
                self._publish(app, config.results, result, body)

    @property
    def gauges(self) -> dict[str, float]:
        """Counters by app; zeros are left out."""
        told = {f"{name}.sink.mqtt.{cause}": float(count) for name, app in self._apps.items() for cause, count in app.dropped.items()}
        return told | {f"{name}.sink.{label}.{what}": float(count) for name, app in self._apps.items()
                       for label, webhook in app.webhooks.values() for what, count in webhook.counts().items() if count}

    def tick(self) -> float:
        """End the webhooks of apps that run no more, take up changed settings; seconds until the next call is wanted."""
        for name in list(self._apps):
            config = self._config_of(name)
            if config is None:
                self._close(self._apps.pop(name), 0.0)
            elif self._apps[name].config is not config:
                self._configure(name, self._apps[name], config)
        return LOOK_S if self._apps else 3600.0

    def close(self) -> None:
        """Try what waits for webhooks once more."""
        for app in self._apps.values():
            self._close(app, 0.0)
        limit = self._clock() + CLOSE_S
        for app in self._apps.values():
            self._close(app, max(0.0, limit - self._clock()))

    # --- MQTT -------------------------------------------------------------------------------------------------

    def _publish(self, app: _App, settings: MqttResults, result: Result, body: bytes) -> None:
        if settings.per_second and not result.amended and self._is_early(app, settings.per_second, result):
            app.dropped["thinned"] += 1
            return
        if app.pace is not None:
            app.pace = pacing.refill(app.pace, self._clock())
            if app.pace.tokens < len(body):
                app.dropped["budget"] += 1
                return
        if not self._link.connected or not self._link.publish(topics.result(self._device), body, qos=settings.qos):
            app.dropped["link"] += 1
            return
        if app.pace is not None:
            app.pace = pacing.spend(app.pace, len(body))

    def _is_early(self, app: _App, per_second: float, result: Result) -> bool:
        """By the frames' own time: results come in batches."""
        if result.source not in app.last and len(app.last) >= MAX_SOURCES:
            app.last.clear()
        last = app.last.get(result.source)
        if last is not None and 0.0 <= result.at - last < 0.98 / per_second:  # a camera's frames are not quite equally far apart
            return True
        app.last[result.source] = result.at
        return False

    # --- settings ---------------------------------------------------------------------------------------------

    def _configure(self, name: str, app: _App, config: AppConfig) -> None:
        if app.config is None or app.config.results != config.results:
            rate = config.results.bytes_per_hour / 3600.0
            app.pace = pacing.starting(rate, rate, max(rate * BURST_S, LEAST_BURST_BYTES), self._clock()) if rate else None
        app.config = config
        wanted = [spec for spec in without_doubles(config.sinks) if isinstance(spec, WebhookSink)]
        opened = {spec: sink_name(original, index) for index, original in enumerate(wanted)
                  if (spec := self._opened(name, original)) is not None}
        for spec in [spec for spec in app.webhooks if spec not in opened]:
            app.webhooks.pop(spec)[1].close()
        for spec, label in opened.items():
            if spec in app.webhooks:
                app.webhooks[spec] = label, app.webhooks[spec][1]
            elif (webhook := self._begun(name, label, spec)) is not None:
                app.webhooks[spec] = label, webhook

    def _opened(self, name: str, spec: WebhookSink) -> WebhookSink | None:
        """With its address opened; None, and said, when the board has no such secret."""
        if not spec.url.startswith(SECRET):
            return spec
        try:
            return msgspec.structs.replace(spec, url=self._secrets.reveal(spec.url.removeprefix(SECRET)))
        except JetfleetError as error:
            log.warning("%s: a webhook is left out: %s [%s]", name, error.what, error.code)
            return None

    def _begun(self, name: str, label: str, spec: WebhookSink) -> Webhook | None:
        try:
            address = Address(spec.url)
            poster = Poster(address, self._webhook_ca)
        except JetfleetError as error:
            log.warning("%s: %s is left out: %s [%s]", name, label, error.what, error.code)
            return None
        return Webhook(f"{name} {label}", address, poster, {"Jetfleet-Device": self._device, "Jetfleet-App": name}, most=spec.most,
                       wait_s=spec.wait_s, fresh_key=lambda: randomness.token_hex(16), unit=self._unit)

    def _close(self, app: _App, wait_s: float) -> None:
        for _, webhook in app.webhooks.values():
            webhook.close(wait_s)
