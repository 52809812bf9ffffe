"""Finds in the base what the target has too, wherever it moved, and packs what is new.

Both are cut where a rolling hash of the last 32 bytes says so (gear hash: Xia et al., FastCDC, ATC 2016), so that equal content gives equal
chunks at any offset. Equal chunks become copies, grown byte by byte to both sides; the rest becomes zstd frames which may refer to the
base's bytes around the place where they belong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.delta_format import MAX_PIECE, MAX_WINDOW, Copy, Data, Record

AVERAGE_LOG = 13
MIN_CHUNK, MAX_CHUNK = 2048, 65536
_BLOCK = 8 << 20
_HASHED = 32
_GEAR = np.random.default_rng(0x6A66).integers(0, 1 << 32, 256, dtype=np.uint32)
NEAR = 64 << 10
_THOROUGH = 8 << 20

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Base:
    """A base blob and where its chunks lie, by digest."""

    data: Bytes
    chunks: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Bytes) -> Base:
        base = cls(data)
        for start, end in cut(data):
            base.chunks.setdefault(_digest(data[start:end]), start)
        return base


@dataclass(frozen=True)
class _Match:
    target: int
    base: int
    length: int


def cut(data: Bytes) -> Iterator[tuple[int, int]]:
    """The content-defined chunks of `data` as (start, end)."""
    start = 0
    for place in _cut_places(data):
        if place - start < MIN_CHUNK:
            continue
        while place - start > MAX_CHUNK:
            yield start, start + MAX_CHUNK
            start += MAX_CHUNK
        if place > start:
            yield start, place
            start = place
    while start < len(data):
        end = min(start + MAX_CHUNK, len(data))
        yield start, end
        start = end


def _cut_places(data: Bytes) -> Iterator[int]:
    """Every place behind which the gear hash of the last 32 bytes has its upper 13 bits zero. The hash is a sum of shifted table
    entries, so five doublings make it for all places of a block at once."""
    for at in range(0, len(data), _BLOCK):
        first = max(0, at - _HASHED)
        sums = _GEAR[data[first:at + _BLOCK]]
        step = 1
        while step < _HASHED:
            grown = sums.copy()
            grown[step:] += sums[:-step] << np.uint32(step) if step < len(sums) else np.uint32(0)
            sums, step = grown, step * 2
        places = np.flatnonzero(sums >> np.uint32(32 - AVERAGE_LOG) == 0) + first + 1
        yield from places[places > at].tolist()


def _digest(chunk: Bytes) -> bytes:
    return hashlib.blake2b(chunk.tobytes(), digest_size=16).digest()


def byte_records(target: Bytes, start: int, end: int, base: Base, *, near: int, refer: bool) -> list[Record]:
    """Records for ``target[start:end]``.

    Args:
        near: where in the base it belongs when nothing tells otherwise. refer: literals may refer to the base.
    """
    records: list[Record] = []
    at = start
    for match in _matches(target, start, end, base):
        records += _literals(target, at, match.target, base, near, refer)
        records.append(Copy(match.base, match.length))
        at, near = match.target + match.length, match.base + match.length
    return records + _literals(target, at, end, base, near, refer)


def _matches(target: Bytes, start: int, end: int, base: Base) -> list[_Match]:
    """Runs of equal bytes in the target's order, none overlapping."""
    found: list[_Match] = []
    done = start
    for first, last in cut(target[start:end]):
        first, last = first + start, last + start
        if last <= done:
            continue
        place = base.chunks.get(_digest(target[first:last]))
        if place is None or not np.array_equal(base.data[place:place + last - first], target[first:last]):
            continue
        back = _common(target[done:first][::-1], base.data[:place][::-1])
        ahead = _common(target[last:end], base.data[place + last - first:])
        match = _Match(first - back, place - back, back + last - first + ahead)
        found.append(match)
        done = match.target + match.length
    return found


def _common(a: Bytes, b: Bytes) -> int:
    """How many first bytes are equal."""
    at, length, step = 0, min(len(a), len(b)), 4096
    while at < length:
        width = min(step, length - at)
        differs = np.flatnonzero(a[at:at + width] != b[at:at + width])
        if len(differs):
            return at + int(differs[0])
        at, step = at + width, min(step * 4, 1 << 20)
    return length


def _literals(target: Bytes, start: int, end: int, base: Base, near: int, refer: bool) -> list[Record]:
    records: list[Record] = []
    for at in range(start, end, MAX_PIECE):
        piece = target[at:min(at + MAX_PIECE, end)]
        window, length = _window(base, near + at - start, len(piece)) if refer else (0, 0)
        records.append(Data(len(piece), window, length, packed(piece.tobytes(), base.data[window:window + length].tobytes())))
    return records


def _window(base: Base, near: int, wanted: int) -> tuple[int, int]:
    """The part of the base that literals may refer to: small for small ones, for the device reads it all."""
    size = len(base.data)
    length = min(size, MAX_WINDOW, max(NEAR, 4 * wanted))
    start = min(max(0, near + wanted // 2 - length // 2), size - length)
    return start, length


def packed(data: bytes, window: bytes = b"", *, level: int = 0) -> bytes:
    """One zstd frame that says its size. Level 0: thorough for what is small, faster for what is large."""
    import zstandard

    strength = level or (19 if len(data) + len(window) <= _THOROUGH else 9)
    reach = max(10, (len(data) + len(window) + 1024).bit_length())
    settings = zstandard.ZstdCompressionParameters.from_level(strength, source_size=len(data) + len(window), window_log=min(reach, 27),
                                                              write_content_size=True, write_checksum=False)
    known = zstandard.ZstdCompressionDict(window, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if window else None
    return zstandard.ZstdCompressor(compression_params=settings, dict_data=known).compress(data)
