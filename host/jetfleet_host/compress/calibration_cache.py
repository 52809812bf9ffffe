"""Calibration caches of TensorRT up to 10: the scales that somebody's calibrator found, without calibrating again.

The file is text. Its first line names the version and the algorithm (``TRT-8503-EntropyCalibration2``), each other one a tensor and the
eight hexadecimal digits of its float32 scale, most significant byte first: ``conv1_output: 3c83ab12``. A scale is the width of one int8
step, magnitude / 127. TensorRT 11 has neither calibrators nor caches; in a Q/DQ file their scales live on.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

from jetfleet_contract.errors import InputError

from .calibration import ScaleTable
from .holding import Held

MAX_BYTES = 16 << 20
_HEADER = re.compile(r"TRT-\d{4,8}-(?P<algorithm>[A-Za-z0-9]{1,40})")
_SCALE = re.compile(r"[0-9a-fA-F]{1,8}")
_REMEDY = "give the file that an IInt8Calibrator wrote, or leave out `scales` to calibrate"


def cached_scales(path: Path) -> Held:
    """The scales of a cache by the names of tensors.

    Raises:
        InputError: `build.scales-file` when it cannot be read, is too large or is no cache; the line is named.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("build.scales-file", f"{path.name} is larger than {MAX_BYTES} bytes", where=str(path), remedy=_REMEDY)
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("build.scales-file", f"the calibration cache cannot be read: {error}", where=str(path), remedy=_REMEDY) from None
    header, *lines = text.splitlines() or [""]
    if not _HEADER.fullmatch(header.strip()):
        raise InputError("build.scales-file", f"{path.name} does not start like a TensorRT calibration cache: {header[:60]!r}",
                         where=f"{path}, line 1", remedy=_REMEDY)
    tensors: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if line.strip():
            name, scale = _entry(line, f"{path}, line {number}")
            if scale > 0.0:  # TensorRT writes 0 for a tensor that was always zero: it has no scale to keep
                tensors[name] = scale
    return Held(f"{path.name} ({header.strip()})", tensors, {})


def check_names(held: Held, table: ScaleTable, where: str) -> None:
    """InputError `build.scales-names` when the cache knows no tensor of the model."""
    if not held.tensors.keys() & table.ranges.keys():
        ours = ", ".join(sorted(table.ranges)[:3])
        theirs = ", ".join(sorted(held.tensors)[:3]) or "none"
        raise InputError("build.scales-names", f"the calibration cache and the model share no tensor: it has {theirs}; the model {ours}",
                         where=where, remedy="give the cache that was made with this very ONNX file")


def _entry(line: str, where: str) -> tuple[str, float]:
    name, sep, digits = line.rpartition(":")
    digits = digits.strip()
    if not sep or not name.strip() or not _SCALE.fullmatch(digits):
        raise InputError("build.scales-file", f"not NAME: and eight hexadecimal digits: {line[:80]!r}", where=where, remedy=_REMEDY)
    scale = float(struct.unpack("!f", bytes.fromhex(digits.zfill(8)))[0])
    if not math.isfinite(scale) or scale < 0.0:
        raise InputError("build.scales-file", f"the scale of {name.strip()[:60]!r} is {scale}", where=where, remedy=_REMEDY)
    return name.strip(), scale
