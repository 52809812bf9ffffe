"""What a pipeline says, as its app's slot machine hears it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jetfleet_agent import ipc
from jetfleet_contract import slot_records as slots


def news_of(app: str, event: ipc.Event, gap_ms: Callable[[str, float], float],
            heat: Callable[[str, str], tuple[float, float]]) -> slots.Event | None:
    """None for what is no business of the slot machine.

    Args:
        gap_ms: time without answers before an app's process answered at a given moment; asked once a start.
        heat: degrees above, and seconds throttled unlike, the moment before that bundle of that app took over.
    """
    match event:
        case ipc.Running():
            return slots.Ran(event.bundle, gap_ms(app, event.at))
        case ipc.TrialResult():
            return slots.Compared(event.bundle, event.numbers, event.code, event.detail)
        case ipc.Switched():
            return slots.TookOver(event.bundle, event.gap_ms, event.frames_lost, event.steady_p99_gap_ms)
        case ipc.Watched():
            rise_c, throttled_s = heat(app, event.bundle)
            return slots.Watched(event.bundle, msgspec.structs.replace(event.numbers, rise_c=rise_c, throttled_s=throttled_s))
        case _:
            return None
