"""The evaluation job: run one candidate (model file, backend, execution precision) over images, alone in a process.

Three callers, one program (`python -m jetfleet_agent.pipeline.evaluate JOB RESULT`): the builder scores variants with
it, a board measures its candidates with it before it chooses, and a trial probes a challenger with it before the
challenger comes near the live pipeline. So what was measured is what runs, and a vendor crash costs a process.
"""

from __future__ import annotations

from typing import Literal

from .bundle import TaskSpec
from .messages import Message
from .predictions import Detection
from .sketch import Sketch


class EvaluationJob(Message, frozen=True):
    """What to run. Paths are local to the process.

    `images` are decoded, pre-processed, inferred and decoded one by one (batch 1); `latency_runs` more inferences on
    the first image's tensor are timed after `warmup` untimed ones. `raw_output` names a .npz for the raw tensors.
    """

    model: str
    task: TaskSpec
    backend: Literal["onnxruntime", "openvino", "tensorrt"]
    precision: str = "fp32"
    threads: int = 0
    images: tuple[str, ...] = ()
    warmup: int = 5
    latency_runs: int = 30
    raw_output: str = ""


class EvaluationResult(Message, frozen=True):
    """What came out. `error` is an error code and its text when the candidate could not run; then the rest is empty.

    `latency` is the session alone in ms; `provider` is what the runtime really used; `precision` what it really ran in.
    """

    backend: str
    provider: str = ""
    precision: str = ""
    versions: dict[str, str] = {}
    activate_ms: float = 0.0
    latency: Sketch = Sketch()
    latency_ms: tuple[float, ...] = ()
    predictions: tuple[tuple[Detection, ...], ...] = ()
    peak_rss_mb: float = 0.0
    error: str = ""
    detail: str = ""


MAX_RESULT_BYTES = 64 << 20
