"""The full pipeline's period against the floor F, for fp32 on ONNX Runtime and for the fastest candidate here.

F is a bare loop in one file: decode the same video, run the same session on a preallocated tensor; no pre- or post-processing, no
queue, no telemetry. The pipeline is the real process over its real socket, answers sent and counted. Separate processes,
interleaved rounds, the same number of threads. Period = time from the first counted answer to the last over their number.

    python benchmarks/pipeline.py [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_agent.ipc import Run, SourceEvent, Window
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.messages import AppConfig, Source, decode, encode
from jetfleet_contract.policy import Candidate

SKIP = 20  # frames before the counting begins: caches, clocks, thread pools
TARGETS = {"fp32@onnxruntime": 1.05, "best": 1.20}


class Measured(msgspec.Struct, frozen=True):
    """One round. Times in ms a frame; `stages` are means by stage."""

    period_ms: float
    cpu_ms: float
    stages: dict[str, float] = {}


def floor(model: Path, video: Path, candidate: Candidate, threads: int) -> Measured:
    """The bare loop, each runtime at its own defaults. Runs in a process of its own."""
    import cv2
    import numpy as np
    from pipeline_process import SHAPE

    tensor = np.zeros(SHAPE, np.float32)
    if candidate.backend == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def infer() -> None:
            session.run(None, {name: tensor})
    else:
        import openvino as ov

        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}[candidate.precision]
        compiled = ov.Core().compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY",
                                                               "INFERENCE_NUM_THREADS": threads})
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(tensor, shared_memory=True))

        def infer() -> None:
            request.infer()

    for _ in range(3):
        infer()
    capture = cv2.VideoCapture(str(video))
    count, began, cpu, decode_s = 0, 0.0, 0.0, 0.0
    while True:
        asked = time.perf_counter()
        good, _ = capture.read()
        if not good:
            break
        decode_s += time.perf_counter() - asked
        infer()
        count += 1
        if count == SKIP:
            began, cpu, decode_s = time.perf_counter(), cpu_seconds(), 0.0
    elapsed, done = time.perf_counter() - began, count - SKIP
    return Measured(elapsed / done * 1e3, (cpu_seconds() - cpu) / done * 1e3,
                    {"decode video": decode_s / done * 1e3, "session": (elapsed - decode_s) / done * 1e3})


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def full(model: Path, video: Path, candidate: Candidate, threads: int) -> Measured:
    """The real pipeline over the same video."""
    from pipeline_process import Pipeline, order_of, result_times

    pipeline = Pipeline()
    pipeline.send(Run(order_of(model, candidate, threads), AppConfig(), (Source("front", str(video)),), window_s=0.5))
    pipeline.until(lambda: any(event.code == "source.ended" for event in pipeline.of(SourceEvent)))
    pipeline.stop()
    times = result_times(pipeline.results)
    counted = times[SKIP - 1:]
    windows = [(window.started + window.duration_s, window.gauges["cpu_s"], sum(s.done for s in window.series))
               for window in pipeline.of(Window)]
    busy = [(at, cpu, done) for at, cpu, done in windows if counted[0] < at <= counted[-1]]
    cpu_ms = (busy[-1][1] - busy[0][1]) / sum(done for _, _, done in busy[1:]) * 1e3 if len(busy) > 1 else 0.0
    stages = {name: sketch.mean for name, sketch in pipeline.stages().items()}
    return Measured((counted[-1] - counted[0]) / (len(counted) - 1) * 1e3, cpu_ms, stages)


MEASURES = {"floor": floor, "full": full}


def in_a_process(kind: str, model: Path, video: Path, candidate: Candidate, threads: int) -> Measured:
    """One measurement, one process."""
    command = [sys.executable, __file__, "--child", kind, "--model", str(model), "--video", str(video), "--threads", str(threads),
               "--candidate", candidate.backend, candidate.precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


def fastest(models: list[Path], threads: int, folder: Path) -> tuple[Path, Candidate]:
    """The file and candidate that a board would pick: measured with the agent's own evaluation program."""
    from pipeline_process import TASK

    best, best_ms = (models[0], Candidate("v", "onnxruntime", "fp32")), float("inf")
    ways = [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]
    for model, (backend, precision) in itertools.product(models, ways):
        job = EvaluationJob(str(model), TASK, backend, precision, threads, warmup=3, latency_runs=15)  # type: ignore[arg-type]
        (folder / "job").write_bytes(encode(job))
        subprocess.run([sys.executable, "-m", "jetfleet_agent.pipeline.evaluate", str(folder / "job"), str(folder / "result")], check=True)
        result = decode((folder / "result").read_bytes(), EvaluationResult, limit=1 << 26)
        took = result.latency.quantile(0.5)
        print(f"  {model.name} {backend}:{precision} ran in {result.precision or result.error}, {took:.2f} ms", file=sys.stderr)
        if not result.error and result.precision == precision and took < best_ms:
            best, best_ms = (model, Candidate("v", backend, precision)), took
    return best


def compare(candidates: dict[str, tuple[Path, Candidate]], video: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Interleaved rounds: floor, full, floor, full ... and the candidates in turn."""
    rows: dict[str, Any] = {name: {"candidate": candidate.name, "floor": [], "full": []}
                            for name, (_, candidate) in candidates.items()}
    for index in range(rounds):
        for name, (model, candidate) in candidates.items():
            for kind in ("floor", "full") if index % 2 == 0 else ("full", "floor"):
                measured = in_a_process(kind, model, video, candidate, threads)
                rows[name][kind].append(msgspec.to_builtins(measured))
                print(f"  round {index + 1} {name} {kind}: {measured.period_ms:.2f} ms", file=sys.stderr)
    for row in rows.values():
        row["ratio"] = [b["period_ms"] / a["period_ms"] for a, b in zip(row["floor"], row["full"], strict=True)]
    return rows


def table(rows: dict[str, Any], threads: int, frames: int) -> str:
    """Markdown: medians over rounds with their range."""
    from pipeline_process import spread

    def of(row: Any, kind: str, key: str) -> list[float]:
        return [r[key] for r in row[kind]]

    what = f"Demo's detector at 640x480, {frames} frames of the demo's video, {threads} threads."
    lines = [f"{what} Medians over rounds (range); ms a frame.", "",
             "| candidate | floor F | pipeline | ratio | target | more CPU than F | pre, decode, sink | video decode | session |",
             "|---|---|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        own = statistics.median(of(row, "full", "cpu_ms")) - statistics.median(of(row, "floor", "cpu_ms"))
        stages = [r["stages"] for r in row["full"]]
        ours = statistics.median(s["pre"] + s["decode"] + s["sink"] for s in stages)
        floors = [r["stages"] for r in row["floor"]]
        lines.append(
            f"| {name}: `{row['candidate'].partition('@')[2]}` | {spread(of(row, 'floor', 'period_ms'))} "
            f"| {spread(of(row, 'full', 'period_ms'))} "
            f"| **{spread(row['ratio'])}** | {TARGETS[name]:.2f} "
            f"| {own:.2f} | {ours:.2f} "
            f"| {statistics.median(s['decode video'] for s in floors):.2f} | {statistics.median(s['session'] for s in floors):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", choices=[*MEASURES], help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--candidate", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure = MEASURES[arguments.child]
        candidate = Candidate("v", *arguments.candidate)
        print(msgspec.json.encode(measure(arguments.model, arguments.video, candidate, arguments.threads)).decode())
        return
    import tempfile

    from pipeline_process import demo_models, demo_video

    models = demo_models()
    model = models["fp32"]
    seconds = 4.0 if arguments.quick else 8.0
    video = demo_video(seconds)
    with tempfile.TemporaryDirectory() as folder:
        best = fastest(list(models.values()), arguments.threads, Path(folder))
    candidates = {"fp32@onnxruntime": (model, Candidate("v", "onnxruntime", "fp32")), "best": best}
    rows = compare(candidates, video, arguments.threads, arguments.rounds or (1 if arguments.quick else 4))
    results = Path(__file__).parent / "results" / "pipeline.json"
    results.parent.mkdir(exist_ok=True)
    kept = {"threads": arguments.threads, "frames": round(seconds * 25), "targets": TARGETS, "rows": rows}
    results.write_text(json.dumps(kept, indent=1))
    print(table(rows, arguments.threads, round(seconds * 25)))


if __name__ == "__main__":
    main()
