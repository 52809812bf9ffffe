"""Sees when the board has become another one - power mode, clocks, processors switched off - and has its models chosen anew.

A reading counts once it has stood for a while (`jetfleet_contract.conditions`). Each app whose model was chosen under other conditions is
then asked for once, as soon as no update of it is under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from jetfleet_contract.conditions import SETTLE_S, Conditions, settle, settling
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.slot_records import AppSlots, Slot

log = logging.getLogger(__name__)

POLL_S = 5.0


class Choosing(Protocol):
    """What is used of an EffectRunner."""

    def choose_again(self, app: str, slot: Slot, why: str) -> None: ...


class Rechoice:
    """See the module. All methods belong to the control thread.

    Args:
        read: the conditions now. under: those of the last choice for a model's name and version, None when nobody knows.
        states: the durable state of each app. settle_s: how long a reading must stand. clock: monotonic seconds.
    """

    def __init__(self, read: Callable[[], Conditions], under: Callable[[str, str], Conditions | None],
                 states: Callable[[], Mapping[str, AppSlots]], chooser: Choosing, clock: Callable[[], float],
                 settle_s: float = SETTLE_S) -> None:
        self._read = read
        self._under = under
        self._states = states
        self._chooser = chooser
        self._clock = clock
        self._settle_s = settle_s
        self._settling = settling(read(), clock(), settle_s)
        self._asked: dict[str, tuple[str, Conditions]] = {}
        self._due = 0.0

    def tick(self) -> float:
        """Read when it is time, and ask for what is due. Seconds until the next call is wanted."""
        now = self._clock()
        if now >= self._due:
            self._due = now + POLL_S
            self._settling = settle(self._settling, self._read(), now, self._settle_s)
            for app, state in self._states().items():
                self._consider(app, state)
        return self._due - now

    def _consider(self, app: str, state: AppSlots) -> None:
        champion, stands = state.champion, self._settling.stands
        if state.phase != "idle" or champion is None or champion.candidate is None or champion.setup.runner != "builtin":
            return
        if self._asked.get(app) == (champion.bundle, stands):
            return
        before = self._under(champion.name, champion.version)
        self._asked[app] = (champion.bundle, stands)
        if before is None or before == stands:
            return
        why = f"{stands.text or 'the power mode is not told'}; before: {before.text or 'not told'}"
        log.info("%s: %s %s is chosen anew: %s", app, champion.name, champion.version, why)
        try:
            self._chooser.choose_again(app, champion, why)
        except JetfleetError as error:
            log.warning("%s cannot be chosen anew: %s [%s]", app, error.what, error.code)
