"""The evaluation job: run one candidate (model file, backend, execution precision) over images, alone in a process.

Three callers, one program (`python -m jetfleet_agent.pipeline.evaluate JOB RESULT`): the builder scores variants with
it, a board measures its candidates with it before it chooses, and a trial probes a challenger with it before the
challenger comes near the live pipeline. So what was measured is what runs, and a vendor crash costs a process.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from .bundle import TaskSpec
from .engines import EngineFile
from .messages import Message
from .predictions import Detection
from .sketch import Sketch
from .tuning import MAX_SETTINGS, Tuning, TuningFigures


class EvaluationJob(Message, frozen=True):
    """What to run. Paths are local to the process.

    `images` are decoded, pre-processed, inferred and decoded one by one (batch 1); `latency_runs` more inferences on
    the first image's tensor are timed after `warmup` untimed ones. `raw_output` names a .npz for the raw tensors.
    With a `source` (a URI as `pipeline.sources` has it) its frames are timed instead, each through the whole work and then the session
    alone. `tuning` is how the runtime is set up for all of that; `settings` are measured beside each other for `settings_s` seconds.
    `engine` is loaded instead of compiling the model; what was compiled is written to the file that `export` names. `timing` names a file
    of kernels' timings, which a build of TensorRT reads where it is there, and writes. `kernels` is the agent's state folder, where
    kernels that the host signed lie; empty: only the wheel's are looked for. `share` of all time is the most that images and frames of the
    source may take: below 1 a rest follows each.
    """

    model: str
    task: TaskSpec
    backend: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
    precision: str = "fp32"
    threads: int = 0
    images: tuple[str, ...] = ()
    warmup: int = 5
    latency_runs: int = 30
    raw_output: str = ""
    source: str = ""
    tuning: Tuning = Tuning()
    settings: Annotated[tuple[Tuning, ...], Meta(max_length=MAX_SETTINGS)] = ()
    settings_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 0.0
    engine: EngineFile | None = None
    export: str = ""
    timing: str = ""
    kernels: str = ""
    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0


class EvaluationResult(Message, frozen=True):
    """What came out. `error` is an error code and its text when the candidate could not run; then the rest is empty.

    `latency` is the session alone in ms; `provider` is what the runtime really used; `precision` what it really ran in, `layers` how many
    layers with weights ran in which. With error `backend.fallback` these three say what ran instead of what was asked for. `stage_ms`: pre,
    infer and decode of each frame of the job's source; `latency_ms` is then the session alone behind each. `frames`: mean luma and
    sharpness of each image. `empty_rss_mb` is the process before it loaded the model. `predicted_mb` is set, with error
    `backend.memory`, when it was not started for want of memory. `engine` is what the job's `export` asked for. `cpu_ms`: mean CPU
    time of one session, all threads together. `gpu_work`: where frames were prepared and answers decoded, and why not on the GPU; empty
    where nobody would expect it there.
    """

    backend: str
    provider: str = ""
    precision: str = ""
    versions: dict[str, str] = {}
    activate_ms: float = 0.0
    latency: Sketch = Sketch()
    latency_ms: tuple[float, ...] = ()
    predictions: tuple[tuple[Detection, ...], ...] = ()
    frames: tuple[tuple[float, float], ...] = ()
    peak_rss_mb: float = 0.0
    error: str = ""
    detail: str = ""
    layers: dict[str, int] = {}
    stage_ms: dict[str, tuple[float, ...]] = {}
    tuned: tuple[TuningFigures, ...] = ()
    empty_rss_mb: float = 0.0
    predicted_mb: float = 0.0
    engine: EngineFile | None = None
    cpu_ms: float = 0.0
    gpu_work: str = ""


MAX_RESULT_BYTES = 64 << 20
