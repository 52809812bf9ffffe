"""Reading a stranger's ONNX file: everything that can be wrong with it gets one clear error before any pass runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import IncompatibleError, InputError

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_MODEL_BYTES = 2 << 30
_DOMAINS = ("", "ai.onnx")


def load_checked(path: Path) -> ModelProto:
    """Load a model, with its external data, and check it.

    Raises:
        InputError: `model.not-found`, `model.large`, `model.not-onnx`, `model.truncated`, `model.external-data`,
            `model.invalid`, `model.not-finite` (names the weights).
        IncompatibleError: `model.operator` for an operator set or operator that our runtimes do not have, with the node's name.
    """
    import onnx

    if not path.is_file():
        raise InputError("model.not-found", f"there is no model file {path}", where=str(path), remedy="check the path")
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise InputError("model.large", f"{path.name} has {size} bytes, one ONNX file may have {MAX_MODEL_BYTES}", where=str(path))
    model = _parsed(path)
    _check_operators(path, model)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError("model.external-data", f"{path.name} keeps weights in a file that cannot be read: {_first_line(error)}",
                         where=str(path), remedy="put the .data file beside the .onnx file, or export with one file") from None
    _check_graph(path, model)
    _check_finite(path, model)
    return model


def _parsed(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        # A protobuf of the right kind that stops short still starts with the IR version field (tag 1, varint).
        if len(data) > 64 and data[0] == 0x08 and 0 < data[1] < 32:
            raise InputError("model.truncated", f"{path.name} is a damaged or truncated ONNX file of {len(data)} bytes", where=str(path),
                             remedy="copy or export it again") from None
        raise _no_onnx(path) from None
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise _no_onnx(path)
    if not model.graph.node:
        raise InputError("model.not-onnx", f"{path.name} holds an empty graph", where=str(path), remedy="export the model again")
    return model


def _no_onnx(path: Path) -> InputError:
    return InputError("model.not-onnx", f"{path.name} is not an ONNX model", where=str(path),
                      remedy="give an .onnx file; a PyTorch checkpoint is exported with torch.onnx.export first")


def _check_operators(path: Path, model: ModelProto) -> None:
    import onnx.defs

    versions = {("" if entry.domain in _DOMAINS else entry.domain): entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if versions.get("", 0) > newest:
        raise IncompatibleError("model.operator", f"{path.name} uses operator set {versions['']}, this build knows up to {newest}",
                                where=str(path), remedy="export it with an older opset, or install a newer onnx")
    functions = {(function.domain, function.name) for function in model.functions}
    for index, node in enumerate(model.graph.node):
        if (node.domain, node.op_type) in functions:
            continue
        where = f"node {node.name or index!r} in {path}"
        if node.domain not in _DOMAINS:
            raise IncompatibleError("model.operator", f"operator {node.domain}.{node.op_type} is outside the standard ONNX set",
                                    where=where, remedy="export the model without custom operators")
        if not onnx.defs.has(node.op_type, max_inclusive_version=versions.get("", 0), domain=""):
            raise IncompatibleError("model.operator", f"operator {node.op_type} does not exist in operator set {versions.get('', 0)}",
                                    where=where, remedy="export the model again with a standard exporter")


def _check_graph(path: Path, model: ModelProto) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError("model.invalid", f"{path.name} is not a valid ONNX graph: {_first_line(error)}", where=str(path),
                         remedy="export it again; onnx.checker names the node") from None


def _check_finite(path: Path, model: ModelProto) -> None:
    import numpy as np
    import onnx.numpy_helper

    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        # Infinity may be meant (masks), NaN never is.
        if tensor.data_type in kinds and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise InputError("model.not-finite", f"the weights {tensor.name} of {path.name} hold NaN", where=str(path),
                             remedy="export a model whose training did not diverge")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
