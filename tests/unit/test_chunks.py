"""Chunk tables and bitmaps: the tree covers every size, damage is seen, the codec is small, exact and bounded."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract import chunks
from jetfleet_contract.chunks import (
    MAX_CHUNKS,
    MIN_CHUNK_BYTES,
    Bitmap,
    BlobInfo,
    ChunkTable,
    lower_pages,
    open_table,
    page_digests,
    table_of,
    top_page,
)
from jetfleet_contract.errors import MalformedError

SIZE = MIN_CHUNK_BYTES


def cut(data: bytes, size: int = SIZE) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def table_from(tabled: chunks.Tabled) -> ChunkTable:
    """Walk the tree as a board does: each page is taken only by its digest and size."""
    pages = dict(tabled.pages)
    top = top_page(tabled.info)
    if top is None:
        return open_table(tabled.blob, tabled.info)
    assert len(pages[top.blob]) == top.size
    lower = lower_pages(tabled.info, pages[top.blob])
    for page in lower:
        assert len(pages[page.blob]) == page.size
    return open_table(tabled.blob, tabled.info, [pages[page.blob] for page in lower] or [pages[top.blob]])


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 5 * SIZE, 5 * SIZE + 7])
def test_every_chunk_of_a_blob_is_covered(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    tabled = table_of(cut(data), SIZE)
    table = table_from(tabled)
    assert tabled.blob == hashlib.sha256(data).hexdigest()
    assert table.count == len(cut(data)) == chunks.chunk_count(size, SIZE)
    for index, chunk in enumerate(cut(data)):
        assert table.matches(index, chunk)
        assert table.length(index) == len(chunk)
        assert not table.matches(index, chunk[:-1])
        assert not table.matches(index, chunk[:-1] + bytes([chunk[-1] ^ 1]))
    assert not table.matches(table.count, b"")
    assert not table.matches(-1, data[:SIZE])


def test_more_chunks_than_a_page_holds_make_two_levels() -> None:
    count = page_digests(SIZE) + 3
    parts = [index.to_bytes(4, "big") * (SIZE // 4) for index in range(count)]
    tabled = table_of(parts, SIZE)
    assert len(tabled.pages) == 3
    top = top_page(tabled.info)
    assert top is not None
    assert top.size == 64
    table = table_from(tabled)
    assert table.matches(count - 1, parts[-1])
    assert not table.matches(count - 1, parts[0])


@pytest.mark.parametrize(("chunk_size", "digests"), [(1024, 256), (8192, 256), (16384, 512), (32768, 1024), (65536, 2048), (1 << 20, 2048)])
def test_a_page_is_no_longer_than_a_chunk_and_the_tree_covers_what_it_must(chunk_size: int, digests: int) -> None:
    assert page_digests(chunk_size) == digests
    assert digests * 32 <= max(chunk_size, 8192)
    assert chunks.chunk_count(min(MAX_CHUNKS, digests**2) * chunk_size, chunk_size) <= digests**2
    with pytest.raises(MalformedError):
        chunks.chunk_count(min(MAX_CHUNKS, digests**2) * chunk_size + 1, chunk_size)


def test_a_small_blob_needs_no_table() -> None:
    tabled = table_of([b"labels"])
    assert tabled.info == BlobInfo(size=6)
    assert tabled.pages == ()


@pytest.mark.parametrize("info", [BlobInfo(size=5, table="aa"), BlobInfo(size=1 << 20), BlobInfo(size=-1), BlobInfo(size=1, chunk_size=3)])
def test_an_info_that_cannot_be_is_refused(info: BlobInfo) -> None:
    with pytest.raises(MalformedError):
        top_page(info)


def test_a_top_page_of_another_length_is_refused() -> None:
    info = BlobInfo(size=SIZE * (page_digests(SIZE) + 1), chunk_size=SIZE, table="ab")
    with pytest.raises(MalformedError, match="does not list 2 pages"):
        lower_pages(info, b"\0" * 32)
    with pytest.raises(MalformedError, match="does not cover"):
        open_table("ab", info, [b"\0" * 32])


def test_a_short_chunk_in_the_middle_breaks_the_grid() -> None:
    with pytest.raises(MalformedError, match="grid"):
        table_of([b"x" * SIZE, b"y", b"z"], SIZE)


@given(st.integers(0, 3000).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, max(0, count - 1)), max_size=count))))
def test_a_bitmap_comes_back_as_it_was(case: tuple[int, set[int]]) -> None:
    count, members = case
    bitmap = Bitmap.of(count, members)
    data = bitmap.encode()
    assert Bitmap.decode(data, count) == bitmap
    assert list(bitmap) == sorted(members)
    assert len(bitmap) == len(members)
    assert len(data) <= 1 + -(-count // 8)


def test_a_full_bitmap_is_a_few_bytes() -> None:
    assert len(Bitmap.full(MAX_CHUNKS).encode()) < 6
    assert len(Bitmap.of(800, range(100, 300)).encode()) < 8


def test_set_operations() -> None:
    left, right = Bitmap.of(10, [1, 2, 9]), Bitmap.of(10, [2, 3])
    assert set(left.union(right)) == {1, 2, 3, 9}
    assert set(left.minus(right)) == {1, 9}
    assert set(left.with_(0).without(9)) == {0, 1, 2}
    assert list(left.runs()) == [(1, 2), (9, 1)]
    with pytest.raises(MalformedError):
        Bitmap.of(3, [3])


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 8), (b"\x00", 8), (b"\x00\x01\x02", 8), (b"\x00\xff", 7), (b"\x02\x00", 8), (b"\x01\x00", 8), (b"\x01\x00\x09", 8),
        (b"\x01\x00\x00", 8), (b"\x01\x01\x01\x00\x01", 40), (b"\x01\x80\x80\x80\x01\x01", 4000), (b"\x01\x80", 8),
        (b"\x00" + b"\xff" * 200, MAX_CHUNKS * 2), (b"\x01\x00\x01" * 5, 8),
    ],
)
def test_a_bitmap_that_does_not_fit_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(MalformedError):
        Bitmap.decode(data, count)
