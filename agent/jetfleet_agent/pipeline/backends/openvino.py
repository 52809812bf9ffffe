"""OpenVINO's CPU plugin, used natively (onnxruntime-openvino would overwrite ONNX Runtime's own folder).

The precision that really runs is read back from the compiled graph, layer by layer: a CPU without bf16 instructions
quietly falls back to f32, one with them runs bf16 where fp16 was asked for, and a quantized file may keep layers in float.

A graph may take uint8 frames (`Tuning.folded`): the input's normalisation becomes its first nodes, in float32, so that the tensor is a
quarter of the size and nothing is converted before. OpenVINO's own cache on disk (`CACHE_DIR`) stays off: 80 instead of 150 ms a start for
PP-OCRv4's detector, for files that nobody has signed. Engines that somebody did sign are imported, with the settings they were compiled
with: the blob does not hold them, and would run in bf16 what was compiled for fp32.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, check_input_shape, read_engine
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure

_CPU = "CPU"
_REMEDY = "install the wheel: pip install 'jetfleet-agent[openvino]'"
# int8 files carry their own scales; the hint is for what they leave in float.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_HEAVY = {"Convolution", "FullyConnected", "MatMul", "GroupConvolution", "Deconvolution"}


class OpenVino(Backend):
    """One infer request a lane, all of one compiled model, on tensors that share our memory."""

    name = "openvino"
    precisions = ("fp32", "bf16", "fp16", "int8")
    can_fold = True
    has_engines = True

    _compiled: Any = None

    def _load(self, count: int) -> tuple[Lane, ...]:
        try:
            import openvino as ov
        except ImportError as error:
            raise IncompatibleError("backend.missing", f"OpenVINO cannot be imported: {error}", remedy=_REMEDY) from None
        core = ov.Core()
        self._compiled = self._compile(ov, core) if self.engine is None else self._import(core, read_engine(self.engine))
        self.versions = {"openvino": ov.__version__.partition("-")[0]}
        self.provider = ", ".join(self._compiled.get_property("EXECUTION_DEVICES"))
        self.layers = self._executed()
        return tuple(self._lane(ov, index) for index in range(count))

    def _compile(self, ov: Any, core: Any) -> Any:
        try:
            model = core.read_model(str(self.path))
            self._check(model)
            model.reshape(list(self.input_shape))
            if self.tuning.folded and self.spec is not None:
                model = _with_frames(ov, model, self.spec)
            return core.compile_model(model, self.tuning.provider or _CPU, self._settings())
        except IncompatibleError:
            raise
        except Exception as error:  # noqa: BLE001  the binding raises RuntimeError and subclasses of its own
            raise RuntimeFailure("backend.load", f"OpenVINO cannot load {self.path.name}: {_short(error)}",
                                 where=str(self.path)) from None

    def _import(self, core: Any, data: bytes) -> Any:
        try:
            compiled = core.import_model(data, self.tuning.provider or _CPU, self._settings())
            taken = [(tuple(entry.shape), entry.get_element_type().get_type_name()) for entry in compiled.inputs]
        except Exception as error:  # noqa: BLE001  as above
            raise RuntimeFailure("engine.load", f"OpenVINO refuses the engine of {self.path.name}: {_short(error)}",
                                 remedy="it is compiled here instead") from None
        if taken != [(self._tensor_shape, "u8" if self.tuning.folded else "f32")]:
            raise RuntimeFailure("engine.load", f"the engine of {self.path.name} takes {taken}, not {self._tensor_shape}",
                                 remedy="it is compiled here instead")
        return compiled

    def _exported(self) -> bytes:
        written = io.BytesIO()
        self._compiled.export_model(written)
        return written.getvalue()

    @property
    def _tensor_shape(self) -> tuple[int, ...]:
        count, channels, height, width = self.input_shape
        return (count, height, width, channels) if self.tuning.folded else self.input_shape

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
        if self.tuning.provider in ("", _CPU):
            settings["ENABLE_CPU_PINNING"] = self.tuning.pinned  # its default is on: then all processes' second threads share core 1
            if self.threads:
                settings["INFERENCE_NUM_THREADS"] = self.threads
        return settings

    def _executed(self) -> dict[str, int]:
        """How many layers with weights of the compiled graph run in which precision."""
        counts: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if str(_value(info, "layerType")) in _HEAVY:
                kind = str(_value(info, "runtimePrecision")).lower()
                counts[_NAMES.get(kind, kind)] += 1
        return dict(counts)

    def _lane(self, ov: Any, index: int) -> Lane:
        tensor: Any = np.zeros(self._tensor_shape, np.uint8 if self.tuning.folded else np.float32)
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


def _with_frames(ov: Any, model: Any, spec: InputSpec) -> Any:
    """The model with (N, H, W, 3) uint8 BGR frames as its input: ``(x * scale - mean) / std`` is ``(x - mean / scale) / (std / scale)``."""
    processor = ov.preprocess.PrePostProcessor(model)
    entry = processor.input()
    entry.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(ov.preprocess.ColorFormat.BGR)
    entry.model().set_layout(ov.Layout("NCHW"))
    steps = entry.preprocess().convert_element_type(ov.Type.f32)
    if spec.color == "rgb":
        steps.convert_color(ov.preprocess.ColorFormat.RGB)
    steps.mean([mean / spec.scale for mean in spec.mean]).scale([std / spec.scale for std in spec.std])
    return processor.build()


def _value(info: Any, key: str) -> Any:
    try:
        entry = info[key]
    except (KeyError, RuntimeError):
        return ""
    return getattr(entry, "value", entry)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
