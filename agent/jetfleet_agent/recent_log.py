"""The last lines of this process's log, in memory, for `jetfleet device logs`. Bounded in lines and in the length of each."""

from __future__ import annotations

import logging
import re
from collections import deque

MAX_LINES = 2000
MAX_LINE = 2000
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


class RecentLines(logging.Handler):
    """Keeps formatted lines. Nothing secret is logged in the first place; what looks like credentials in an address is struck out here
    all the same, because these lines leave the board."""

    def __init__(self, maximum: int = MAX_LINES) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=maximum)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _CREDENTIALS.sub("***@", self.format(record))
        except Exception:  # noqa: BLE001  a line that cannot be formatted must not end what wrote it
            self.handleError(record)
            return
        self._lines.extend(line[:MAX_LINE] for line in text.splitlines())

    def last(self, count: int) -> list[str]:
        """The last `count` lines, oldest first; from any thread."""
        self.acquire()
        try:
            lines = list(self._lines)
        finally:
            self.release()
        return lines[-count:] if count > 0 else []
