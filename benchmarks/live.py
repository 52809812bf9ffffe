"""A live camera that is faster than the model: how old results are, whether age creeps, how soon they are back after it died.

The camera is GStreamer's RTSP server, 640x480, H.264, whose encoder never waits for anybody. jetfleet is the real pipeline process; then
comes the loop that every tutorial shows: `cv2.VideoCapture(url)`, read, infer. Its frames' age is told by the stream's own time
(`CAP_PROP_POS_MSEC`) against the clock, from 0 at its first frame; ours by the pipeline, which adds what a frame took through it.

With a camera period P and a model that takes M >= P, a frame waits between 0 and P and is then answered in M. So no newest-frame policy has
an age p95 under ``0.95 P + M``: the table's floor.

    python benchmarks/live.py [--minutes 10] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_agent.ipc import Run, SourceEvent, Window
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_contract.policy import Candidate

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
FPS = 25
DOWN_S = 5.0
SKIP_S = 3.0  # connecting, first key frame, warm caches


class Live(msgspec.Struct, frozen=True):
    """One run: `ages` are (seconds since the first result, age in ms); `period` is the mean time between results in ms."""

    ages: tuple[tuple[float, float], ...]
    period: float
    dropped: dict[str, int] = {}
    back_s: float = 0.0
    causes: tuple[str, ...] = ()


def naive(uri: str, model: str, seconds: float) -> Live:
    """Read, infer, read, infer. Runs in a process of its own."""
    import cv2
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, [1, 3, 480, 640]
    session.run(None, {name: np.zeros(shape, np.float32)})
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "rtsp_transport;tcp"
    capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG)
    good, image = capture.read()
    began, first = time.monotonic(), capture.get(cv2.CAP_PROP_POS_MSEC)
    ages = []
    while good and time.monotonic() - began < seconds:
        blob = cv2.dnn.blobFromImage(image, 1 / 127.5, mean=(127.5, 127.5, 127.5))
        session.run(None, {name: blob})
        now = time.monotonic() - began
        ages.append((now, now * 1e3 - (capture.get(cv2.CAP_PROP_POS_MSEC) - first)))
        good, image = capture.read()
    return Live(tuple(ages), _period(ages))


def jetfleet(camera: Any, model: Path, seconds: float) -> Live:
    """The real process; then the camera's power goes for five seconds."""
    from pipeline_process import Pipeline, order_of

    pipeline = Pipeline()
    order = order_of(model, Candidate("v", "onnxruntime", "fp32"), 1)
    pipeline.send(Run(order, AppConfig(), (Source("front", camera.uri()),), window_s=1.0))
    pipeline.until_results(1)
    began = time.monotonic()
    pipeline.until(lambda: time.monotonic() - began > seconds, seconds + 30)
    results = pipeline.results
    origin = results[0].at
    ages = [(result.at - origin + result.age_ms / 1e3, result.age_ms) for result in results]
    dropped: dict[str, int] = {}
    for window in pipeline.of(Window):
        for series in window.series:
            for cause, count in series.dropped.items():
                dropped[cause] = dropped.get(cause, 0) + count
    camera.kill()
    time.sleep(DOWN_S)
    count = len(pipeline.results)
    camera.start()
    returned = time.monotonic()
    pipeline.until_results(count)
    back = time.monotonic() - returned
    causes = tuple(dict.fromkeys(event.code for event in pipeline.of(SourceEvent) if not event.up))
    pipeline.stop()
    return Live(tuple(ages), _period(ages), dropped, back, causes)


def _period(ages: list[tuple[float, float]]) -> float:
    steady = [at for at, _ in ages if at >= SKIP_S]
    return (steady[-1] - steady[0]) / (len(steady) - 1) * 1e3


def creep(ages: tuple[tuple[float, float], ...]) -> float:
    """Growth of the age, ms a minute: least squares over all results after the start."""
    steady = [(at, age) for at, age in ages if at >= SKIP_S]
    slope, _ = statistics.linear_regression([at for at, _ in steady], [age for _, age in steady])
    return slope * 60.0


def row(name: str, run: Live) -> str:
    """One line of the table."""
    ages = sorted(age for at, age in run.ages if at >= SKIP_S)
    p50, p95 = (ages[int(share * (len(ages) - 1))] for share in (0.5, 0.95))
    camera = 1e3 / FPS
    back = f"{run.back_s:.2f} s" if run.back_s else "-"
    floor = (0.95 * camera + max(run.period, camera)) / camera
    drops = ", ".join(f"{cause} {count}" for cause, count in sorted(run.dropped.items())) or "none"
    periods = f"**{p95 / camera:.2f}** ({floor:.2f}) | {p95 / max(run.period, camera):.2f}"
    return (f"| {name} | {run.period:.1f} | {p50:.0f} | {p95:.0f} | {periods} | {creep(run.ages):.1f} | {drops} | {back} |")


def main() -> None:
    """Parse, run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twenty seconds")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--naive", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds = 20.0 if arguments.quick else arguments.minutes * 60.0
    if arguments.naive:
        uri, model = arguments.naive
        print(msgspec.json.encode(naive(uri, model, min(seconds, 60.0))).decode())
        return
    from cameras import RtspCamera, need_gstreamer
    from pipeline_process import demo_model

    need_gstreamer()
    camera = RtspCamera(width=640, height=480, fps=FPS, gop=FPS)
    try:
        ours = jetfleet(camera, demo_model(), seconds)
        command = [sys.executable, __file__, "--naive", camera.uri(), str(demo_model()), *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs = msgspec.json.decode(done.stdout.splitlines()[-1], type=Live)
    finally:
        camera.kill()
    kept = {name: {**msgspec.to_builtins(run), "ages": list(run.ages)[::25], "creep_ms_per_min": creep(run.ages)}
            for name, run in (("jetfleet", ours), ("naive", theirs))}
    (HERE / "results" / "live.json").write_text(json.dumps({"fps": FPS, "seconds": seconds, **kept}, indent=1))
    print(f"RTSP over TCP on loopback, 640x480 at {FPS} fps, the demo's detector on one thread; {seconds:.0f} s (the loop: at most 60 s).")
    print()
    print("| who | ms a result | age p50, ms | age p95, ms | p95 in camera periods (floor) | p95 in result periods "
          "| creep, ms a minute | dropped | first result after the camera's return |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(row("jetfleet", ours))
    print(row("`cv2.VideoCapture` loop", theirs))


if __name__ == "__main__":
    main()
