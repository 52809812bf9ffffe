"""Who takes part in a round of `rounds`: what each device lacks, which marks it owes, and whom the others need not wait for."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .chunks import Bitmap
from .transfer import MAX_SPREAD_S

WINDOW_MARKS = 12
HURRY_S = 0.3
HURRY_SHARE = 0.1
PATIENCE_S = 2.0
SILENCE_S = 20.0
UNHURRIED_WANTERS = 16
SPREAD_PER_WANTER_S = 0.002


class Wanter(msgspec.Struct, frozen=True):
    """One device that asked. `missing` is what it said last, `mark` the last of this round that it answered; nobody waits for one
    that is `lagging`. `asked` is all it wanted of this round; what was sent before mark `first` was not for it. `held_s` is how long
    most others had to wait for its answers in this round."""

    missing: Bitmap
    mark: int = 0
    lagging: bool = False
    asked: Bitmap = Bitmap(0)
    first: int = 0
    held_s: float = 0.0


Wanters = dict[str, Wanter]


def spread_s(count: int) -> float:
    """How long the answers of `count` devices are spread: nothing for few, 2 ms a device beyond; devices cannot hear each other."""
    return 0.0 if count <= UNHURRIED_WANTERS else min(MAX_SPREAD_S, count * SPREAD_PER_WANTER_S)


def slowest(wanters: Mapping[str, Wanter], mark: int) -> int:
    """The lowest mark that somebody who is waited for has answered; `mark`, the newest, when nobody is."""
    return min((wanter.mark for wanter in wanters.values() if not wanter.lagging), default=mark)


def owing(wanters: Mapping[str, Wanter], mark: int) -> tuple[str, ...]:
    """Those that owe a whole window of answers."""
    return tuple(device for device, wanter in wanters.items() if mark - wanter.mark >= WINDOW_MARKS)


def lagging(wanters: Wanters, devices: tuple[str, ...]) -> Wanters:
    """`wanters`, with these devices no longer waited for."""
    return {**wanters, **{device: msgspec.structs.replace(wanters[device], lagging=True) for device in devices}}


def patience_s(wanters: Mapping[str, Wanter], mark: int) -> float:
    """How long silence is borne: the more others wait, the shorter. Nobody waits: 20 s."""
    marks = [wanter.mark for wanter in wanters.values() if not wanter.lagging]
    waiting = sum(answered == mark for answered in marks)
    if not waiting:
        return SILENCE_S
    return (HURRY_S if 2 * waiting >= len(marks) else PATIENCE_S) + spread_s(len(marks))


def held_up(wanters: Wanters, mark: int, for_s: float) -> Wanters:
    """`wanters` after those that owe a window have made most others wait for `for_s` more; the same when it is not most that wait."""
    if patience_s(wanters, mark) >= PATIENCE_S:
        return wanters
    late = {device: wanters[device] for device in owing(wanters, mark)}
    return {**wanters, **{device: msgspec.structs.replace(wanter, held_s=wanter.held_s + for_s) for device, wanter in late.items()}}


def too_slow(wanters: Mapping[str, Wanter], mark: int, round_s: float) -> tuple[str, ...]:
    """Those for whom most others have waited for 0.3 s and a tenth of the round's time: they cost all others that tenth and more."""
    bound = HURRY_S + spread_s(len(wanters)) + HURRY_SHARE * round_s
    return tuple(device for device in owing(wanters, mark) if wanters[device].held_s > bound)


def lacked_by(lacked: tuple[Bitmap, ...], bits: Bitmap) -> tuple[Bitmap, ...]:
    """`lacked[n]` is what more than n devices lack; the same after one more device lacks `bits`."""
    lower = (bits, *(level.both(bits) for level in lacked))
    return tuple(level.union(more) for level, more in zip(lacked, lower, strict=False))
