"""Small files that would become large ones: what a board, or the host, unpacks is bounded by what was signed or said before."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
import zstandard

from jetfleet_agent.patching import patch
from jetfleet_contract.delta_format import Copy, Data, Header, write_header, write_record
from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_host.commands import device

BASE = b"base" * 1000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / hashlib.sha256(BASE).hexdigest()
    path.write_bytes(BASE)
    return path


def bomb(tmp_path: Path, *records: bytes, target_size: int = 1000) -> Path:
    header = Header(hashlib.sha256(BASE).hexdigest(), len(BASE), "ab" * 32, target_size, "tensor")
    path = tmp_path / "delta"
    path.write_bytes(write_header(header) + b"".join(records))
    return path


def refusal(base: Path, delta: Path, tmp_path: Path) -> str:
    with pytest.raises(JetfleetError) as caught:
        patch(base, delta, tmp_path / "out", 1)
    return caught.value.code


def test_a_frame_that_unpacks_to_more_than_its_record_says(base: Path, tmp_path: Path) -> None:
    """256 MiB of zeros in 8 KB, in a record that says 1,000 bytes: with the size in the frame, and without."""
    for packed in (zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20)),
                   zstandard.ZstdCompressor(level=19, write_content_size=False).compress(bytes(1 << 20))):
        delta = bomb(tmp_path, write_record(Data(1000, 0, 0, packed[:1900])), target_size=1000)
        assert refusal(base, delta, tmp_path) == "delta.malformed"
        assert (tmp_path / "out").stat().st_size <= 1000


def test_records_that_make_more_than_the_target(base: Path, tmp_path: Path) -> None:
    copies = [write_record(Copy(0, 4000))] * 5000
    assert refusal(base, bomb(tmp_path, *copies, target_size=9000), tmp_path) == "delta.malformed"
    assert (tmp_path / "out").stat().st_size <= 9000


@pytest.mark.parametrize("record", [Copy(0, 1 << 40), Copy(1 << 60, 1), Data((1 << 31) - 1, 0, 0, b"x"), Data(10, 0, 1 << 31, b"x")])
def test_records_that_reach_beyond_everything(base: Path, tmp_path: Path, record: Copy | Data) -> None:
    assert refusal(base, bomb(tmp_path, write_record(record)), tmp_path) == "delta.malformed"


def test_the_right_size_with_other_content_is_never_the_target(base: Path, tmp_path: Path) -> None:
    assert refusal(base, bomb(tmp_path, write_record(Copy(0, 1000))), tmp_path) == "delta.wrong-result"


def test_a_log_that_a_board_gives_as_a_bomb() -> None:
    with pytest.raises(MalformedError) as caught:
        device.unpacked(gzip.compress(bytes(device.MAX_LOG_BYTES + 1)))
    assert caught.value.code == "logs.large"
