"""OpenVINO's CPU plugin, used natively (onnxruntime-openvino would overwrite ONNX Runtime's own folder).

The precision that really runs is read back from the compiled graph, layer by layer: a CPU without bf16 instructions
quietly falls back to f32, and a quantized file may keep layers in float.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, check_input_shape
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure

_REMEDY = "install the wheel: pip install 'jetfleet-agent[openvino]'"
# int8 files carry their own scales; the hint is for what they leave in float.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_HEAVY = {"Convolution", "FullyConnected", "MatMul", "GroupConvolution", "Deconvolution"}


class OpenVino(Backend):
    """One infer request a lane, all of one compiled model, on tensors that share our memory."""

    name = "openvino"
    precisions = ("fp32", "bf16", "fp16", "int8")

    _compiled: Any = None

    def _load(self, count: int) -> tuple[Lane, ...]:
        try:
            import openvino as ov
        except ImportError as error:
            raise IncompatibleError("backend.missing", f"OpenVINO cannot be imported: {error}", remedy=_REMEDY) from None
        core = ov.Core()
        try:
            model = core.read_model(str(self.path))
            self._check(model)
            model.reshape(list(self.input_shape))
            self._compiled = core.compile_model(model, "CPU", self._settings())
        except IncompatibleError:
            raise
        except Exception as error:  # noqa: BLE001  the binding raises RuntimeError and subclasses of its own
            raise RuntimeFailure("backend.load", f"OpenVINO cannot load {self.path.name}: {_short(error)}",
                                 where=str(self.path)) from None
        self.versions = {"openvino": ov.__version__.partition("-")[0]}
        self.provider = "CPU"
        self.precision = self._executed()
        return tuple(self._lane(ov, index) for index in range(count))

    def _check(self, model: Any) -> None:
        if len(model.inputs) != 1:
            raise IncompatibleError("backend.input", f"{self.path.name} has {len(model.inputs)} inputs, it needs one image")
        shape = model.inputs[0].get_partial_shape()
        declared = [dim.get_length() if dim.is_static else -1 for dim in shape]
        check_input_shape(self.path.name, declared, self.input_shape)
        kind = model.inputs[0].get_element_type().get_type_name()
        if kind != "f32":
            raise IncompatibleError("backend.input", f"{self.path.name} takes {kind}, we make f32",
                                    remedy="keep the model's input in float32; weights may be of any type")

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.requested],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if self.threads:
            settings["INFERENCE_NUM_THREADS"] = self.threads
        return settings

    def _executed(self) -> str:
        """The precision of most of the heavy layers in the compiled graph."""
        counts: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if str(_value(info, "layerType")) in _HEAVY:
                counts[str(_value(info, "runtimePrecision")).lower()] += 1
        if not counts:
            return self.requested
        most = counts.most_common(1)[0][0]
        return _NAMES.get(most, most)

    def _lane(self, ov: Any, index: int) -> Lane:
        tensor = np.zeros(self.input_shape, np.float32)
        request = self._compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(tensor, shared_memory=True))
        return Lane(index, tensor, request)

    def _run(self, lane: Lane) -> Outputs:
        try:
            lane.binding.start_async()
            lane.binding.wait()
            return tuple(output.data for output in lane.binding.output_tensors)
        except Exception as error:  # noqa: BLE001
            raise RuntimeFailure("backend.run", f"OpenVINO failed on {self.path.name}: {_short(error)}") from None

    def _unload(self) -> None:
        self._compiled = None


def _value(info: Any, key: str) -> Any:
    try:
        entry = info[key]
    except (KeyError, RuntimeError):
        return ""
    return getattr(entry, "value", entry)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
