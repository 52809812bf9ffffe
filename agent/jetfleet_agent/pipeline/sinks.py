"""Where answers go: to the supervisor's MQTT sink in batches, to chained apps, and, if asked for, to a JSON-lines file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from jetfleet_agent.pipeline.feed import FeedSender, socket_path
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import AppConfig, Result, encode

log = logging.getLogger(__name__)


class JsonLines:
    """Appends each result to a file that the command line named; flushed line by line, so that ``tail -f`` works."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise StorageError("sink.write", f"cannot write {path.name}: {error.strerror}", where=str(path)) from None

    def write(self, result: Result) -> None:
        self._file.write(encode(result) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Sinks:
    """Called in the decode thread with every answered frame, in order.

    Args:
        publish: hands a result to the supervisor; never waits.
        lines: where to append every result as well.
    """

    def __init__(self, app: str, publish: Callable[[Result], None], lines: JsonLines | None = None) -> None:
        self.publishes = True
        self._app = app
        self._publish = publish
        self._lines = lines
        self._feeds: dict[str, FeedSender] = {}

    def take_dropped_crops(self) -> int:
        """Crops that chained apps could not take since the last call."""
        return sum(sender.take_dropped() for sender in self._feeds.values())

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
        """Whether results are published at all."""
        self.publishes = config.publish_results

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:
        """One answered frame. `now` is monotonic seconds."""
        feeds = self._feeds
        if feeds:
            crops = model.task.crops(frame.image, frame.detections)
            for sender in feeds.values():
                sender.send(frame, crops)
        if not self.publishes and self._lines is None:
            return
        _, version, candidate = model.key
        result = Result(self._app, frame.source, frame.number, frame.wall, (now - frame.captured) * 1e3, version, candidate,
                        frame.detections, frame.position, frame.kpis)
        if self._lines is not None:
            self._append(self._lines, result)
        if self.publishes:
            self._publish(result)

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
        if self._lines is not None:
            self._lines.close()
