"""Which alarms of the pipelines stand now: told with every telemetry window until they end, or their process does."""

from __future__ import annotations

import logging

from jetfleet_agent.ipc import Raised, SourceEvent, Stuck
from jetfleet_contract.messages import Alarm

log = logging.getLogger(__name__)

MAX_STANDING = 32
MAX_DETAIL = 200


class StandingAlarms:
    """Used by the control thread only."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str, str], Alarm] = {}

    def hear(self, app: str, event: Raised | SourceEvent | Stuck) -> None:
        """What a pipeline says of its parts. A source that hung stands as an alarm until a frame of it comes."""
        if isinstance(event, SourceEvent):
            log.info("%s: source %s %s %s", app, event.source, "came" if event.up else "went", event.code)
            if event.up:
                self.note(app, Raised(event.source, False, "watchdog.source"))
        elif isinstance(event, Stuck):
            log.warning("%s: %s has been in one call for %.0f s and is left behind [%s]", app, event.part, event.seconds, event.code)
            self.note(app, Raised(event.part, True, event.code, f"one call took over {event.seconds:.0f} s"))
        else:
            log.warning("%s: alarm %s of %s %s: %s", app, event.code, event.source or "the app", "begins" if event.up else "ends",
                        event.detail)
            self.note(app, event)

    def note(self, app: str, event: Raised) -> None:
        """One begins or ends; past `MAX_STANDING` no more are taken."""
        key = (app, event.source, event.code)
        if not event.up:
            self._standing.pop(key, None)
        elif key in self._standing or len(self._standing) < MAX_STANDING:
            self._standing[key] = Alarm(app, event.source[:63], event.code[:63], event.detail[:MAX_DETAIL])

    def forget(self, app: str) -> None:
        """The app's process ended; whatever still holds will be raised again."""
        self._standing = {key: alarm for key, alarm in self._standing.items() if key[0] != app}

    def now(self) -> tuple[Alarm, ...]:
        """All that stand, in the order in which they began."""
        return tuple(self._standing.values())
