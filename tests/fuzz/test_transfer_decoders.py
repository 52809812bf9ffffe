"""Whatever a peer sends on the bulk topics, a decoder gives a value or a MalformedError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jetfleet_contract import transfer
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


@pytest.mark.parametrize(
    "changes",
    [{"round": 0}, {"round": 1 << 32}, {"mark": -1}, {"chunks": 1 << 40}, {"spread_s": -1.0}, {"spread_s": 1e9}],
)
def test_a_mark_out_of_bounds_is_refused(changes: dict[str, float]) -> None:
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
