"""Video files that are not as they should be: another resolution half-way, a damaged group of pictures, an end that is missing."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jetfleet_agent.pipeline.sources import FreshBuffers, open_source
from jetfleet_contract.errors import SourceError
from jetfleet_contract.messages import Source


def encoded(width: int, height: int, frames: int, gop: int = 10) -> list[bytes]:
    """Access units of an Annex B H.264 stream: a bright square that moves."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {"g": str(gop), "bf": "0", "preset": "ultrafast", "tune": "zerolatency"}
    units = []
    for index in range(frames):
        image = np.full((height, width, 3), 40, np.uint8)
        image[height // 4:height // 2, index * 2:index * 2 + 20] = 230
        units += [bytes(packet) for packet in encoder.encode(av.VideoFrame.from_ndarray(image, format="bgr24"))]
    return units + [bytes(packet) for packet in encoder.encode(None)]


def sizes(path: Path) -> list[tuple[int, int]]:
    """(width, height) of every frame that a file gives."""
    source = open_source(Source("front", str(path)))
    source.open()
    found = []
    try:
        while (shot := source.read(FreshBuffers())) is not None:
            found.append((shot.image.shape[1], shot.image.shape[0]))
    finally:
        source.close()
    return found


def save(path: Path, units: Iterable[bytes]) -> Path:
    path.write_bytes(b"".join(units))
    return path


def test_two_resolutions_in_one_file(tmp_path: Path) -> None:
    path = save(tmp_path / "two.h264", [*encoded(320, 240, 20), *encoded(160, 128, 20)])
    found = sizes(path)
    assert len(found) == 40, "a frame is missing"
    assert found[0] == (320, 240)
    assert found[-1] in {(160, 128), (320, 240)}, "its own size, or scaled to the first one"


def test_a_damaged_group_of_pictures_ends_with_the_next_key_frame(tmp_path: Path) -> None:
    units = encoded(320, 240, 60)
    damaged = [unit if not 20 < index < 28 else unit[:30] + bytes(len(unit) - 30) for index, unit in enumerate(units)]
    found = sizes(save(tmp_path / "damaged.h264", damaged))
    assert 50 <= len(found) <= 60
    assert set(found) == {(320, 240)}


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, bytes(10_000)])
def test_what_is_no_video_is_said(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        sizes(save(tmp_path / "none.mp4", [content]))
    assert caught.value.code in {"source.open", "source.truncated"}
    assert "none.mp4" in str(caught.value)
