"""Where the tensors of an ONNX file lie, byte for byte, read from the protobuf's wire format.

`onnx.load` gives values but not their places, and a delta is made of places. Only what is stored as raw bytes counts; anything else, and
any file that is no ONNX, is bytes like all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jetfleet_contract.delta_format import WIDTHS, Kind

_GRAPH, _INITIALIZER = 7, 5  # ModelProto.graph, GraphProto.initializer
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # TensorProto
_KINDS: dict[int, Kind] = {1: "float32", 2: "int8", 3: "int8", 10: "float16", 16: "bfloat16"}
_UINT8 = 2
MAX_TENSORS = 100_000


@dataclass(frozen=True)
class Region:
    """One tensor's raw bytes. `signed` is False for uint8, whose differences are those of int8."""

    name: str
    kind: Kind
    dims: tuple[int, ...]
    offset: int
    length: int
    signed: bool = True

    @property
    def count(self) -> int:
        return self.length // WIDTHS[self.kind]


def tensor_regions(data: memoryview) -> tuple[Region, ...]:
    """The raw tensors of an ONNX model by their place; empty for whatever is no such file."""
    found: list[Region] = []
    try:
        for number, start, end in _fields(data, 0, len(data)):
            if number == _GRAPH:
                for inner, first, last in _fields(data, start, end):
                    if inner == _INITIALIZER:
                        region = _tensor(data, first, last)
                        if region is not None:
                            found.append(region)
                        if len(found) > MAX_TENSORS:
                            return ()
    except (ValueError, IndexError, UnicodeDecodeError):
        return ()
    return tuple(sorted(found, key=lambda region: region.offset))


def _tensor(data: memoryview, start: int, end: int) -> Region | None:
    dims: list[int] = []
    kind, name, raw = 0, "", (0, 0)
    for number, first, last in _fields(data, start, end):
        if number == _DIMS:
            dims += _numbers(data, first, last)
        elif number == _TYPE:
            kind = _numbers(data, first, last)[0]
        elif number == _NAME:
            name = bytes(data[first:last]).decode()
        elif number == _RAW:
            raw = (first, last)
    known = _KINDS.get(kind)
    size = 1
    for dim in dims:
        size *= dim
    if known is None or size == 0 or raw[1] - raw[0] != size * WIDTHS[known]:
        return None
    return Region(name, known, tuple(dims), raw[0], raw[1] - raw[0], kind != _UINT8)


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of each field's value. ValueError for what is no protobuf."""
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 2:
            length, at = _varint(data, at, end)
        elif wire == 0:
            _, after = _varint(data, at, end)
            length = after - at
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("no wire type")
        if not number or at + length > end:
            raise ValueError("outside")
        yield number, at, at + length
        at += length


def _numbers(data: memoryview, at: int, end: int) -> list[int]:
    """One varint, or several packed ones."""
    found = []
    while at < end:
        value, at = _varint(data, at, end)
        found.append(value)
    return found


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("no number")
