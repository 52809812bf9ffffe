"""The inside of a delta: a header, then records that make the target from its first byte to its last.

    "jfdelta1"  u32 n  header (n bytes of JSON)  record*                                    all numbers little-endian

A record makes at most `MAX_PIECE` bytes of the target (a copy: any number), so that whoever applies it needs memory for one
piece, not for the file:

    copy      bytes of the base, as they are
    data      a zstd frame; `window_length` bytes of the base serve as its dictionary (raw content), so that it may refer to them
    factors   `rank` rows of `columns` int8: the directions in which the following tensor pieces moved; makes no bytes itself
    tensor    numbers that are predicted from numbers of the base, and what the prediction missed

A tensor piece is `count` numbers. The prediction from the base's numbers b, per channel parameter p, is

    same      b                                   gain      b * (1 + p / 32768), p int16: scales or batch norms that moved
    shift     b * (1 + p / 32768) + s * (u @ V): what a fine-tune adds to a matrix has low rank. V are the factors, u a row of `rank` int8,
              s a float32. u @ V are whole numbers below 2**24, exact in float32 in whatever order they are summed.

and element i belongs to channel ``i // inner % channels``. What was missed is ``map(target) - map(prediction)`` modulo the width,
zig-zagged so that small misses of both signs are small numbers; `map` turns the bits of a float into an integer of the same order (sign bit
set: all bits inverted; else sign bit set), so that neighbouring floats differ by one. The misses are then laid out as

    planes    one stream for each byte, lowest first
    nibbles   two to a byte, 15 means: read the next one from the escapes
    crumbs    four to a byte, 3 means: read the next one from the escapes

and each stream is a zstd frame. Escapes are whole numbers, in planes again. With the order `context` the misses stand sorted by what
their prediction tells of them (stable), so that each part gets an entropy code of its own: floats by the exponent, for a step of an
optimiser moves all weights by about as much, and what that is in units of the last place depends on the exponent alone; int8 by the part
that rounding took from the prediction, in 32nds, for the nearer that is to a half, the likelier is a miss by one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Literal, Union

import msgspec

from .deltas import Method
from .errors import MalformedError
from .messages import Message, decode, encode
from .topics import check_blob

MAGIC = b"jfdelta1"
MAX_HEADER_BYTES = 4096
MAX_PIECE = 4 << 20
MAX_WINDOW = 16 << 20
MAX_FILE = 4 << 30
MAX_STREAMS = 9
MAX_RANK = 64

WIDTHS = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
Kind = Literal["int8", "float16", "bfloat16", "float32"]
Predict = Literal["same", "gain", "shift"]
Layout = Literal["planes", "nibbles", "crumbs"]
Order = Literal["plain", "context"]
_TYPES: tuple[Kind, ...] = ("int8", "float16", "bfloat16", "float32")
_PREDICTS: tuple[Predict, ...] = ("same", "gain", "shift")
_LAYOUTS: tuple[Layout, ...] = ("planes", "nibbles", "crumbs")
_ORDERS: tuple[Order, ...] = ("plain", "context")
PARAMETER_BYTES = {"same": 0, "gain": 2, "shift": 6}
"""Of each channel, a row of factors besides for `shift`: all gains, then all scales, then all rows."""
_PER_BYTE = {"nibbles": 2, "crumbs": 4}

_COPY = struct.Struct("<QQ")
_DATA = struct.Struct("<IQII")
_TENSOR = struct.Struct("<BBBBBQIIII")
_STREAM = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_FACTORS = struct.Struct("<BII")


class Header(Message, frozen=True):
    """What the delta leads from and to; digests are blob ids, sizes bytes."""

    base: str
    base_size: int
    target: str
    target_size: int
    method: Method


class Copy(msgspec.Struct, frozen=True):
    offset: int
    length: int


class Data(msgspec.Struct, frozen=True):
    """`length` bytes from the zstd frame `packed`, with the base's bytes from `window` on as dictionary (length 0: none)."""

    length: int
    window: int
    window_length: int
    packed: bytes


class Stream(msgspec.Struct, frozen=True):
    """`length` bytes, packed into one zstd frame."""

    length: int
    packed: bytes


class Factors(msgspec.Struct, frozen=True):
    """`rank` rows of `columns` int8, for the `shift` pieces that follow until the next factors."""

    rank: int
    columns: int
    rows: Stream

    @property
    def length(self) -> int:
        return 0


class Tensor(msgspec.Struct, frozen=True):
    """See the module. `offset` is the base's first byte; `parameters` are those of `channels` channels."""

    kind: Kind
    predict: Predict
    layout: Layout
    order: Order
    offset: int
    count: int
    channels: int
    inner: int
    parameters: Stream | None
    streams: tuple[Stream, ...]

    @property
    def length(self) -> int:
        """Bytes that it makes, and bytes of the base that they are predicted from."""
        return self.count * WIDTHS[self.kind]


Record = Union[Copy, Data, Factors, Tensor]
Read = Callable[[int], bytes]
"""Gives exactly that many bytes, or fewer at the end of the file."""


def write_header(header: Header) -> bytes:
    body = encode(header)
    return MAGIC + _LENGTH.pack(len(body)) + body


def write_record(record: Record) -> bytes:
    """The bytes of one record."""
    if isinstance(record, Copy):
        return b"\x01" + _COPY.pack(record.offset, record.length)
    if isinstance(record, Data):
        return b"\x02" + _DATA.pack(record.length, record.window, record.window_length, len(record.packed)) + record.packed
    if isinstance(record, Factors):
        return b"\x04" + _FACTORS.pack(record.rank, record.columns, len(record.rows.packed)) + record.rows.packed
    head = _TENSOR.pack(_TYPES.index(record.kind), _PREDICTS.index(record.predict), _LAYOUTS.index(record.layout),
                        _ORDERS.index(record.order), len(record.streams), record.offset, record.count, record.channels, record.inner,
                        len(record.parameters.packed) if record.parameters else 0)
    parts = [b"\x03", head, record.parameters.packed if record.parameters else b""]
    for stream in record.streams:
        parts += [_STREAM.pack(stream.length, len(stream.packed)), stream.packed]
    return b"".join(parts)


def read_header(read: Read) -> Header:
    """The header at the beginning of a delta. MalformedError `delta.malformed`, `message.*`, `blob.bad`."""
    if _exactly(read, len(MAGIC)) != MAGIC:
        raise _malformed("it does not begin as a delta does")
    (length,) = _LENGTH.unpack(_exactly(read, _LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise _malformed(f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
    header = decode(_exactly(read, length), Header, limit=MAX_HEADER_BYTES)
    check_blob(header.base)
    check_blob(header.target)
    if not (0 <= header.base_size <= MAX_FILE and 0 < header.target_size <= MAX_FILE):
        raise _malformed("sizes are out of bounds")
    return header


def read_records(header: Header, read: Read) -> Iterator[Record]:
    """Every record behind the header, in order, until the target is complete and the file ends.

    Nothing is allocated before its size was compared with what it has to be: a piece is at most `MAX_PIECE` bytes of the target, and its
    packed form at most a little more.

    Raises:
        MalformedError: `delta.malformed`.
    """
    made, factors = 0, None
    while made < header.target_size:
        record = _record(header, read, factors)
        factors = record if isinstance(record, Factors) else factors
        made += record.length
        if made > header.target_size:
            raise _malformed("its records make more than the target")
        yield record
    if read(1):
        raise _malformed("something follows its last record")


def _record(header: Header, read: Read, factors: Factors | None) -> Record:
    mark = _exactly(read, 1)
    if mark == b"\x01":
        return _copy(header, read)
    if mark == b"\x02":
        return _data(header, read)
    if mark == b"\x03":
        return _tensor(header, read, factors)
    if mark == b"\x04":
        return _factors(read)
    raise _malformed(f"it has a record of the unknown kind {mark[0]}")


def _copy(header: Header, read: Read) -> Copy:
    offset, length = _COPY.unpack(_exactly(read, _COPY.size))
    if not length:
        raise _malformed("an empty copy")
    _check_base(header, offset, length)
    return Copy(offset, length)


def _data(header: Header, read: Read) -> Data:
    length, window, window_length, packed = _DATA.unpack(_exactly(read, _DATA.size))
    if not 0 < length <= MAX_PIECE or window_length > MAX_WINDOW:
        raise _malformed(f"{length} bytes with a window of {window_length} are out of bounds")
    _check_base(header, window, window_length)
    return Data(length, window, window_length, _packed(read, packed, length))


def _factors(read: Read) -> Factors:
    rank, columns, packed = _FACTORS.unpack(_exactly(read, _FACTORS.size))
    if not 0 < rank <= MAX_RANK or not 0 < columns <= MAX_PIECE // rank:
        raise _malformed(f"{rank} factors of {columns} numbers are out of bounds")
    return Factors(rank, columns, Stream(rank * columns, _packed(read, packed, rank * columns)))


def _tensor(header: Header, read: Read, factors: Factors | None) -> Tensor:
    kinds, streams, offset, count, channels, inner, packed = _tensor_head(read)
    name, way, form, order = kinds
    if not 0 < count <= MAX_PIECE // WIDTHS[name]:
        raise _malformed(f"a tensor piece of {count} numbers is out of bounds")
    _check_base(header, offset, count * WIDTHS[name])
    if channels < 1 or inner < 1 or count % (channels * inner):
        raise _malformed(f"{count} numbers are not {channels} channels of {inner}")
    wanted = channels * _parameter_bytes(way, inner, factors)
    parameters = Stream(wanted, _packed(read, packed, wanted)) if wanted else None
    if packed and not wanted:
        raise _malformed("parameters for a prediction that has none")
    parts = tuple(_stream(read, count * WIDTHS[name]) for _ in range(streams))
    _check_streams(parts, form, count, WIDTHS[name])
    return Tensor(name, way, form, order, offset, count, channels, inner, parameters, parts)


def _parameter_bytes(way: Predict, inner: int, factors: Factors | None) -> int:
    if way != "shift":
        return PARAMETER_BYTES[way]
    if factors is None or factors.columns != inner:
        raise _malformed("a tensor is predicted from factors that are not there")
    return PARAMETER_BYTES[way] + factors.rank


def _tensor_head(read: Read) -> tuple[tuple[Kind, Predict, Layout, Order], int, int, int, int, int, int]:
    kind, predict, layout, order, streams, *numbers = _TENSOR.unpack(_exactly(read, _TENSOR.size))
    if streams > MAX_STREAMS:
        raise _malformed(f"a tensor of {streams} streams")
    try:
        named = (_TYPES[kind], _PREDICTS[predict], _LAYOUTS[layout], _ORDERS[order])
    except IndexError:
        raise _malformed("a tensor of an unknown kind") from None
    offset, count, channels, inner, packed = numbers
    return named, streams, offset, count, channels, inner, packed


def _stream(read: Read, limit: int) -> Stream:
    length, packed = _STREAM.unpack(_exactly(read, _STREAM.size))
    if length > limit:
        raise _malformed(f"a stream of {length} bytes is over the limit of {limit}")
    return Stream(length, _packed(read, packed, length))


def _check_streams(streams: tuple[Stream, ...], form: str, count: int, width: int) -> None:
    if form == "planes":
        sound = len(streams) == width and all(stream.length == count for stream in streams)
    else:
        escapes = streams[1:]
        sound = (len(streams) == 1 + width and streams[0].length == -(-count // _PER_BYTE[form])
                 and all(stream.length == escapes[0].length <= count for stream in escapes))
    if not sound:
        raise _malformed("the streams of a tensor do not fit its numbers")


def _packed(read: Read, packed: int, length: int) -> bytes:
    if packed > length + (length >> 7) + 1024:  # zstd's own bound (ZSTD_compressBound), rounded up
        raise _malformed(f"{packed} packed bytes for {length} are out of bounds")
    return _exactly(read, packed)


def _check_base(header: Header, offset: int, length: int) -> None:
    if offset + length > header.base_size:
        raise _malformed(f"bytes {offset}..{offset + length} lie outside its base")


def _exactly(read: Read, length: int) -> bytes:
    data = read(length)
    if len(data) != length:
        raise _malformed("it ends too early")
    return data


def _malformed(what: str) -> MalformedError:
    return MalformedError("delta.malformed", f"the delta cannot be used: {what}")
