"""Which alarms of the pipelines stand now: told with every telemetry window until they end, or their process does."""

from __future__ import annotations

from jetfleet_agent.ipc import Raised
from jetfleet_contract.messages import Alarm

MAX_STANDING = 32
MAX_DETAIL = 200


class StandingAlarms:
    """Used by the control thread only."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str, str], Alarm] = {}

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
