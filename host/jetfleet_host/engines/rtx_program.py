"""TensorRT for RTX in a process of its own: the one file that imports it. No GPU and no driver are needed.

    python -m jetfleet_host.engines.rtx_program JOB RESULT

Progress goes to standard output, one JSON object a line. A crash of the library is this process's end, nobody else's. A timing cache is
never used: with one the library asks for a GPU.
"""

from __future__ import annotations

import hashlib
import resource
import sys
from pathlib import Path
from typing import Any

from jetfleet_contract.messages import decode, encode
from jetfleet_host.engines.jobs import MAX_RESULT_BYTES, Fault, Progress, RtxJob, RtxResult

_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "outofmemory", "std::length_error")
_FAULTS = 64
_TEXT = 300


def run(job: RtxJob) -> RtxResult:
    """Do the job; every failure is a result."""
    if job.memory_mb:
        resource.setrlimit(resource.RLIMIT_AS, (job.memory_mb << 20, job.memory_mb << 20))
    sys.path.insert(0, job.libraries)
    try:
        import tensorrt_rtx_bindings as trt
    except (ImportError, OSError) as error:
        return RtxResult(code="engine.library", detail=_short(error))
    try:
        return _Session(trt).run(job)
    except MemoryError:
        return RtxResult(trt.__version__, code="engine.memory", detail=f"{job.memory_mb} MB of address space were not enough")
    except Exception as error:  # noqa: BLE001  the binding raises RuntimeError, TypeError and classes of its own
        return RtxResult(trt.__version__, code="engine.build", detail=_short(error))


class _Session:
    """One builder with its logger, which must outlive all that was made with it."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._log = _logger(trt)
        self._builder = trt.Builder(self._log)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self._network, self._log)

    def run(self, job: RtxJob) -> RtxResult:
        faults = self._parse(Path(job.model))
        if faults or not job.engine:
            return RtxResult(self._trt.__version__, faults)
        config = self._builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(self._trt.ComputeCapability.__members__[f"SM{job.sm}"], 0)
        faults = self._profile(config, {span.name: span for span in job.spans})
        if faults:
            return RtxResult(self._trt.__version__, faults)
        config.progress_monitor = _monitor(self._trt)
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            said = "; ".join(self._log.errors) or "the builder gave no reason"
            memory = any(word in said.lower() for word in _OUT_OF_MEMORY)
            return RtxResult(self._trt.__version__, code="engine.memory" if memory else "engine.build", detail=said[:_TEXT * 3])
        with Path(job.engine).open("wb") as stream:
            stream.write(memoryview(plan))
        with Path(job.engine).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _say("Engine written", 100.0)
        return RtxResult(self._trt.__version__, size=Path(job.engine).stat().st_size, digest="sha256:" + digest)

    def _parse(self, model: Path) -> tuple[Fault, ...]:
        if self._parser.parse_from_file(str(model)):
            return ()
        found = [self._fault(self._parser.get_error(index)) for index in range(min(self._parser.num_errors, _FAULTS))]
        return tuple(found) or (Fault("engine.parse", "; ".join(self._log.errors)[:_TEXT] or "the parser gave no reason"),)

    def _fault(self, error: Any) -> Fault:
        said, operator = _short(error.desc()), error.node_operator()
        node = error.node_name() or (f"#{error.node()}" if error.node() >= 0 else "")
        if error.code() == self._trt.ErrorCode.MODEL_DESERIALIZE_FAILED:
            return Fault("engine.model", f"the file cannot be read as ONNX: {said}", remedy="export or copy it again")
        if error.code() in (self._trt.ErrorCode.UNSUPPORTED_NODE, self._trt.ErrorCode.UNSUPPORTED_GRAPH):
            about = "" if said in ("", "false") else f": {said}"
            return Fault("engine.operator", f"TensorRT for RTX does not run {operator or 'this graph'} as it is used here{about}", node,
                         operator, "export the model without it, or keep to another backend for this model")
        return Fault("engine.parse", said, node, operator)

    def _profile(self, config: Any, spans: dict[str, Any]) -> tuple[Fault, ...]:
        profile, free = self._builder.create_optimization_profile(), False
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            if all(axis >= 0 for axis in tensor.shape):
                continue
            if tensor.name not in spans:
                return (Fault("engine.profile", f"input {tensor.name} of shape {tuple(tensor.shape)} has free axes and no profile",
                              remedy="give --batch MIN,USUAL,MAX, and --size HxW where height and width are free too"),)
            span, free = spans[tensor.name], True
            profile.set_shape(tensor.name, span.smallest, span.usual, span.largest)
        if free and config.add_optimization_profile(profile) < 0:
            return (Fault("engine.profile", "; ".join(self._log.errors)[:_TEXT] or "the profile does not fit the model"),)
        return ()


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the first errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, said: str) -> None:
            if severity <= trt.ILogger.ERROR and len(self.errors) < _FAULTS:
                self.errors.append(" ".join(said.split())[:_TEXT])

    return Log()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Steps done of the outermost phase, and of it the share that its current inner phases have done."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}
            self._told = -1.0

        def phase_start(self, name: str, _parent: str | None, steps: int) -> None:
            self._phases[name] = [0, max(1, steps)]
            self._tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            self._phases[name][0] = step + 1
            self._tell(name)
            return True

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)

        def _tell(self, name: str) -> None:
            share = 0.0
            for done, steps in reversed(self._phases.values()):
                share = min(1.0, (done + share) / steps)
            if 100.0 * share >= self._told + 1.0:
                self._told = 100.0 * share
                _say(name, self._told)

    return Monitor()


def _say(phase: str, percent: float) -> None:
    sys.stdout.buffer.write(encode(Progress(phase[:80], round(percent, 1))) + b"\n")
    sys.stdout.buffer.flush()


def _short(error: object) -> str:
    return " ".join(str(error).split())[:_TEXT]


def main() -> None:
    """Read the job, do it, write the result."""
    job = decode(Path(sys.argv[1]).read_bytes(), RtxJob, limit=MAX_RESULT_BYTES)
    Path(sys.argv[2]).write_bytes(encode(run(job)))


if __name__ == "__main__":
    main()
