"""A delta's bytes may be anything: it is applied right, or refused with a code, and never makes another file or takes more memory."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from delta_files import as_type, delta, moved, weights, write_onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet_agent.patching import patch
from jetfleet_contract.delta_format import MAX_PIECE, Header, read_header, read_records, write_header, write_record
from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_host.bundles import digest_file


class Pair:
    """A base and the bytes of a delta from it."""

    def __init__(self, folder: Path, kind: str) -> None:
        old = weights()
        self.base = write_onnx(folder / f"base-{kind}", as_type(old, kind))
        self.target = write_onnx(folder / f"target-{kind}", as_type(moved(old, 5e-5, gain=0.01), kind))
        _, path = delta(self.base, self.target, methods=("tensor",))
        self.delta = path.read_bytes()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return [Pair(tmp_path_factory.mktemp(kind), kind) for kind in ("float16", "int8")]


def reader(data: bytes) -> Any:
    """A `Read` that notes the largest size that was asked for."""
    at, largest = 0, 0

    def read(length: int) -> bytes:
        nonlocal at, largest
        largest = max(largest, length)
        read.largest = largest  # type: ignore[attr-defined]
        part = data[at:at + length]
        at += length
        return part

    return read


@given(st.binary(max_size=600), st.integers(1, 1 << 24))
def test_records_are_read_within_their_bounds(body: bytes, size: int) -> None:
    header = Header("ab" * 32, 1 << 20, "cd" * 32, size, "tensor")
    read = reader(write_header(header) + body)
    with contextlib.suppress(MalformedError):
        made = list(read_records(read_header(read), read))
        assert sum(record.length for record in made) == size
        assert b"".join(write_record(record) for record in made) == body
    assert read.largest <= MAX_PIECE + (MAX_PIECE >> 7) + 1024


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_delta_that_was_tampered_with_makes_the_target_or_an_error(pairs: list[Pair], data: st.DataObject) -> None:
    pair = pairs[data.draw(st.integers(0, 1))]
    changed = bytearray(pair.delta)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "delta", Path(folder) / "out"
        source.write_bytes(bytes(changed[:end]))
        try:
            patch(pair.base, source, out, 1)
        except JetfleetError as error:
            assert error.code.startswith(("delta.", "message.", "blob."))  # noqa: PT017
        else:
            assert digest_file(out)[7:] == pair.target.name


def test_a_delta_cut_short_anywhere_is_refused(pairs: list[Pair], tmp_path: Path) -> None:
    for pair in pairs:
        for end in range(0, len(pair.delta), len(pair.delta) // 23):
            (tmp_path / "delta").write_bytes(pair.delta[:end])
            with pytest.raises(MalformedError):
                patch(pair.base, tmp_path / "delta", tmp_path / "out", 1)
