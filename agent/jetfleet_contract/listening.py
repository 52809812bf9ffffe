"""Which topics a receiver of `transfer` listens to, and what a message on one of them is to it."""

from __future__ import annotations

from typing import Union

import msgspec

from . import topics
from .errors import MalformedError
from .transfer import Receiver, RoundMark, decode_chunk, decode_mark, own_mark


class Chunk(msgspec.Struct, frozen=True):
    """A chunk as it came, not yet compared with the table. `alone`: on the topic of this device, not a shared one."""

    round: int
    index: int
    data: memoryview
    alone: bool


Heard = Union[Chunk, RoundMark]


def topics_of(receiver: Receiver, blob: str, device: str) -> tuple[str, ...]:
    """What the device should be subscribed to, before it asks: its own topic, and the shared ones of its lane unless it is apart."""
    if not receiver.listens:
        return ()
    own = topics.unicast(blob, device)
    if receiver.apart:
        return (own,)
    return (own, topics.blob_round(blob, receiver.lane), topics.chunk(blob, receiver.lane))


def is_bulk(topic: str) -> bool:
    """Whether a topic is one of those that bring a blob's chunks or marks."""
    parts = topic.split("/")
    return len(parts) in (5, 6) and parts[2] == "b" and parts[4] in ("c", "round", "u")


def heard(receiver: Receiver, blob: str, device: str, topic: str, payload: bytes) -> Heard | None:
    """What a message on a bulk topic of this blob means to the receiver; None for one that is not for it.

    A chunk that was still under way in a lane that was left is welcome, but says nothing of the round: it gets the receiver's own.

    Raises:
        MalformedError: `chunk.bad`, `mark.bad`, `message.*`.
    """
    in_turn = topic in topics_of(receiver, blob, device)
    kind = topic.split("/")[4]
    if kind == "round":
        mark = decode_mark(payload) if in_turn else None
        return None if mark is None or device in mark.stay else mark
    alone = kind == "u"
    if alone:
        mark = own_mark(payload)
        if mark is not None:
            return mark if in_turn else None
    round_, index, data = decode_chunk(payload)
    if index >= receiver.missing.count:
        raise MalformedError("chunk.bad", f"chunk {index} of a blob of {receiver.missing.count}")
    return Chunk(round_ if in_turn else receiver.round, index, data, alone)
