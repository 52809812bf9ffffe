"""Passes that bring any exporter's file into one form: a fixed opset, fixed shapes, no dead or constant nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from jetfleet_contract.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

# Q/DQ per channel needs 13, HardSwish 14; TensorRT 10.3 (JetPack 6) reads up to about 21. 17 is common ground.
OPSET = 17


class Pass(Protocol):
    """One step of preparing: a frozen configuration that can be applied to a model.

    The result must compute the same function up to float rounding; `equality` checks that after each pass.
    """

    @property
    def name(self) -> str: ...

    def apply(self, model: ModelProto) -> ModelProto: ...


class UpgradeOpset(msgspec.Struct, frozen=True, tag="upgrade-opset"):
    """Convert to `opset` with ONNX's own version converter. A newer file is left as it is."""

    opset: int = OPSET

    @property
    def name(self) -> str:
        return "upgrade-opset"

    def apply(self, model: ModelProto) -> ModelProto:
        import onnx.version_converter

        current = opset_of(model)
        if current >= self.opset:
            return model
        try:
            return onnx.version_converter.convert_version(model, self.opset)
        except Exception as error:  # noqa: BLE001  the converter raises bare RuntimeError and ConvertError, whatever the cause
            raise InputError("build.opset", f"the model cannot be upgraded from opset {current} to {self.opset}: {str(error)[:300]}",
                             remedy=f"export it again with opset {self.opset}") from None


class FixShapes(msgspec.Struct, frozen=True, tag="fix-shapes"):
    """Give the one image input a static shape (N, C, H, W) and infer the rest from it."""

    shape: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return "fix-shapes"

    def apply(self, model: ModelProto) -> ModelProto:
        import onnx

        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        kind = check_accepts(fixed, self.shape).type.tensor_type
        del kind.shape.dim[:]
        for size in self.shape:
            kind.shape.dim.add().dim_value = size
        for output in fixed.graph.output:  # stale symbolic dimensions would stop inference; they come back below
            output.type.tensor_type.ClearField("shape")
        del fixed.graph.value_info[:]
        try:
            inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise InputError("build.shape", f"the model does not accept the shape {_text(self.shape)}: {str(error)[:300]}",
                             remedy="give another one with --shape") from None
        return _without_inner_values(inferred)


class Simplify(msgspec.Struct, frozen=True, tag="simplify"):
    """Constant folding, dead node removal, batch norm folding and common pattern clean-up by onnxslim."""

    @property
    def name(self) -> str:
        return "simplify"

    def apply(self, model: ModelProto) -> ModelProto:
        import onnxslim

        return _without_inner_values(onnxslim.slim(model))


def opset_of(model: ModelProto) -> int:
    """The version of the default operator set; 0 when the model imports none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def image_input(model: ModelProto) -> ModelProto:
    """The graph's one input that is not an initialiser.

    Raises:
        InputError: `build.inputs` when there is none, more than one, or it is not a float32 tensor of rank 4.
    """
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    found = [value for value in model.graph.input if value.name not in constants]
    if len(found) != 1:
        names = ", ".join(value.name for value in found) or "none"
        raise InputError("build.inputs", f"the model has {len(found)} inputs ({names}); a vision model of one image input is needed")
    kind = found[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT or len(kind.shape.dim) != 4:
        raise InputError("build.inputs", f"input {found[0].name!r} is no float32 tensor of rank 4 (N, C, H, W)",
                         remedy="export the model with a float32 image input")
    return found[0]


def check_accepts(model: ModelProto, wanted: Sequence[int]) -> ModelProto:
    """The image input, when its fixed sizes are those of `wanted`.

    Raises:
        InputError: `build.inputs`, `build.shape` with the shape that would fit.
    """
    value = image_input(model)
    name, present = value.name, [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    for axis, (now, then) in enumerate(zip(present, wanted, strict=True)):
        if now > 0 and now != then:
            raise InputError("build.shape", f"input {name!r} has a fixed size {now} on axis {axis}, {then} was asked for",
                             remedy=f"use --shape {_text([p if p > 0 else w for p, w in zip(present, wanted, strict=True)])}")
    return value


def declared_shape(model: ModelProto) -> tuple[int, int, int, int]:
    """The image input's (N, C, H, W) as the file fixes it, 0 for a free axis. InputError `build.inputs`."""
    n, c, h, w = (max(0, int(dim.dim_value)) for dim in image_input(model).type.tensor_type.shape.dim)
    return n, c, h, w


def _without_inner_values(model: ModelProto) -> ModelProto:
    # Inferred shapes of inner tensors are cheap to make again and go stale as soon as a pass touches the graph.
    del model.graph.value_info[:]
    return model


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
