"""Whether an engine is to blame for the end of a process that had it loaded. Pure.

A process that ends before its model has answered once convicts the engine: it was being loaded. Later a crash may be anybody's: a
camera's, a sink's, memory's. So the process is started with the engine again; after a second crash it runs without, to be compared:

    ends again without it        the engine is acquitted, and loaded again
    runs on without it           for longer than it did with it: the engine is convicted

A crash after a whole day with the engine begins the count anew.
"""

from __future__ import annotations

import msgspec

from .messages import Message

TWICE = 2
FORGIVEN_S = 86_400.0
LEAST_WITHOUT_S = 300.0
MOST_WITHOUT_S = 3600.0


class Doubt(Message, frozen=True):
    """An engine whose app's process ended by itself. `crashes` counts those ends, `lived_s` is the longest that such a process had answered
    for, `code` what the last one ended with. `without`: the app runs without the engine now."""

    crashes: int = 0
    lived_s: float = 0.0
    code: str = ""
    without: bool = False


class Judgement(msgspec.Struct, frozen=True):
    """`doubt` is what is kept, None when nothing is; `convicted`: the engine is not loaded any more."""

    doubt: Doubt | None
    convicted: bool = False


def crashed_with(doubt: Doubt, code: str, answered_s: float | None) -> Judgement:
    """The process had the engine loaded and had answered for `answered_s` seconds; None: it had not answered yet."""
    if answered_s is None:
        return Judgement(None, convicted=True)
    crashes = 1 if answered_s >= FORGIVEN_S else doubt.crashes + 1
    return Judgement(Doubt(crashes, max(doubt.lived_s if crashes > 1 else 0.0, answered_s), code, without=crashes >= TWICE))


def crashed_without(doubt: Doubt) -> Judgement:
    """The app ran without the engine and ended all the same: something else is to blame."""
    return Judgement(None if doubt.without else doubt)


def runs_without(doubt: Doubt, answered_s: float) -> Judgement:
    """The app has answered for `answered_s` seconds without the engine."""
    enough = min(max(2 * doubt.lived_s, LEAST_WITHOUT_S), MOST_WITHOUT_S)
    if not doubt.without or answered_s < enough:
        return Judgement(doubt)
    return Judgement(None, convicted=True)
