"""What a sender of `rounds` is told, and what it has its caller do."""

from __future__ import annotations

from typing import Union

import msgspec

from .transfer import RoundMark, Want


class Wanted(msgspec.Struct, frozen=True):
    device: str
    want: Want


class Grant(msgspec.Struct, frozen=True):
    """The caller may publish up to `chunks` more now. Zero only lets time pass. When as many ask as were served just before
    (`expected`, 0 for unknown), as after a chunk table, nobody waits for more; of a large blob the round waits somewhat for the rest."""

    chunks: int
    expected: int = 0


class Lost(msgspec.Struct, frozen=True):
    """The host's own link is down: everybody will ask again."""


class Left(msgspec.Struct, frozen=True):
    """The device is served by another sender from now on."""

    device: str


class Send(msgspec.Struct, frozen=True):
    """Publish these chunks, in order, in this round: to `device` alone, or for everybody when that is empty."""

    round: int
    indices: tuple[int, ...]
    device: str = ""


class Announce(msgspec.Struct, frozen=True):
    """Publish this mark: to `device` alone, on its own topic, or for everybody when that is empty."""

    mark: RoundMark
    device: str = ""


class Observe(msgspec.Struct, frozen=True):
    """A device answered a mark: of `sent` chunks before it `lost` had not come. For pacing."""

    device: str
    sent: int
    lost: int


class Refuse(msgspec.Struct, frozen=True):
    """The device asked for more than its budget; it is served again as the budget renews."""

    device: str
    code: str


class Move(msgspec.Struct, frozen=True):
    """Announce (mark 0 of kind `move`, in this round) that all but `stay` go on in a new lane; `movers` of them are expected there."""

    round: int
    stay: tuple[str, ...]
    movers: int


SenderEvent = Union[Wanted, Grant, Left, Lost]
SenderEffect = Union[Send, Announce, Move, Observe, Refuse]
