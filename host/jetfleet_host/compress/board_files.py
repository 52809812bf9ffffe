"""Int8 files beside the twins that only some targets want, chosen by their board files; all from the one scale table.

The ARM file is for CPUs of that architecture without a GPU. The narrow file is for x86 boards whose instruction sets multiply bytes
without VNNI or AMX: there two neighbouring products of an unsigned activation and a full-range weight saturate a 16-bit sum. The dynamic
file needs no calibration: products alone, with activation scales found at run time.
"""

from __future__ import annotations

from collections.abc import Sequence

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.policy import WIDE_SUMS

from .graphs import GraphView
from .handles import ModelHandle, serialized
from .placement import PRODUCTS, Layout, quantizable


def layouts_for(boards: Sequence[BoardFile]) -> tuple[Layout, ...]:
    """Layouts that the targets want beside qdq-int8 and qdq-uint8."""
    found: list[Layout] = []
    cpus = [board for board in boards if board.gpu is None and "int8" in _precisions(board)]
    if any(board.arch == "aarch64" for board in cpus):
        found.append("qdq-arm")
    if any(board.arch == "x86_64" and board.any_isa and not WIDE_SUMS & set(board.any_isa) for board in cpus):
        found.append("qdq-uint8-narrow")
    return tuple(found)


def dynamic_int8(model: ModelHandle) -> bytes | None:
    """The model with int8 weights in its products and their inputs quantized at run time, by ONNX Runtime's tool; None without products.

    Convolutions stay float: on CPUs their dynamic integer kernel is slower than the float one.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = model.load()
    if not any(node.op_type in PRODUCTS for node in quantizable(GraphView(proto))):
        return None
    target = model.path.with_suffix(".dynamic.partial")
    entry = proto.metadata_props.add()  # the mark of its own preparation: without it the tool warns on every file
    entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"
    try:
        quantize_dynamic(proto, str(target), op_types_to_quantize=list(PRODUCTS), per_channel=True, weight_type=QuantType.QInt8)
        made = onnx.load(str(target))
        del made.metadata_props[:]
        return serialized(made)
    finally:
        target.unlink(missing_ok=True)


def _precisions(board: BoardFile) -> tuple[str, ...]:
    rule = board.rule("onnxruntime")
    return tuple(rule.precisions) if rule is not None else ()
