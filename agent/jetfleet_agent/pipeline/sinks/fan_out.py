"""Where answers go: over the supervisor to MQTT and webhooks, to chained apps, to the command line's file, and to the settings' sinks.

Sinks are told apart by what they are: one whose settings did not change runs on through a new configuration. A sink that cannot begin, or
breaks, is said with its code, and nothing else changes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from jetfleet_agent.ipc import Raised, SinkPlaces
from jetfleet_agent.pipeline.feed import FeedSender, socket_path
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.app_config import JsonlSink, PreviewSink, SinkSpec, SocketSink, WebhookSink
from jetfleet_contract.errors import InputError, JetfleetError, RuntimeFailure
from jetfleet_contract.messages import AppConfig, Result
from jetfleet_contract.sink_rules import sink_name, without_doubles

from .files import JsonLines, ResultFiles
from .port import Sink, Voice
from .preview import Preview
from .result_socket import ResultSocket

log = logging.getLogger(__name__)


class _Kept(msgspec.Struct, frozen=True):
    """A sink that runs, with all that it was made from; `purposes` is None where privacy has no part in it."""

    spec: SinkSpec
    purposes: tuple[str, ...] | None
    sink: Sink
    voice: Voice


class Sinks:
    """Called in the decode thread with every answered frame, in order; the rest from the controller's thread.

    Args:
        publish: hands a result to the supervisor; never waits.
        lines: where to append every result as well.
        send: hands an event to the supervisor; never waits.
    """

    def __init__(self, app: str, publish: Callable[[Result], None], lines: JsonLines | None = None,
                 send: Callable[[Raised], None] = lambda _event: None) -> None:
        self.publishes = True
        self._app = app
        self._publish = publish
        self._lines = lines
        self._send = send
        self._feeds: dict[str, FeedSender] = {}
        self._places = SinkPlaces()
        self._sinks: dict[str, _Kept] = {}
        self._refused: dict[str, Voice] = {}

    # --- the controller's side --------------------------------------------------------------------------------

    def place(self, places: SinkPlaces) -> None:
        """Where this board lets sinks write and listen; before `configure`. Sinks that are placed elsewhere end."""
        if places != self._places:
            self._replace({})
            self._places = places

    def take_dropped_crops(self) -> int:
        """Crops that chained apps could not take since the last call."""
        return sum(sender.take_dropped() for sender in self._feeds.values())

    def counts(self) -> dict[str, float]:
        """What the sinks did and dropped since each began, as gauges ``sink.NAME.WHAT``; zeros are left out."""
        return {f"sink.{name}.{what}": float(count) for name, kept in self._sinks.items()
                for what, count in kept.sink.counts().items() if count}

    def feed_to(self, folder: str, apps: tuple[str, ...]) -> None:
        """Send crops to these apps from now on, and to no others."""
        feeds = dict(self._feeds)
        gone = [feeds.pop(app) for app in list(feeds) if app not in apps]
        for app in apps:
            if app not in feeds:
                feeds[app] = FeedSender(socket_path(Path(folder), app))
        self._feeds = feeds
        for sender in gone:
            sender.stop()

    def configure(self, config: AppConfig) -> None:
        """Begin and end sinks; whether results go to the supervisor at all. Never raises: what cannot begin is left out and said."""
        specs = without_doubles(config.sinks)
        self.publishes = config.publish_results or any(isinstance(spec, WebhookSink) for spec in specs)
        wanted = {sink_name(spec): spec for spec in specs if not isinstance(spec, WebhookSink)}
        running = {name: kept for name, kept in self._sinks.items()
                   if kept.spec == wanted.get(name) and kept.purposes in (None, config.privacy.purposes)}
        self._replace(running)
        begun = dict(running)
        for name, spec in wanted.items():
            if name not in begun and (kept := self._begin(name, spec, config.privacy.purposes)) is not None:
                begun[name] = kept
        self._sinks = begun

    def _replace(self, sinks: dict[str, _Kept]) -> None:
        """Nothing is handed to a sink any more before it is closed."""
        gone = [kept for name, kept in self._sinks.items() if sinks.get(name) is not kept]
        self._sinks = sinks
        for kept in gone:
            kept.sink.close()

    def _begin(self, name: str, spec: SinkSpec, purposes: tuple[str, ...]) -> _Kept | None:
        voice = self._refused.pop(name, None) or Voice(f"sink.{name}", self._send)
        try:
            sink = self._made(spec, purposes, voice)
        except JetfleetError as error:
            log.warning("sink %s of %s: %s", name, self._app, error)
            self._refused[name] = voice
            voice.down(error)
            return None
        voice.up()
        return _Kept(spec, purposes if isinstance(spec, PreviewSink) else None, sink, voice)

    def _made(self, spec: SinkSpec, purposes: tuple[str, ...], voice: Voice) -> Sink:
        places = self._places
        if isinstance(spec, PreviewSink):
            return Preview(self._app, spec, purposes, places.preview_address)
        if isinstance(spec, JsonlSink) and places.files:
            return ResultFiles(Path(places.files), spec, places.files_mb, voice)
        if isinstance(spec, SocketSink) and places.sockets:
            return ResultSocket(Path(places.sockets), self._app, voice)
        raise InputError("sink.place", "this board gives such a sink no place", remedy="see [results] of the agent's config")

    # --- the decode thread ------------------------------------------------------------------------------------

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:
        """One answered frame. `now` is monotonic seconds."""
        feeds = self._feeds
        if feeds:
            crops = model.task.crops(frame.image, frame.detections)
            for sender in feeds.values():
                sender.send(frame, crops)
        sinks = self._sinks
        if not self.publishes and not sinks and self._lines is None:
            return
        _, version, candidate = model.key
        result = Result(self._app, frame.source, frame.number, frame.wall, (now - frame.captured) * 1e3, version, candidate,
                        frame.detections, frame.position, frame.kpis)
        if self._lines is not None:
            self._append(self._lines, result)
        if self.publishes:
            self._publish(result)
        for name, kept in sinks.items():
            self._hand(name, kept, frame, result, now)

    def amend(self, result: Result) -> None:
        """Controller's thread: a frame's result once more, with what the host's model said of it."""
        if self._lines is not None:
            self._append(self._lines, result)
        if self.publishes:
            self._publish(result)
        for kept in self._sinks.values():
            kept.sink.amend(result)

    def _hand(self, name: str, kept: _Kept, frame: Frame, result: Result, now: float) -> None:
        """A fault of ours in one sink ends that sink, until it is configured anew."""
        try:
            kept.sink.take(frame, result, now)
        except Exception as error:
            log.exception("sink %s of %s", name, self._app)
            self._sinks = {other: one for other, one in self._sinks.items() if other != name}
            kept.voice.down(RuntimeFailure("sink.crash", f"{type(error).__name__} in sink {name}"))
            threading.Thread(target=kept.sink.close, name="sink-close", daemon=True).start()  # closing may wait, answers may not

    def _append(self, lines: JsonLines, result: Result) -> None:
        """A full disk costs the file's further lines, never the app."""
        try:
            lines.write(result)
        except OSError as error:
            log.error("no more results to the file: %s", error.strerror)  # noqa: TRY400  the sentence says it all
            self._lines = None

    def close(self) -> None:
        for sender in self._feeds.values():
            sender.stop()
        self._feeds = {}
        self._replace({})
        if self._lines is not None:
            self._lines.close()
