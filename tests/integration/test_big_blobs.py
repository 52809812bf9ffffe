"""Blobs of many chunks: a table of two levels, and memory that does not grow with the blob."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "big_transfer.py"
GIB = 1 << 30


def transfer(folder: Path, size: int, chunk_size: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, str(PROGRAM), str(folder), str(size), str(chunk_size)], capture_output=True, text=True,
                          timeout=900, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_a_table_of_two_levels_comes_before_its_chunks(tmp_path: Path) -> None:
    size = 4096 * 1024 + 5
    told = transfer(tmp_path, size, 1024)
    assert told["stored"] == size
    assert told["pages"] == 17 + 1
    assert told["useful"] == size + 4097 * 32 + 17 * 32
    assert told["published"] <= size * 1.06  # 8 bytes a chunk of 1 KiB, and 32 in the table
    assert told["received"] == told["published"]


@pytest.mark.slow
def test_two_gigabytes_pass_through_bounded_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 6 * GIB:
        pytest.skip("fewer than 6 GiB are free")
    small, big = transfer(tmp_path / "small", 16 << 20, 65536), transfer(tmp_path / "big", 2 * GIB + 77, 65536)
    print(f"2 GiB in {big['seconds']:.0f} s, peak {big['peak_mb']:.0f} MB; 16 MiB: peak {small['peak_mb']:.0f} MB")
    shutil.rmtree(tmp_path / "big")
    assert big["stored"] == 2 * GIB + 77
    assert big["published"] <= 2 * GIB * 1.002
    assert big["peak_mb"] < 250
    assert big["peak_mb"] - small["peak_mb"] < 60
