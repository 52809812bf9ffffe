"""Run one candidate over images, alone in this process: ``python -m jetfleet_agent.pipeline.evaluate JOB RESULT``.

Reads an `EvaluationJob`, writes an `EvaluationResult` (contract.evaluation). A candidate that cannot run is an answer, not a
failure: the exit code is 0 and `error` holds the code. Only a job that cannot be read, or a result that cannot be
written, ends with an exit code other than 0. The result is written to a temporary file and renamed, so a reader never sees
half of one; a process that died left none.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_agent.pipeline.frame_times import FrameTimes, rest_after, time_frames
from jetfleet_agent.pipeline.image_stats import luma_and_blur
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.process_memory import is_out_of_memory, resident_mb
from jetfleet_agent.pipeline.settings import measure_settings
from jetfleet_agent.pipeline.tasks import Task, load_task
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError, StorageError
from jetfleet_contract.evaluation import MAX_RESULT_BYTES, EvaluationJob, EvaluationResult
from jetfleet_contract.messages import decode, encode
from jetfleet_contract.predictions import Prediction
from jetfleet_contract.sketch import sketch_of

MAX_WARMUP = 1000
MAX_RUNS = 100_000


def evaluate(job: EvaluationJob) -> EvaluationResult:
    """Run the job; a JetfleetError becomes the result's `error` and `detail`."""
    try:
        return _run(job)
    except JetfleetError as error:
        if is_out_of_memory(error):
            return _no_memory(job, error.what)
        detail = error.what + (f"; {error.remedy}" if error.remedy else "")
        return EvaluationResult(job.backend, error=error.code, detail=detail, peak_rss_mb=_peak_rss_mb())
    except MemoryError as error:
        return _no_memory(job, str(error))
    except Exception as error:  # noqa: BLE001  last line of defence: a vendor's surprise is this candidate's answer
        return EvaluationResult(job.backend, error="backend.crash", detail=f"{type(error).__name__}: {error}"[:300],
                                peak_rss_mb=_peak_rss_mb())


def _no_memory(job: EvaluationJob, said: str) -> EvaluationResult:
    detail = f"{Path(job.model).name} does not fit into memory, it had {_peak_rss_mb():.0f} MB" + (f": {said}" if said else "")
    return EvaluationResult(job.backend, error="backend.memory", detail=detail[:400], peak_rss_mb=_peak_rss_mb())


def _run(job: EvaluationJob) -> EvaluationResult:
    if not 0 <= job.warmup <= MAX_WARMUP or not 0 <= job.latency_runs <= MAX_RUNS:
        raise InputError("job.bad", f"warmup {job.warmup} or latency_runs {job.latency_runs} is out of bounds")
    task = load_task(job.task)
    backend = open_backend(job.backend, Path(job.model), precision=job.precision, threads=job.threads,
                           input_shape=task.input_shape, tuning=job.tuning, spec=task.spec.input, engine=job.engine,
                           timing=Path(job.timing) if job.timing else None, kernels=Path(job.kernels) if job.kernels else None)
    empty_mb = resident_mb()
    began = time.perf_counter()
    try:
        backend.activate()
    except IncompatibleError as error:
        if error.code != "backend.fallback":
            raise
        return EvaluationResult(job.backend, backend.provider, backend.precision, layers=backend.layers, error=error.code,
                                detail=f"{error.what}; {error.remedy}", peak_rss_mb=_peak_rss_mb())
    activate_ms = (time.perf_counter() - began) * 1e3
    try:
        if not job.raw_output:
            backend.decode_by(task.on_gpu)
        engine = backend.export(Path(job.export)) if job.export else None
        frames, predictions, raw = _predict(job, task, backend)
        times, cpu_ms = _times(job, task, backend)
        if job.raw_output:
            _write_raw(Path(job.raw_output), raw)
        return EvaluationResult(
            backend=job.backend, provider=backend.provider, precision=backend.precision,
            versions={**backend.versions, "numpy": np.__version__, "python": sys.version.split()[0]},
            activate_ms=activate_ms, latency=sketch_of(list(times.session_ms)), latency_ms=times.session_ms,
            predictions=tuple(predictions), frames=tuple(frames), peak_rss_mb=_peak_rss_mb(), empty_rss_mb=empty_mb, layers=backend.layers,
            stage_ms=times.stages, tuned=measure_settings(job, task, _first_image(job, task)), engine=engine,
            cpu_ms=cpu_ms, gpu_work=backend.gpu_work)
    finally:
        backend.deactivate()


def _predict(job: EvaluationJob, task: Task, backend: Backend) -> tuple[
        list[tuple[float, float]], list[Prediction], list[tuple[npt.NDArray[Any], ...]]]:
    """Luma and sharpness of each image, what the model says of it, and its raw outputs where the job wants them."""
    lane = backend.lanes[0]
    frames, predictions, raw = [], [], []
    for name in job.images:
        began = time.perf_counter()
        image = read_image(Path(name))
        frames.append(luma_and_blur(image))
        geometry = backend.prepare(image, lane, 0, task.prepare)
        outputs = backend.infer(lane)
        predictions.append(task.decode(outputs, geometry))
        if job.raw_output:
            raw.append(tuple(output.copy() for output in outputs))
        rest_after(time.perf_counter() - began, job.share)
    return frames, predictions, raw


def _times(job: EvaluationJob, task: Task, backend: Backend) -> tuple[FrameTimes, float]:
    if job.source:
        return time_frames(job.source, task, backend, warmup=job.warmup, frames=job.latency_runs, share=job.share), 0.0
    latencies, cpu_ms = _time_session(job, task, backend)
    return FrameTimes(tuple(latencies), {}), cpu_ms


def _time_session(job: EvaluationJob, task: Task, backend: Backend) -> tuple[list[float], float]:
    """Milliseconds of the session alone, on the first image's tensor (a gray one without images), and the mean CPU time of one."""
    lane = backend.lanes[0]
    backend.prepare(_first_image(job, task), lane, 0, task.prepare)
    for _ in range(job.warmup):
        backend.infer(lane)
    latencies = []
    cpu = time.process_time()
    for _ in range(job.latency_runs):
        began = time.perf_counter()
        backend.infer(lane)
        latencies.append((time.perf_counter() - began) * 1e3)
    return latencies, (time.process_time() - cpu) * 1e3 / max(len(latencies), 1)


def _first_image(job: EvaluationJob, task: Task) -> Image:
    """The first image, a gray one of the input's size without images."""
    return read_image(Path(job.images[0])) if job.images else np.full((task.input_shape[2], task.input_shape[3], 3), 127, np.uint8)


def read_image(path: Path) -> Image:
    """An image as (H, W, 3) uint8 BGR.

    Raises:
        InputError: `image.missing` or `image.unreadable`, naming the file.
    """
    import cv2

    if not path.is_file():
        raise InputError("image.missing", f"the image {path.name} is not there", where=str(path))
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError("image.unreadable", f"the image {path.name} cannot be decoded", where=str(path),
                         remedy="remove it from the folder, or save it again as PNG or JPEG")
    return np.asarray(image, np.uint8)


def _write_raw(path: Path, raw: list[tuple[npt.NDArray[Any], ...]]) -> None:
    """`output_J` holds the model's J-th output, stacked over images: (N, ...)."""
    columns = {f"output_{j}": np.stack([outputs[j] for outputs in raw]) for j in range(len(raw[0]))} if raw else {}
    try:
        with path.open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]
    except OSError as error:
        raise StorageError("raw.write", f"cannot write {path.name}: {error.strerror}", where=str(path)) from None


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _write_result(path: Path, result: EvaluationResult) -> None:
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(encode(result))
        temporary.replace(path)
    except OSError as error:
        raise StorageError("result.write", f"cannot write {path.name}: {error.strerror}", where=str(path)) from None


def _read_job(path: Path) -> EvaluationJob:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("job.unreadable", f"cannot read the job {path.name}: {error.strerror}", where=str(path)) from None
    return decode(data, EvaluationJob, limit=MAX_RESULT_BYTES)


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 also when the candidate could not run (the result says why)."""
    if len(arguments) != 2:
        print("usage: python -m jetfleet_agent.pipeline.evaluate JOB RESULT", file=sys.stderr)
        return 2
    try:
        _write_result(Path(arguments[1]), evaluate(_read_job(Path(arguments[0]))))
    except JetfleetError as error:
        print(error.diagnostics(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
