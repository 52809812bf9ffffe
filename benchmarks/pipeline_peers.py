"""What each pipeline adds to decoding and the session, beside the peers that a user would otherwise pick.

Same ONNX file (YOLO11n with random weights, at 640 and at 160 pixels, where the session is so short that overhead shows), same video, every
frame, two threads. One process a measurement, interleaved rounds. Peers that need torch live in an environment of their own under the
cache folder, made here (about 7 GB); one that cannot be made is left out by name.

    python benchmarks/pipeline_peers.py [--quick] [--rounds N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import msgspec

from jetfleet_agent.ipc import Model, Run, SourceEvent, Window
from jetfleet_contract.bundle import InputSpec, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_contract.policy import Candidate

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetfleet" / "bench"
PACKAGES = ("inference-models==0.39.6", "ultralytics==8.4.190", "onnxruntime")
SIZES = (640, 160)
RUNTIMES = ("onnxruntime", "openvino")
SKIP = 20  # frames before the counting begins
EXPORT = "from ultralytics import YOLO; YOLO('yolo11n.yaml').export(format='onnx', imgsz={size}, opset=17, simplify=True)"


class Round(msgspec.Struct, frozen=True):
    """One run. Means in ms a frame; `beyond` is what a frame took past decoding and the session, `cpu` processor time."""

    period: float
    p99: float
    decode: float
    session: float
    beyond: float
    cpu: float


def environment() -> Path | None:
    """The peers' Python, or None with the reason told."""
    python = CACHE / "peers" / "bin" / "python"
    if not python.exists():
        print("  making the peers' environment", file=sys.stderr)
        venv.create(CACHE / "peers", with_pip=True)
    done = subprocess.run([str(python), "-m", "pip", "-q", "--disable-pip-version-check", "install", *PACKAGES], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        print(f"  left out: ultralytics and inference-models, which cannot be installed: {done.stderr[-300:]}", file=sys.stderr)
        return None
    return python


def model_of(python: Path | None, size: int) -> Path | None:
    """YOLO11n with random weights at `size` pixels, exported by its own maker."""
    path = CACHE / f"yolo11n-{size}.onnx"
    if path.exists() or python is None:
        return path if path.exists() else None
    folder = CACHE / f"export-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(python), "-c", EXPORT.format(size=size)], cwd=folder, check=True, capture_output=True)
    (folder / "yolo11n.onnx").rename(path)
    return path


def video_of(seconds: float) -> Path:
    """A 1280x720 test picture at 30 fps, H.264."""
    path = CACHE / f"testsrc-{seconds:.0f}.mp4"
    if not path.exists():
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=30", "-t", str(seconds),
                        "-pix_fmt", "yuv420p", "-c:v", "libx264", str(path)], check=True)
    return path


def of_peer(python: Path, peer: str, model: Path, video: Path, threads: int, size: int) -> Round:
    """One peer, measured from within."""
    command = [str(python), str(HERE / "peer_runner.py"), peer, str(model), str(video), str(threads), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    periods = [(b - a) * 1e3 for a, b in itertools.pairwise(told["done"])][SKIP:]
    decode, session = ([value * 1e3 for value in told[name][SKIP + 1:]] for name in ("decode", "session"))
    cpu = (told["cpu"][-1] - told["cpu"][SKIP]) / len(periods) * 1e3
    return _round(periods, statistics.mean(decode), statistics.mean(session), cpu)


def of_jetfleet(candidate: Candidate, model: Path, video: Path, threads: int, size: int) -> Round:
    """The real pipeline process, every answer over its socket. Stages overlap, so what it adds may be hidden behind the session: `beyond`
    is then under zero."""
    from pipeline_process import Pipeline, result_times

    task = TaskSpec("detect-yolo", InputSpec("images", size, size, color="rgb", resize="letterbox"), tuple(f"class{i}" for i in range(80)))
    spec = ModelSpec("yolo11n", "1", task, (Variant("v", "sha256:" + "a" * 64, 1, "fp32"),), ("cpu-x86",))
    pipeline = Pipeline()
    order = Model("a" * 64, "1", candidate, str(model), spec, threads)
    pipeline.send(Run(order, AppConfig(), (Source("front", str(video)),), window_s=0.5))
    pipeline.until(lambda: any(event.code == "source.ended" for event in pipeline.of(SourceEvent)))
    pipeline.stop()
    times = result_times(pipeline.results)
    periods = [(b - a) * 1e3 for a, b in itertools.pairwise(times)][SKIP:]
    windows = [(w.started + w.duration_s, w.gauges["cpu_s"], sum(s.done for s in w.series)) for w in pipeline.of(Window)]
    busy = [(at, cpu, count) for at, cpu, count in windows if times[SKIP] < at <= times[-1]]
    cpu = (busy[-1][1] - busy[0][1]) / sum(count for _, _, count in busy[1:]) * 1e3 if len(busy) > 1 else 0.0
    stages = {name: sketch.mean for name, sketch in pipeline.stages().items()}
    return _round(periods, stages["capture"], stages["infer"], cpu)


def _round(periods: list[float], decode: float, session: float, cpu: float) -> Round:
    period = statistics.mean(periods)
    return Round(period, sorted(periods)[int(0.99 * (len(periods) - 1))], decode, session, period - decode - session, cpu)


Way = Callable[[Path, Path, int, int], Round]


def ways_of(python: Path | None) -> dict[str, Way]:
    """Who is measured, by name; each takes model, video, threads and size."""
    here = Path(sys.executable)

    def peer(who: Path, name: str) -> Way:
        return lambda model, video, threads, size: of_peer(who, name, model, video, threads, size)

    def ours(runtime: str) -> Way:
        return lambda model, video, threads, size: of_jetfleet(Candidate("v", runtime, "fp32"), model, video, threads, size)

    ways = {f"bare loop, {name}": peer(here, f"bare-{name}") for name in RUNTIMES}
    ways |= {f"{name} alone": peer(here, name) for name in RUNTIMES}
    if python is not None:
        ways |= {name: peer(python, name) for name in ("ultralytics", "inference-models")}
    return ways | {f"jetfleet, {name}": ours(name) for name in RUNTIMES}


def compare(threads: int, rounds: int, seconds: float) -> dict[str, dict[str, list[Round]]]:
    """All ways, in turn, round after round; by model size."""
    python, video = environment(), video_of(seconds)
    found: dict[str, dict[str, list[Round]]] = {}
    for size in SIZES:
        model = model_of(python, size)
        if model is None:
            print(f"  left out: {size} pixels, its model cannot be exported", file=sys.stderr)
            continue
        ways = ways_of(python)
        rows: dict[str, list[Round]] = {name: [] for name in ways}
        for index in range(rounds):
            for name in list(ways) if index % 2 == 0 else list(reversed(ways)):
                rows[name].append(ways[name](model, video, threads, size))
                print(f"  {size} px, round {index + 1}, {name}: {rows[name][-1].period:.2f} ms", file=sys.stderr)
        found[str(size)] = rows
    return found


def table(found: dict[str, dict[str, list[Round]]], threads: int) -> str:
    """Markdown, one table a size."""
    from pipeline_process import spread

    parts = []
    for size, rows in found.items():
        floors = {name: statistics.median(r.cpu for r in rows[f"bare loop, {name}"]) for name in RUNTIMES}
        what = f"YOLO11n with random weights at {size} pixels, 1280x720 video, {threads} threads."
        lines = [f"{what} Medians over rounds (range); ms a frame.", "",
                 "| who | period | p99 | decode | session | beyond decode + session | CPU beyond the bare loop |",
                 "|---|---|---|---|---|---|---|"]
        for name, measured in rows.items():
            runtime = "openvino" if "openvino" in name else "onnxruntime"
            cpu = statistics.median(r.cpu for r in measured) - floors[runtime]
            lines.append(f"| {name} | {spread([r.period for r in measured])} | {statistics.median(r.p99 for r in measured):.2f} "
                         f"| {statistics.median(r.decode for r in measured):.2f} | {statistics.median(r.session for r in measured):.2f} "
                         f"| **{spread([r.beyond for r in measured])}** | {cpu:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Parse, run, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    found = compare(arguments.threads, arguments.rounds or (1 if arguments.quick else 5), 3.0 if arguments.quick else 8.0)
    results = HERE / "results" / "pipeline_peers.json"
    results.write_text(json.dumps(msgspec.to_builtins(found), indent=1))
    print(table(found, arguments.threads))


if __name__ == "__main__":
    main()
