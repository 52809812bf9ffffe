"""What was sent to a device that has not answered since: it may be lost, or lie in a broker or a process that is short of time.

A board that hears nothing for two seconds asks again, for all it lacks. On a crowded machine most of that is under way, and sending it
again would crowd the machine more. So the sender does not guess: it repeats its last mark to that board alone. The mark comes after
everything that is under way (a broker keeps a client's order), and the answer to it tells what was really lost. A board that gives none
within `UNANSWERED_S` is believed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .chunks import Bitmap
from .transfer import RoundMark, Want
from .wanters import Wanter

UNANSWERED_S = 20.0
MOVED_S = 4.0


class Unanswered(msgspec.Struct, frozen=True):
    """`chunks` went to a device in `round`, before `mark`, and it has not answered that mark; until when that counts."""

    round: int
    mark: int
    chunks: Bitmap
    until: float

    @property
    def reminder(self) -> RoundMark:
        """The mark to repeat to the device."""
        return RoundMark(self.round, self.mark, "end", 0)


UnderWay = dict[str, Unanswered]


def still(under_way: UnderWay, now: float) -> UnderWay:
    """What is not too old."""
    return {device: entry for device, entry in under_way.items() if now < entry.until}


def unanswered(wanters: Mapping[str, Wanter], round_: int, mark: int, marks: Mapping[int, Bitmap], sent: Bitmap, now: float) -> UnderWay:
    """By device: what was `sent` in the round up to its newest `mark`, after the last mark that the device answered (one of `marks`)."""
    found: UnderWay = {}
    for device, wanter in wanters.items():
        answered = marks.get(wanter.mark)
        chunks = wanter.missing.both(sent if answered is None else sent.minus(answered))
        if wanter.mark != mark and chunks:
            found[device] = Unanswered(round_, mark, chunks, now + UNANSWERED_S)
    return found


def is_told(entry: Unanswered, want: Want, round_: int) -> bool:
    """Whether a want was made after all that `entry` has came or was lost: it knows of that mark, or of the next round, `round_`."""
    if not want.missing:
        return True
    return want.mark >= entry.mark if want.round == entry.round else want.round == round_


class Moved(msgspec.Struct, frozen=True):
    """A device was sent to another lane in `round`, after `mark`; until when its answers to earlier marks mean nothing here."""

    round: int
    mark: int
    until: float

    def overtakes(self, want: Want, now: float) -> bool:
        """Whether a want was said before the move was heard."""
        return want.round == self.round and want.mark <= self.mark and now < self.until
