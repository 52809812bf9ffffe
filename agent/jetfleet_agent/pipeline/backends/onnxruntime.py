"""ONNX Runtime, the fallback that runs everywhere: CPU execution provider, I/O bound to memory of our own."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, check_input_shape
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure

_REMEDY = "install the wheel: pip install 'jetfleet-agent[onnxruntime]'"


class OnnxRuntime(Backend):
    """`precision` names the weight file; fp16 weights are computed in fp32 by the CPU provider on x86 (casts inserted)."""

    name = "onnxruntime"
    precisions = ("fp32", "fp16", "int8")

    _session: Any = None

    def _load(self, count: int) -> tuple[Lane, ...]:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise IncompatibleError("backend.missing", f"ONNX Runtime cannot be imported: {error}", remedy=_REMEDY) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  the runtime raises types of its own, one per failure
            raise RuntimeFailure("backend.load", f"ONNX Runtime cannot load {self.path.name}: {_short(error)}",
                                 where=str(self.path)) from None
        self.versions = {"onnxruntime": ort.__version__}
        self.provider = self._session.get_providers()[0]
        if self.requested == "fp16" and platform.machine() in {"x86_64", "AMD64"}:
            self.precision = "fp32"
        return tuple(self._lane(ort, index) for index in range(count))

    def _lane(self, ort: Any, index: int) -> Lane:
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise IncompatibleError("backend.input", f"{self.path.name} has {len(inputs)} inputs, it needs one image")
        check_input_shape(self.path.name, list(inputs[0].shape), self.input_shape)
        if inputs[0].type != "tensor(float)":
            raise IncompatibleError("backend.input", f"{self.path.name} takes {inputs[0].type}, we make tensor(float)",
                                    remedy="keep the model's input in float32; weights may be of any type")
        tensor = np.zeros(self.input_shape, np.float32)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(inputs[0].name, ort.OrtValue.ortvalue_from_numpy(tensor))
        try:
            shapes = self._output_shapes(inputs[0].name, tensor)
        except Exception as error:  # noqa: BLE001
            raise RuntimeFailure("backend.run", f"ONNX Runtime cannot run {self.path.name}: {_short(error)}") from None
        outputs = []
        for output, (shape, kind) in zip(self._session.get_outputs(), shapes, strict=True):
            buffer = np.zeros(shape, kind)
            binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(buffer))
            outputs.append(buffer)
        return Lane(index, tensor, binding, tuple(outputs))

    def _output_shapes(self, name: str, tensor: Any) -> list[tuple[tuple[int, ...], Any]]:
        """Shapes and types at this input shape: declared ones may be symbolic, so one run tells them (first lane only)."""
        if not hasattr(self, "_shapes"):
            self._shapes = [(value.shape, value.dtype) for value in self._session.run(None, {name: tensor})]
        return self._shapes

    def _run(self, lane: Lane) -> Outputs:
        try:
            self._session.run_with_iobinding(lane.binding)
        except Exception as error:  # noqa: BLE001
            raise RuntimeFailure("backend.run", f"ONNX Runtime failed on {self.path.name}: {_short(error)}") from None
        return lane.outputs

    def _unload(self) -> None:
        self._session = None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
