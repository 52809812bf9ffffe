"""The inverse transfer, from a board to the host: what travels, and what the host lets in. Pure.

    offer      board -> host   d/{device}/offer          signed by the board: what it has, how large, and the root of its chunk table
    want       host -> board   d/{device}/upwant/{blob}  a `transfer.Want`: what the host lacks; the table's pages are asked for first
    parts      board -> host   d/{device}/up/{blob}      chunks and round marks on one topic, so that no mark overtakes its chunks
    verdict    host -> board   d/{device}/upwant/{blob}  signed by a command key: it is stored, or why it is not taken

The machines are those of the way down: a `transfer` receiver at the host, a `rounds` sender with one wanter at the board. A board keeps
what it offered until it has a verdict or the offer expires; an offer may be repeated, and so may its verdict.
"""

from __future__ import annotations

from typing import Literal, Union

import msgspec

from .broker_limits import BrokerLimits, refusal
from .chunks import CHUNK_BYTES, MIN_CHUNK_BYTES, BlobInfo, top_page
from .errors import MalformedError, UntrustedError
from .messages import Message
from .topics import check_blob, check_name, upload
from .transfer import CHUNK_HEADER_BYTES, RoundMark, decode_chunk, decode_mark, encode_chunk

Kind = Literal["engine", "snapshot", "logs", "harvest", "bench"]
ASKED_BY: dict[str, Kind] = {"logs": "logs", "snapshot": "snapshot", "engine-build": "engine", "bench": "bench"}
"""The kind of upload that a command of this op asks for."""

MAX_OFFER_BYTES = 8192
MAX_OFFER_ID = 1 << 53
DAY_S = 86_400.0
_CHUNK = b"\0"
_MARK = b"\1"


class Offer(Message, frozen=True):
    """The board has `blob` for the host. `id` is the offer's own, so that a repeat is known as one; `command` is the number of the
    command that it answers, 0 when nobody asked. `expires`: wall-clock
    seconds since 1970 after which the board drops it; 0 from a board that does not know the time: the host's own limit counts then."""

    device: str
    id: int
    blob: str
    kind: Kind
    name: str
    info: BlobInfo
    expires: float
    command: int = 0


class Verdict(Message, frozen=True):
    """The host's last word on offer `id`: stored and durable (`code` is empty), or refused for good with a stable code."""

    device: str
    id: int
    blob: str
    code: str = ""
    detail: str = ""


class Bounds(msgspec.Struct, frozen=True):
    """What a host lets in: at `most` so many bytes a blob, by kind (0: never), so many bytes a device in any 24 hours (`per_day`), and the
    kinds that may come `unasked`."""

    most: dict[str, int]
    per_day: int
    unasked: tuple[str, ...] = ()


class Part(msgspec.Struct, frozen=True):
    """One chunk on its way up; `data` is a view of the payload."""

    round: int
    index: int
    data: memoryview


def check_offer(offer: Offer, device: str) -> Offer:
    """An offer of `device` whose names, numbers and table fit.

    Raises:
        MalformedError: `upload.device`, `upload.bounds`, `name.bad`, `blob.*`, `table.bad`.
    """
    if offer.device != device:
        raise MalformedError("upload.device", f"an offer of {offer.device[:80]!r} came from board {device}")
    check_name("upload", offer.name)
    check_blob(offer.blob)
    if offer.info.table:
        check_blob(offer.info.table)
    top_page(offer.info)
    if not (0 < offer.id < MAX_OFFER_ID and 0 <= offer.command < MAX_OFFER_ID and 0.0 <= offer.expires < 1e11):
        raise MalformedError("upload.bounds", f"offer {offer.id} has a number out of bounds")
    return offer


def judge(offer: Offer, bounds: Bounds, asked: str, used: int, wall: float) -> None:
    """Let a checked offer in, or raise why not.

    Args:
        asked: the op of the open command that the offer names, empty when there is none.
        used: bytes that this device was let in for within the last 24 hours. wall: seconds since 1970.

    Raises:
        UntrustedError: `upload.expired`, `upload.unasked`, `upload.large`, `upload.quota`.
    """
    if 0.0 < offer.expires <= wall:
        raise UntrustedError("upload.expired", f"offer {offer.id} has expired")
    if ASKED_BY.get(asked) != offer.kind and (offer.command or offer.kind not in bounds.unasked):
        raise UntrustedError("upload.unasked", f"nobody asked board {offer.device} for {offer.kind} {offer.name}",
                             remedy="ask by a command, or allow the kind in jetfleet.toml: [uploads] unasked")
    most = bounds.most.get(offer.kind, 0)
    if offer.info.size > most:
        raise UntrustedError("upload.large", f"{offer.kind} {offer.name} has {offer.info.size} bytes, the limit is {most}",
                             remedy=f"raise {offer.kind}_mb in jetfleet.toml: [uploads]")
    if used + offer.info.size > bounds.per_day:
        raise UntrustedError("upload.quota", f"board {offer.device} has used {used} of {bounds.per_day} bytes a day, "
                             f"{offer.info.size} more do not fit", remedy="wait, or raise device_mb_per_day in jetfleet.toml: [uploads]")


def chunk_size_for(limits: BrokerLimits, device: str) -> int:
    """The largest chunk size, in whole KiB and at most `CHUNK_BYTES`, whose parts this board's broker takes."""
    topic = upload(device, "0" * 64)
    sizes = range(CHUNK_BYTES, MIN_CHUNK_BYTES, -1024)
    return next((size for size in sizes if refusal(limits, topic, len(_CHUNK) + CHUNK_HEADER_BYTES + size, qos=0) is None), MIN_CHUNK_BYTES)


def encode_part(round_: int, index: int, data: bytes) -> bytes:
    """A zero byte, then a chunk as it travels on the way down."""
    return _CHUNK + encode_chunk(round_, index, data)


def encode_part_mark(mark: bytes) -> bytes:
    """A one byte, then the JSON of a `RoundMark`."""
    return _MARK + mark


def decode_part(payload: bytes) -> Union[Part, RoundMark]:
    """What came on an upload topic. Raises MalformedError `part.bad`, `chunk.bad`, `mark.bad` or `message.*`."""
    if payload[:1] == _MARK:
        return decode_mark(payload[1:])
    if payload[:1] != _CHUNK:
        raise MalformedError("part.bad", f"{len(payload)} bytes are neither a chunk nor a mark")
    return Part(*decode_chunk(payload[1:]))


def is_want(payload: bytes) -> bool:
    """True for a want, False for what should be a signed verdict (JSON)."""
    return payload[:1] not in (b"{", b"")

