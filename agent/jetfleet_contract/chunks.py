"""Chunk tables and bitmaps: how a blob is cut, checked piece by piece, and asked for.

A blob of `size` bytes is cut into `count` chunks of `chunk_size` (the last one is shorter). The table is a tree of
SHA-256 digests whose root stands in the signed target, and whose every node is itself a one-chunk blob, so that
nodes travel and are verified exactly as blobs are:

    count <= 1       no table: the blob's own digest covers the chunk           BlobInfo.table = ""
    count <= P       one page: the digests of all chunks, 32 bytes each         BlobInfo.table = its SHA-256
    more             a root page that lists the digests of up to P pages        BlobInfo.table = the root's SHA-256

P is 2048, and fewer where chunks are under 64 KiB: a page is never longer than a chunk (or 8 KiB), because chunks are cut small only
where a broker takes no longer messages. The shape follows from `size` and `chunk_size` alone; nothing in the table itself is trusted
before its digest was compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from .errors import MalformedError
from .messages import Message

CHUNK_BYTES = 65536
MIN_CHUNK_BYTES = 1024
MAX_CHUNK_BYTES = 1 << 20
PAGE_DIGESTS = 2048
MIN_PAGE_DIGESTS = 256
MAX_CHUNKS = 1 << 20
DIGEST_BYTES = 32

_RAW = 0
_RUNS = 1


class BlobInfo(Message, frozen=True):
    """What a signed target says of a blob. `table` is the hex digest of the table's top page, empty for one chunk."""

    size: int
    chunk_size: int = CHUNK_BYTES
    table: str = ""


class TablePage(msgspec.Struct, frozen=True):
    """A node of the tree that has to be there before the chunks: a one-chunk blob of `size` bytes."""

    blob: str
    size: int

    @property
    def info(self) -> BlobInfo:
        return BlobInfo(size=self.size, chunk_size=CHUNK_BYTES)


class ChunkTable(msgspec.Struct, frozen=True):
    """The digests of all chunks of one blob, in order: `digests` is `count` x 32 bytes."""

    size: int
    chunk_size: int
    digests: bytes

    @property
    def count(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def offset(self, index: int) -> int:
        return index * self.chunk_size

    def length(self, index: int) -> int:
        """Bytes in chunk `index`; only the last one is shorter than `chunk_size`."""
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def matches(self, index: int, data: bytes | memoryview) -> bool:
        """True if `data` is chunk `index`, by length and SHA-256."""
        if not 0 <= index < self.count or len(data) != self.length(index):
            return False
        at = index * DIGEST_BYTES
        return hashlib.sha256(data).digest() == self.digests[at : at + DIGEST_BYTES]


class Tabled(msgspec.Struct, frozen=True):
    """A blob that was cut: its id, what its target says, and the table's pages (hex digest, bytes) to publish with it."""

    blob: str
    info: BlobInfo
    pages: tuple[tuple[str, bytes], ...]


def chunk_count(size: int, chunk_size: int) -> int:
    """Chunks of a blob.

    Raises:
        MalformedError: `blob.size` or `blob.chunk-size` when out of bounds.
    """
    if not MIN_CHUNK_BYTES <= chunk_size <= MAX_CHUNK_BYTES:
        raise MalformedError("blob.chunk-size", f"chunk size {chunk_size} is not within {MIN_CHUNK_BYTES}..{MAX_CHUNK_BYTES}")
    most = chunk_size * min(MAX_CHUNKS, page_digests(chunk_size) ** 2)
    if not 0 <= size <= most:
        raise MalformedError("blob.size", f"blob size {size} is not within 0..{most}")
    return -(-size // chunk_size)


def page_digests(chunk_size: int) -> int:
    """How many digests a page of the chunk table holds."""
    return max(MIN_PAGE_DIGESTS, min(PAGE_DIGESTS, chunk_size // DIGEST_BYTES))


def table_of(chunks: Iterable[bytes], chunk_size: int = CHUNK_BYTES) -> Tabled:
    """Cut a blob that is given as its chunks, in order: ``table_of(iter(lambda: f.read(size), b""), size)``.

    Raises:
        MalformedError: `blob.chunk` when a chunk other than the last is not exactly `chunk_size` long.
    """
    whole = hashlib.sha256()
    digests = bytearray()
    size = 0
    for data in chunks:
        if size % chunk_size or not 0 < len(data) <= chunk_size:
            raise MalformedError("blob.chunk", f"chunk {len(digests) // DIGEST_BYTES} of {len(data)} bytes breaks the grid of {chunk_size}")
        whole.update(data)
        digests += hashlib.sha256(data).digest()
        size += len(data)
    count = chunk_count(size, chunk_size)
    if count <= 1:
        return Tabled(whole.hexdigest(), BlobInfo(size=size, chunk_size=chunk_size), ())
    pages = [bytes(part) for part in _pages(digests, page_digests(chunk_size))]
    if len(pages) > 1:
        pages.append(b"".join(hashlib.sha256(page).digest() for page in pages))
    named = tuple((hashlib.sha256(page).hexdigest(), page) for page in pages)
    return Tabled(whole.hexdigest(), BlobInfo(size=size, chunk_size=chunk_size, table=named[-1][0]), named)


def _pages(digests: bytes | bytearray, a_page: int) -> Iterator[bytes]:
    step = a_page * DIGEST_BYTES
    for at in range(0, len(digests), step):
        yield bytes(digests[at : at + step])


def top_page(info: BlobInfo) -> TablePage | None:
    """The first node to fetch for `info`, or None when the blob needs no table.

    Raises:
        MalformedError: `table.bad` when `info` names a table it must not have, or lacks one.
    """
    count = chunk_count(info.size, info.chunk_size)
    if (count > 1) != bool(info.table):
        raise MalformedError("table.bad", f"a blob of {count} chunks {'lacks its' if count > 1 else 'must not have a'} chunk table")
    if count <= 1:
        return None
    a_page = page_digests(info.chunk_size)
    entries = count if count <= a_page else -(-count // a_page)
    return TablePage(info.table, entries * DIGEST_BYTES)


def lower_pages(info: BlobInfo, top: bytes) -> tuple[TablePage, ...]:
    """The pages that the (verified) top page lists; empty when the top page is the only one."""
    count, a_page = chunk_count(info.size, info.chunk_size), page_digests(info.chunk_size)
    if count <= a_page:
        return ()
    sizes = [DIGEST_BYTES * min(a_page, count - first) for first in range(0, count, a_page)]
    if len(top) != len(sizes) * DIGEST_BYTES:
        raise MalformedError("table.bad", f"top page of {len(top)} bytes does not list {len(sizes)} pages")
    return tuple(TablePage(top[at * 32 : at * 32 + 32].hex(), size) for at, size in enumerate(sizes))


def open_table(blob: str, info: BlobInfo, pages: Iterable[bytes] = ()) -> ChunkTable:
    """The table of `blob` from its verified bottom pages, in order (none for a blob of one chunk).

    Raises:
        MalformedError: `table.bad` when the pages do not hold exactly one digest a chunk.
    """
    count = chunk_count(info.size, info.chunk_size)
    digests = b"".join(pages) if count > 1 else bytes.fromhex(blob) * count
    if len(digests) != count * DIGEST_BYTES:
        raise MalformedError("table.bad", f"table of {len(digests)} bytes does not cover {count} chunks")
    return ChunkTable(info.size, info.chunk_size, digests)


class Bitmap(msgspec.Struct, frozen=True):
    """A set of chunk numbers below `count`, as the bits of one integer. Immutable; operations give a new one."""

    count: int
    bits: int = 0

    @staticmethod
    def full(count: int) -> Bitmap:
        return Bitmap(count, (1 << count) - 1)

    @staticmethod
    def of(count: int, indices: Iterable[int]) -> Bitmap:
        """Raises MalformedError `bitmap.bad` when an index is not below `count`."""
        flags = bytearray(b"0") * max(1, count)
        for index in indices:
            if not 0 <= index < count:
                raise MalformedError("bitmap.bad", f"chunk {index} is not below {count}")
            flags[index] = 0x31
        return Bitmap(count, int(flags[::-1], 2))

    def has(self, index: int) -> bool:
        return bool(self.bits >> index & 1)

    def with_(self, index: int) -> Bitmap:
        return Bitmap(self.count, self.bits | 1 << index)

    def without(self, index: int) -> Bitmap:
        return Bitmap(self.count, self.bits & ~(1 << index))

    def union(self, other: Bitmap) -> Bitmap:
        return Bitmap(self.count, self.bits | other.bits)

    def minus(self, other: Bitmap) -> Bitmap:
        return Bitmap(self.count, self.bits & ~other.bits)

    def both(self, other: Bitmap) -> Bitmap:
        return Bitmap(self.count, self.bits & other.bits)

    def lowest(self, members: int) -> Bitmap:
        """The first `members` of the set."""
        taken = 0
        for first, length in self.runs():
            part = min(length, members)
            taken |= ((1 << part) - 1) << first
            members -= part
            if not members:
                break
        return Bitmap(self.count, taken)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __bool__(self) -> bool:
        return self.bits != 0

    def runs(self) -> Iterator[tuple[int, int]]:
        """Each unbroken run of members as (first, length), in order."""
        text = bin(self.bits)[:1:-1]
        at = text.find("1")
        while at >= 0:
            end = text.find("0", at)
            end = len(text) if end < 0 else end
            yield at, end - at
            at = text.find("1", end)

    def __iter__(self) -> Iterator[int]:
        for first, length in self.runs():
            yield from range(first, first + length)

    def encode(self) -> bytes:
        """One codec byte, then the bits (chunk 0 is the lowest bit of the first byte) or gap and run lengths, LEB128,
        whichever is shorter."""
        raw = self.bits.to_bytes(-(-self.count // 8), "little")
        runs = bytearray()
        at = 0
        for first, length in self.runs():
            _put_varint(runs, first - at)
            _put_varint(runs, length)
            at = first + length
            if len(runs) >= len(raw):
                return bytes((_RAW,)) + raw
        return bytes((_RUNS,)) + bytes(runs)

    @staticmethod
    def decode(data: bytes, count: int) -> Bitmap:
        """The inverse of `encode` for a blob of `count` chunks. Work and memory are bounded by `count` <= MAX_CHUNKS.

        Raises:
            MalformedError: `bitmap.bad`.
        """
        if not 0 <= count <= MAX_CHUNKS or not data:
            raise MalformedError("bitmap.bad", f"bitmap of {len(data)} bytes for {count} chunks")
        width = -(-count // 8)
        if len(data) > 1 + max(1, width):
            raise MalformedError("bitmap.bad", f"bitmap of {len(data)} bytes is longer than {count} chunks need")
        if data[0] == _RAW:
            bits = int.from_bytes(data[1:], "little")
            if len(data) != 1 + width or bits >> count:
                raise MalformedError("bitmap.bad", f"raw bitmap does not fit {count} chunks")
            return Bitmap(count, bits)
        if data[0] == _RUNS:
            return _decode_runs(data, count)
        raise MalformedError("bitmap.bad", f"unknown bitmap codec {data[0]}")


def _decode_runs(data: bytes, count: int) -> Bitmap:
    flags = bytearray(b"0") * max(1, count)
    cursor, at = 1, 0
    while cursor < len(data):
        gap, cursor = _take_varint(data, cursor)
        length, cursor = _take_varint(data, cursor)
        first, end = at + gap, at + gap + length
        if end > count or not length or (at and not gap):
            raise MalformedError("bitmap.bad", f"run {first}..{end} does not fit {count} chunks or is not canonical")
        flags[first:end] = b"1" * length
        at = end
    return Bitmap(count, int(flags[::-1], 2))


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _take_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14):
        if at >= len(data):
            raise MalformedError("bitmap.bad", "bitmap ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("bitmap.bad", "number in bitmap is too large")
