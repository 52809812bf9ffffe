"""Stages beside each other or one after the other, against the bare loop: YOLO11n's shape, a tiny one, ResNet-50's shape.

The bare loop decodes the same video and runs the same ONNX Runtime session on a fixed tensor; the pipeline is the real process, with
overlap on, off, and by its own choice. One process a measurement, interleaved rounds. Ratios are to the bare loop of the same round, and
to the longer of its two halves, decoding and session: what overlapped stages could reach at best, were there cores for both;
jitter is p99 over p50 of the time between answers.

    python benchmarks/overlap.py [--quick] [--case tiny]
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
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_agent.ipc import Model, Run, SourceEvent, Window
from jetfleet_contract.bundle import InputSpec, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_contract.policy import Candidate

SKIP = 80  # answers before the counting begins: by then the pipeline has made its choice
WAYS = ("floor", "off", "on", "chosen")
CASES = {
    "yolo11n-640": TaskSpec("detect-yolo", InputSpec("images", 640, 640, scale=1 / 255, resize="letterbox", pad=114)),
    "tiny-320": TaskSpec("detect-yolo", InputSpec("images", 320, 320, scale=1 / 255, resize="letterbox", pad=114)),
    "resnet50-224": TaskSpec("classify", InputSpec("x", 224, 224, scale=1 / 255)),
}


class Measured(msgspec.Struct, frozen=True):
    """One round, ms: the time between answers, and processor time a frame. `overlap`: how the pipeline ran at its end. `decode` and
    `session`: what the bare loop spent in each, a frame."""

    period: float
    p50: float
    p95: float
    p99: float
    cpu: float
    overlap: float = 0.0
    decode: float = 0.0
    session: float = 0.0


def write_model(case: str, folder: Path) -> Path:
    """The case's file, made anew: its weights come from a fixed seed."""
    from yolo_shape import write_tiny, write_yolo

    path = folder / f"{case}.onnx"
    if case == "yolo11n-640":
        return write_yolo(path)
    if case == "tiny-320":
        return write_tiny(path)
    import onnx
    from resnet_shape import resnet50

    onnx.save(resnet50(), str(path))
    return path


def summary(times: list[float], cpu_ms: float, overlap: float = 0.0) -> Measured:
    from pipeline_process import percentile

    gaps = [(b - a) * 1e3 for a, b in itertools.pairwise(times)]
    return Measured(statistics.mean(gaps), percentile(gaps, 0.5), percentile(gaps, 0.95), percentile(gaps, 0.99), cpu_ms, overlap)


def floor(case: str, model: Path, video: Path, threads: int) -> Measured:
    """The bare loop."""
    import cv2
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    spec = CASES[case].input
    feed = {spec.name: np.zeros((1, 3, spec.height, spec.width), np.float32)}
    capture, times, decoded, cpu = cv2.VideoCapture(str(video)), [], [], 0.0
    while capture.read()[0]:
        decoded.append(time.perf_counter())
        session.run(None, feed)
        times.append(time.perf_counter())
        if len(times) == SKIP:
            cpu = cpu_seconds()
    whole = summary(times[SKIP - 1:], (cpu_seconds() - cpu) / (len(times) - SKIP) * 1e3)
    in_session = statistics.mean(b - a for a, b in zip(decoded[SKIP:], times[SKIP:], strict=True)) * 1e3
    return msgspec.structs.replace(whole, decode=whole.period - in_session, session=in_session)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def full(case: str, model: Path, video: Path, threads: int, way: str) -> Measured:
    """The real pipeline over the same video."""
    from pipeline_process import Pipeline, result_times

    pipeline = Pipeline(*(() if way == "chosen" else ("--overlap", way)))
    spec = ModelSpec(case, "1", CASES[case], (Variant("v", "sha256:" + "a" * 64, 1, "fp32"),), ("cpu-x86",))
    order = Model("a" * 64, "1", Candidate("v", "onnxruntime", "fp32"), str(model), spec, threads)
    pipeline.send(Run(order, AppConfig(), (Source("front", str(video)),), window_s=0.2))
    pipeline.until(lambda: any(event.code == "source.ended" for event in pipeline.of(SourceEvent)))
    pipeline.stop()
    times = result_times(pipeline.results)[SKIP - 1:]
    windows = [window for window in pipeline.of(Window) if times[0] < window.started + window.duration_s <= times[-1]]
    done = sum(series.done for window in windows[1:] for series in window.series)
    cpu_ms = (windows[-1].gauges["cpu_s"] - windows[0].gauges["cpu_s"]) / done * 1e3 if done else 0.0
    return summary(times, cpu_ms, pipeline.of(Window)[-1].gauges["overlap"])


def in_a_process(case: str, way: str, model: Path, video: Path, threads: int) -> Measured:
    """One measurement, one process."""
    command = [sys.executable, __file__, "--child", way, "--case", case, "--model", str(model), "--video", str(video),
               "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


def table(rows: dict[str, dict[str, list[Measured]]], threads: int, frames: int) -> str:
    """Markdown: medians over rounds."""
    what = f"{frames} frames of the demo's video at 640x480, ONNX Runtime fp32, {threads} threads, {os.cpu_count()} cores"
    lines = [f"{what}, load {os.getloadavg()[0]:.1f}. Medians over rounds, ms a frame.", "",
             "| model | way | period | ratio to bare loop | to max(decode, session) | p50 | p95 | p99 | p99/p50 | CPU | overlaps |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for case, ways in rows.items():
        for way, rounds in ways.items():
            ratio = statistics.median(a.period / b.period for a, b in zip(rounds, ways["floor"], strict=True))
            halves = [max(bare.decode, bare.session) for bare in ways["floor"]]
            to_longer = statistics.median(a.period / longer for a, longer in zip(rounds, halves, strict=True))
            middle = {name: statistics.median(getattr(r, name) for r in rounds) for name in ("period", "p50", "p95", "p99", "cpu")}
            how = "" if way == "floor" else f"{sum(r.overlap for r in rounds):.0f} of {len(rounds)}"
            lines.append(f"| {case} | {way} | {middle['period']:.2f} | **{ratio:.2f}** | {to_longer:.2f} | {middle['p50']:.2f} "
                         f"| {middle['p95']:.2f} | {middle['p99']:.2f} | {middle['p99'] / middle['p50']:.2f} "
                         f"| {middle['cpu']:.2f} | {how} |")
    return "\n".join(lines)


def compare(cases: list[str], video: Path, threads: int, rounds: int) -> dict[str, dict[str, list[Measured]]]:
    """All ways in turn, the order turned round every other time."""
    rows: dict[str, dict[str, list[Measured]]] = {case: {way: [] for way in WAYS} for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            model = write_model(case, Path(folder))
            for index in range(rounds):
                for way in WAYS if index % 2 == 0 else WAYS[::-1]:
                    rows[case][way].append(in_a_process(case, way, model, video, threads))
                    print(f"  round {index + 1} {case} {way}: {rows[case][way][-1].period:.2f} ms", file=sys.stderr)
    return rows


def main() -> None:
    """Parse, run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--case", choices=[*CASES], help="this model only")
    parser.add_argument("--threads", type=int, default=2)
    for hidden in ("--child", "--model", "--video"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        model, video = Path(arguments.model), Path(arguments.video)
        measured = (floor(arguments.case, model, video, arguments.threads) if arguments.child == "floor"
                    else full(arguments.case, model, video, arguments.threads, arguments.child))
        print(msgspec.json.encode(measured).decode())
        return
    from pipeline_process import CACHE

    from jetfleet_host.demo.scene import make_video

    seconds = 6.0 if arguments.quick else 16.0
    (CACHE / "bench").mkdir(parents=True, exist_ok=True)
    video = make_video(CACHE / "bench", seconds=seconds).path
    cases = [arguments.case] if arguments.case else [*CASES]
    rows = compare(cases, video, arguments.threads, arguments.rounds or (1 if arguments.quick else 4))
    kept: dict[str, Any] = {"threads": arguments.threads, "frames": round(seconds * 25), "load": os.getloadavg(),
                            "rows": msgspec.to_builtins(rows)}
    (Path(__file__).parent / "results" / "overlap.json").write_text(json.dumps(kept, indent=1))
    print(table(rows, arguments.threads, round(seconds * 25)))


if __name__ == "__main__":
    main()
