"""ONNX Runtime, the fallback that runs everywhere: CPU execution provider, I/O bound to memory of our own.

What really ran, node by node, is told only by the runtime's profile. It is taken of the one run that also tells the outputs' shapes, and
ended before the first frame (measured: no difference in session time, 3 to 6 ms to read). It has shown that a symmetric int8 file is
computed in float on x86, 60 of 64 convolutions of PP-OCRv4's detector, and an fp16 file altogether.

Memory arena and pattern stay on (without the arena a 28 ms session took 44 ms). Optimised graphs are not kept on disk: loading took 20 to
60 ms, and they would be files that nobody has signed.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, check_input_shape
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure

log = logging.getLogger(__name__)

_REMEDY = "install the wheel: pip install 'jetfleet-agent[onnxruntime]'"
_CPU = "CPUExecutionProvider"
_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
_HEAVY = ("Conv", "Gemm", "MatMul")
MAX_PROFILE_BYTES = 64 << 20


class OnnxRuntime(Backend):
    """One session; each lane has its own binding. `tuning.provider` names another execution provider, with the CPU for what it lacks."""

    name = "onnxruntime"
    precisions = ("fp32", "fp16", "int8")

    _session: Any = None
    _varies = False

    def _load(self, count: int) -> tuple[Lane, ...]:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise IncompatibleError("backend.missing", f"ONNX Runtime cannot be imported: {error}", remedy=_REMEDY) from None
        wanted = self.tuning.provider or _CPU
        if wanted not in ort.get_available_providers():
            raise IncompatibleError("backend.fallback", f"ONNX Runtime {ort.__version__} has no {wanted}",
                                    remedy=f"it has {', '.join(ort.get_available_providers())}")
        self.versions = {"onnxruntime": ort.__version__}
        with tempfile.TemporaryDirectory(prefix="jetfleet-profile-") as folder:
            options = self._options(ort, Path(folder))
            try:
                self._session = ort.InferenceSession(str(self.path), options, providers=list(dict.fromkeys((wanted, _CPU))))
            except Exception as error:  # noqa: BLE001  the runtime raises types of its own, one per failure
                raise RuntimeFailure("backend.load", f"ONNX Runtime cannot load {self.path.name}: {_short(error)}",
                                     where=str(self.path)) from None
            shapes = self._output_shapes()
            self._varies = _varies([output.shape for output in self._session.get_outputs()], list(self._session.get_inputs()[0].shape))
            self._read_back(Path(self._session.end_profiling()))
        return tuple(self._lane(ort, index, shapes) for index in range(count))

    def _options(self, ort: Any, folder: Path) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "run")
        if self.tuning.flush:
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if self.tuning.sleeping:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.tuning.pinned:
            cores = sorted(os.sched_getaffinity(0))[:self.threads or None]
            options.intra_op_num_threads = len(cores)
            if len(cores) > 1:  # the calling thread is the first worker and stays free; cores count from 1 there
                options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:]))
        return options

    def _read_back(self, profile: Path) -> None:
        """Where and in what the layers with weights ran. Without a profile (a full disk) the session's first provider is all there is."""
        self.provider = str(self._session.get_providers()[0])
        try:
            with profile.open("rb") as file:
                events = json.loads(file.read(MAX_PROFILE_BYTES))
        except (OSError, ValueError) as error:
            log.warning("what ONNX Runtime did with %s cannot be read back: %s", self.path.name, error)
            return
        layers: Counter[str] = Counter()
        providers: Counter[str] = Counter()
        for event in events:
            args = event.get("args", {})
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and any(part in args["op_name"] for part in _HEAVY):
                kind = next(iter(args["input_type_shape"][0]))
                layers[_NAMES.get(kind, kind)] += 1
                providers[args["provider"]] += 1
        self.layers = dict(layers)
        self.provider = providers.most_common(1)[0][0] if providers else self.provider

    def _lane(self, ort: Any, index: int, shapes: list[tuple[tuple[int, ...], Any]]) -> Lane:
        tensor = np.zeros(self.input_shape, np.float32)
        if self._varies:  # a binding keeps the first frame's memory, and refuses a second frame with more rows
            return Lane(index, tensor, {self._session.get_inputs()[0].name: tensor})
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(tensor))
        outputs = []
        for output, (shape, kind) in zip(self._session.get_outputs(), shapes, strict=True):
            buffer = np.zeros(shape, kind)
            binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(buffer))
            outputs.append(buffer)
        return Lane(index, tensor, binding, tuple(outputs))

    def _output_shapes(self) -> list[tuple[tuple[int, ...], Any]]:
        """Shapes and types at this input shape: declared ones may be symbolic, so one run tells them."""
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise IncompatibleError("backend.input", f"{self.path.name} has {len(inputs)} inputs, it needs one image")
        check_input_shape(self.path.name, list(inputs[0].shape), self.input_shape)
        if inputs[0].type != "tensor(float)":
            raise IncompatibleError("backend.input", f"{self.path.name} takes {inputs[0].type}, we make tensor(float)",
                                    remedy="keep the model's input in float32; weights may be of any type")
        image = np.zeros(self.input_shape, np.float32)
        try:
            return [(value.shape, value.dtype) for value in self._session.run(None, {inputs[0].name: image})]
        except Exception as error:  # noqa: BLE001
            raise RuntimeFailure("backend.run", f"ONNX Runtime cannot run {self.path.name}: {_short(error)}") from None

    def _run(self, lane: Lane) -> Outputs:
        try:
            if self._varies:
                return tuple(self._session.run(None, lane.binding))
            self._session.run_with_iobinding(lane.binding)
        except Exception as error:  # noqa: BLE001
            raise RuntimeFailure("backend.run", f"ONNX Runtime failed on {self.path.name}: {_short(error)}") from None
        return lane.outputs

    def _unload(self) -> None:
        self._session = None


def _varies(outputs: list[list[Any]], given: list[Any]) -> bool:
    """Whether an output has a free axis though the input has none: its size follows from what is in the frame (NonMaxSuppression,
    NonZero). Free axes that the input has too are fixed by its shape."""
    return all(isinstance(size, int) for size in given) and any(not isinstance(size, int) for shape in outputs for size in shape)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
