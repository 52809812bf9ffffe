"""A build's MODEL in whatever form it comes: what kind it is, and its road to ONNX or to a module that can be trained."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.handles import serialized
from jetfleet_host.compress.loading import load_checked
from jetfleet_host.compress.preparing import declared_shape
from jetfleet_host.compress.recipe import Shape

from .channels_first import channels_first
from .converters import convert
from .exporting import export_module, export_program, export_script
from .factories import call_factory, is_factory, said

if TYPE_CHECKING:
    from torch.nn import Module

Kind = Literal["onnx", "factory", "exported", "script", "tflite", "keras", "savedmodel"]
_SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pt2": "exported", ".pt": "script", ".pth": "script", ".ts": "script",
                              ".tflite": "tflite", ".h5": "keras", ".hdf5": "keras"}


def kind_of(text: str) -> Kind:
    """What MODEL is: by what lies there, then by its name.

    Raises:
        InputError: `model.not-found`; `model.format` for what no road leads from; `model.state` for weights without their module.
    """
    path = Path(text)
    if not path.exists():
        if is_factory(text):
            return "factory"
        raise InputError("model.not-found", f"there is no model file {text}", where=text,
                         remedy="check the path; a torch model is given as package.module:function")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "savedmodel"
        raise InputError("model.format", f"the folder {text} is no TensorFlow SavedModel", where=text, remedy="give a model file")
    if path.suffix.lower() == ".keras":
        raise InputError("model.format", f"{path.name} is in the format of Keras 3, which the converter does not read", where=text,
                         remedy=f"export it as a SavedModel: python -c \"import keras; keras.models.load_model('{path}').export("
                                f"'{path.with_suffix('')}')\", and give the folder")
    kind = _SUFFIXES.get(path.suffix.lower(), "onnx")
    if kind == "script" and not _is_script(path):
        raise InputError("model.state", f"{path.name} holds pickled weights or a pickled module, which is not opened: it may run any code",
                         where=text, remedy="give a factory package.module:function that makes the module and loads them, "
                                            "or save with torch.jit or torch.export")
    return kind


def declared_by(text: str) -> Shape | None:
    """The input shape that the model itself tells, 0 for a free axis; None when its form does not tell one. Raises as `kind_of`."""
    return declared_shape(load_checked(Path(text))) if kind_of(text) == "onnx" else None


def module_of(text: str) -> Module:
    """The factory's module, in evaluation mode on the CPU, with finite weights.

    Raises:
        InputError: those of `factories`, `factory.type` when it gives no module, `model.not-finite` naming the parameter.
    """
    import torch

    made = call_factory(text)
    if not isinstance(made, torch.nn.Module):
        raise InputError("factory.type", f"{text} gives a {type(made).__name__}, not a torch.nn.Module", where=text,
                         remedy="return the module with its weights loaded")
    if isinstance(made, torch.jit.ScriptModule):
        raise InputError("factory.type", f"{text} gives a TorchScript module, which cannot be changed", where=text,
                         remedy="return the plain module, or give the .pt file itself")
    check_finite(made, text)
    return made.cpu().eval()


def check_finite(module: Module, where: str) -> None:
    """InputError `model.not-finite` that names the first parameter or buffer with NaN or infinity in it."""
    import torch

    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError("model.not-finite", f"the weights {name} hold NaN or infinity", where=where,
                             remedy="load weights of a training that did not diverge")


def onnx_of(text: str, shape: Shape, checkpoints: Checkpoints, converters: Path) -> Path:
    """MODEL as an ONNX file: itself, or one in the checkpoints.

    Args:
        converters: folder with one Python environment a converter.

    Raises:
        InputError, IncompatibleError, RuntimeFailure: those of `kind_of`, `module_of`, `exporting` and `converters`.
    """
    kind = kind_of(text)
    if kind == "onnx":
        return Path(text)
    if kind == "factory":
        return _kept(export_module(module_of(text), shape), text, checkpoints)
    if kind == "script":
        return _kept(export_script(_loaded_script(text), shape), text, checkpoints)
    if kind == "exported":
        return _kept(export_program(_loaded_program(text), shape), text, checkpoints)
    out = checkpoints.folder / f"{checkpoints.key('convert', str(Path(text).resolve()))}.onnx"
    converted = load_checked(convert(Path(text), kind, converters / "tf2onnx", out))
    return checkpoints.keep_model(checkpoints.key("channels-first", str(Path(text).resolve())), serialized(channels_first(converted))).path


def _kept(data: bytes, text: str, checkpoints: Checkpoints) -> Path:
    return checkpoints.keep_model(checkpoints.key("export", text), data).path


def _is_script(path: Path) -> bool:
    """A TorchScript archive keeps code beside its data; what torch.save writes does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _loaded_script(text: str) -> Any:
    import torch

    try:
        return torch.jit.load(text, map_location="cpu")
    except RuntimeError as error:
        raise InputError("model.truncated", f"{text} cannot be read as TorchScript: {said(error)}", where=text,
                         remedy="copy or save it again") from None


def _loaded_program(text: str) -> Any:
    """The program. It cannot be trained or taken apart any more, so float stages need a factory."""
    import torch

    try:
        return torch.export.load(text)
    except Exception as error:  # noqa: BLE001  the loader raises whatever its parser meets
        raise InputError("model.truncated", f"{text} cannot be read as an exported program: {said(error)}", where=text,
                         remedy="save it again with torch.export.save, with this version of torch") from None
