"""TensorFlow's formats enter through tf2onnx, in an environment of its own: TensorFlow and torch agree on few versions of anything.

When that environment is there it is run; otherwise the error holds the commands that make it and convert the file.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from jetfleet_contract.errors import InputError, RuntimeFailure

from .exporting import SCRIPT_OPSET

# tf2onnx is tested with TensorFlow up to 2.15 (2.16 carries Keras 3, which it does not read); that one's ml_dtypes is too old for an
# onnx after 1.17.
PACKAGES = ("tensorflow-cpu==2.15.*", "tf2onnx>=1.16", "onnx==1.17.*")
TIMEOUT_S = 1800.0
_TAIL = 500
_FLAGS = {"tflite": "--tflite", "keras": "--keras", "savedmodel": "--saved-model"}


def convert(model: Path, kind: str, environment: Path, out: Path) -> Path:
    """Convert with the environment's tf2onnx.

    Args:
        kind: tflite, keras (an .h5 file) or savedmodel.
        environment: folder of a Python environment with tf2onnx; it need not be there.

    Raises:
        InputError: `model.convert` with the exact commands when there is no converter, `model.not-onnx` when it refuses the file.
        RuntimeFailure: `build.convert` when it does not end.
    """
    python = environment / "bin" / "python"
    command = [str(python), "-m", "tf2onnx.convert", _FLAGS[kind], str(model), "--output", str(out), "--opset", str(SCRIPT_OPSET)]
    if not python.is_file():
        by_hand = [f"{model.stem}.onnx" if part == str(out) else part for part in command]
        raise InputError("model.convert", f"{model.name} is a {kind} model and the converter is not installed", where=str(model),
                         remedy="run these, then build again, or convert it yourself by the third and give the .onnx file:\n    "
                                + "\n    ".join((*installation(environment), shlex.join(by_hand))))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeFailure("build.convert", f"the converter gave no model within {TIMEOUT_S:.0f} s", where=str(model),
                             remedy=f"run it yourself: {shlex.join(command)}") from None
    if done.returncode or not out.is_file():
        said = " ".join(done.stderr.decode(errors="replace").split())[-_TAIL:]
        raise InputError("model.not-onnx", f"the converter refuses {model.name}: {said}", where=str(model),
                         remedy=f"run it yourself: {shlex.join(command)}")
    return out


def installation(environment: Path) -> tuple[str, str]:
    """The commands that make the converter's environment."""
    folder = shlex.quote(str(environment))
    return f"python3.11 -m venv {folder}", f"{folder}/bin/pip install {shlex.join(PACKAGES)}"
