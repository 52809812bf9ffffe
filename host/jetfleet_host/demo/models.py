"""The demo's models: PP-OCRv4's text detector and PP-OCR's text-orientation classifier (Apache-2.0, PaddlePaddle).

The PyPI wheel `rapidocr-onnxruntime` carries both as ONNX files. We take the files out of the wheel and never install
it: its dependencies would put OpenCV's desktop build over the headless one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from jetfleet_contract.errors import InputError, TransportError

PACKAGE = "rapidocr-onnxruntime"
VERSION = "1.4.4"
WHEEL = f"rapidocr_onnxruntime-{VERSION}-py3-none-any.whl"
DOWNLOAD_TIMEOUT_S = 300
_MAX_MODEL_BYTES = 64 << 20


@dataclass(frozen=True)
class WheelModel:
    """One ONNX file inside the wheel, pinned by its SHA-256 (hex)."""

    file: str
    member: str
    sha256: str


DETECTOR = WheelModel(
    "ppocrv4_det.onnx",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
)
ORIENTATION = WheelModel(
    "ppocr_orientation.onnx",
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
)


def cache_folder() -> Path:
    """Where the demo keeps what it fetched or built: ``$XDG_CACHE_HOME/jetfleet``, else ``~/.cache/jetfleet``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "jetfleet"


def text_detector(cache: Path | None = None) -> Path:
    """PP-OCRv4's mobile text detector (DB): 3 x H x W in, 1 x H x W text probability out; H, W multiples of 32.

    Args:
        cache: folder to keep the file in; the user's cache when None.

    Raises:
        TransportError: `demo.index` when the package index cannot be reached.
        InputError: `demo.model` when the wheel does not hold the pinned bytes.
    """
    return _model(DETECTOR, cache or cache_folder())


def text_orientation(cache: Path | None = None) -> Path:
    """PP-OCR's text-line orientation classifier: 3 x 48 x 192 in, probabilities of "0" and "180" degrees out."""
    return _model(ORIENTATION, cache or cache_folder())


def _model(model: WheelModel, cache: Path) -> Path:
    path = cache / "models" / model.file
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256:
        return path
    wheel = cache / WHEEL
    if not wheel.is_file():
        _download(cache)
    _write(path, _extract(wheel, model))
    return path


def _download(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # The wheel is pure Python but says "Python < 3.13"; we only unzip it, so any interpreter may fetch it.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary=:all:", "--python-version=3.12", "--dest", scratch, f"{PACKAGE}=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
            trouble = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except subprocess.TimeoutExpired:
            trouble = [f"no answer within {DOWNLOAD_TIMEOUT_S} s"]
        fetched = Path(scratch) / WHEEL
        if trouble or not fetched.is_file():
            raise TransportError(
                "demo.index", f"cannot fetch {PACKAGE} {VERSION}, which carries the demo's models: {''.join(trouble)}",
                where="the Python package index that pip is set up with",
                remedy=f"go online once, set PIP_INDEX_URL to a mirror, or put {WHEEL} into {cache}")
        fetched.replace(cache / WHEEL)


def _extract(wheel: Path, model: WheelModel) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(model.member).file_size
            data = archive.read(model.member) if size <= _MAX_MODEL_BYTES else b""
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise InputError("demo.model", f"the wheel with the demo's models is damaged: {error}", where=str(wheel),
                         remedy="delete that file and run again") from None
    if hashlib.sha256(data).hexdigest() != model.sha256:
        raise InputError("demo.model", f"{model.member} in the wheel is not the file that this version was made for",
                         where=str(wheel), remedy="delete that file and run again")
    return data


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(data)
    Path(partial.name).replace(path)
