"""Whatever a peer sends on the bulk topics, a decoder gives a value or a MalformedError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jetfleet_contract import listening, topics, transfer
from jetfleet_contract.chunks import Bitmap
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import encode


@given(st.binary(max_size=400), st.integers(0, 4000))
def test_a_bitmap_decoder_is_total(data: bytes, count: int) -> None:
    with contextlib.suppress(MalformedError):
        bitmap = Bitmap.decode(data, count)
        assert bitmap.bits >> count == 0
        assert Bitmap.decode(bitmap.encode(), count) == bitmap


@given(st.binary(max_size=400), st.integers(0, 4000))
@example(transfer.encode_want(transfer.Want(65536, Bitmap.full(40), 3, 4)), 40)
def test_a_want_decoder_is_total(data: bytes, count: int) -> None:
    with contextlib.suppress(MalformedError):
        want = transfer.decode_want(data, count)
        assert want.missing.count == count
        assert transfer.decode_want(transfer.encode_want(want), count) == want


@given(st.binary(max_size=100))
@example(transfer.encode_chunk(1, 2, b"data"))
def test_a_chunk_decoder_is_total(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        round_, index, chunk = transfer.decode_chunk(data)
        assert transfer.encode_chunk(round_, index, bytes(chunk)) == data


@given(st.binary(max_size=200))
@example(b'{"round":1,"mark":0,"kind":"begin","chunks":1}')
@example(b'{"round":1,"mark":0,"kind":"begin","chunks":1,"spread_s":1e999}')
def test_a_mark_decoder_is_total(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        mark = transfer.decode_mark(data)
        assert transfer.decode_mark(encode(mark)) == mark
        assert 0.0 <= mark.spread_s <= transfer.MAX_SPREAD_S


@given(st.binary(max_size=300), st.integers(0, 255), st.booleans())
@example(transfer.encode_own_mark(transfer.RoundMark(7, 3, "sync", 5)), 0, True)
@example(transfer.encode_chunk(7, 0xFFFFFFFF, b"{"), 0, True)
@example(transfer.encode_chunk(7, 1 << 31, b"data"), 3, False)
def test_whatever_comes_on_a_bulk_topic_is_a_chunk_a_mark_or_refused(data: bytes, lane: int, apart: bool) -> None:
    blob = "ab" * 32
    receiver = transfer.Receiver(65536, Bitmap.full(40), phase="receiving", lane=lane, apart=apart)
    for topic in (topics.unicast(blob, "board"), topics.chunk(blob, lane), topics.blob_round(blob, lane), topics.chunk(blob, 9)):
        with contextlib.suppress(MalformedError):
            heard = listening.heard(receiver, blob, "board", topic, data)
            if isinstance(heard, listening.Chunk):
                assert 0 <= heard.index < 40
            elif heard is not None:
                assert transfer.decode_mark(encode(heard)) == heard
                assert "board" not in heard.stay


@pytest.mark.parametrize("apart", [False, True])
def test_a_mark_on_the_own_topic_counts_for_a_board_that_listens(apart: bool) -> None:
    own, mark = topics.unicast("ab" * 32, "board"), transfer.encode_own_mark(transfer.RoundMark(7, 3, "sync", 5))
    listens = transfer.Receiver(65536, Bitmap.full(40), phase="receiving", apart=apart)
    assert isinstance(listening.heard(listens, "ab" * 32, "board", own, mark), transfer.RoundMark)
    held = transfer.Receiver(65536, Bitmap.full(40), phase="held", apart=apart)
    assert listening.heard(held, "ab" * 32, "board", own, mark) is None


@given(st.integers(0, 255), st.booleans(), st.integers(0, 255))
def test_a_want_says_where_the_board_listens(lane: int, apart: bool, flags: int) -> None:
    want = transfer.Want(65536, Bitmap.full(40), 3, 4, apart, lane)
    assert transfer.decode_want(transfer.encode_want(want), 40) == want
    if flags > 1:
        data = bytearray(transfer.encode_want(want))
        data[1] = flags
        with pytest.raises(MalformedError, match="want of version"):
            transfer.decode_want(bytes(data), 40)


@pytest.mark.parametrize(
    "changes",
    [{"lane": 256}, {"lane": -1}, {"stay": ["a"] * 17}, {"round": 0}, {"round": 1 << 32},
     {"mark": -1}, {"chunks": 1 << 40}, {"spread_s": -1.0}, {"spread_s": 1e9}],
)
def test_a_mark_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    good = {"round": 5, "mark": 1, "kind": "sync", "chunks": 3, "spread_s": 0.5}
    body = repr({**good, **changes}).replace("'", '"').encode()
    with pytest.raises(MalformedError):
        transfer.decode_mark(body)


def test_a_want_for_another_count_is_refused() -> None:
    data = transfer.encode_want(transfer.Want(65536, Bitmap.full(40)))
    with pytest.raises(MalformedError, match="for 40 chunks"):
        transfer.decode_want(data, 41)


def test_an_endless_chunk_is_refused() -> None:
    with pytest.raises(MalformedError):
        transfer.decode_chunk(b"\0" * ((1 << 20) + 9))
