"""A frame becomes a tensor: ours beside OpenCV's ways, DALI's CPU pipeline and kornia-rs, two threads, interleaved rounds.

Letterbox into 640 x 640, RGB, divided by 255, channels first, float32; ours also as what a graph that normalises itself takes (uint8).
Each way runs in a process of its own. DALI and kornia-rs get an environment of their own, made once in the user's cache; a peer that cannot
be had is left out by name.

    python benchmarks/preprocess.py [--quick] [--peers-python PYTHON]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
SIDE, PAD, THREADS = 640, 114, 2
CASES = {"1080p": (1080, 1920), "640x480": (480, 640)}
PEER_PACKAGES = ("nvidia-dali-cuda130", "kornia-rs", "opencv-python-headless", "numpy")
SLICE_S = 0.5

Image = npt.NDArray[np.uint8]
Way = Callable[[Image], Any]


def smooth_image(height: int, width: int) -> Image:
    """An image that every bilinear filter sees alike to a few steps: gradients, no noise."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 100 * np.sin(x / width * 7 + c) * np.cos(y / height * 5) for c in range(3)]
    return np.ascontiguousarray(np.stack(planes, axis=-1).astype(np.uint8))


def _fit(height: int, width: int) -> tuple[int, int, int, int]:
    ratio = min(SIDE / width, SIDE / height)
    inner_w, inner_h = round(width * ratio), round(height * ratio)
    return (SIDE - inner_w) // 2, (SIDE - inner_h) // 2, inner_w, inner_h


# --- the ways: each makes a function from a BGR frame to the tensor -----------------------------------------------


def ours(_shape: tuple[int, int]) -> Way:
    """`Preprocessor` into float32."""
    return _ours(np.empty((1, 3, SIDE, SIDE), np.float32))


def ours_folded(_shape: tuple[int, int]) -> Way:
    """`Preprocessor` into the uint8 tensor of a graph that normalises itself."""
    return _ours(np.empty((1, SIDE, SIDE, 3), np.uint8))


def _ours(out: npt.NDArray[Any]) -> Way:
    import cv2

    from jetfleet_agent.pipeline.preprocess import Preprocessor
    from jetfleet_contract.bundle import InputSpec

    cv2.setNumThreads(THREADS)
    preprocessor = Preprocessor(InputSpec("x", SIDE, SIDE, "rgb", "letterbox", pad=PAD))

    def run(frame: Image) -> Any:
        preprocessor.run(frame, out)
        return out

    return run


def opencv_blob(_shape: tuple[int, int]) -> Way:
    """Letterbox, then `cv2.dnn.blobFromImage`: what most ONNX Runtime examples do."""
    import cv2

    cv2.setNumThreads(THREADS)

    def run(frame: Image) -> Any:
        return cv2.dnn.blobFromImage(_boxed(cv2, frame), 1 / 255.0, swapRB=True)

    return run


def opencv_chain(_shape: tuple[int, int]) -> Way:
    """Letterbox, transpose, contiguous copy, float, divide: what ultralytics does."""
    import cv2

    cv2.setNumThreads(THREADS)

    def run(frame: Image) -> Any:
        boxed = np.ascontiguousarray(_boxed(cv2, frame)[None, ..., ::-1].transpose(0, 3, 1, 2))
        return boxed.astype(np.float32) / np.float32(255)

    return run


def _boxed(cv2: Any, frame: Image) -> Image:
    left, top, inner_w, inner_h = _fit(*frame.shape[:2])
    resized = frame if frame.shape[:2] == (inner_h, inner_w) else cv2.resize(frame, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR)
    boxed: Image = cv2.copyMakeBorder(resized, top, SIDE - inner_h - top, left, SIDE - inner_w - left, cv2.BORDER_CONSTANT,
                                      value=(PAD, PAD, PAD))
    return boxed


def dali(shape: tuple[int, int]) -> Way:
    """DALI's CPU operators, one frame in, one tensor out: what a frame waits for."""
    return _dali(shape, ahead=False)


def dali_ahead(shape: tuple[int, int]) -> Way:
    """The same, executed ahead in DALI's own threads: its throughput, at a frame's delay."""
    return _dali(shape, ahead=True)


def _dali(_shape: tuple[int, int], *, ahead: bool) -> Way:
    from nvidia.dali import fn, pipeline_def, types  # type: ignore[import-not-found,unused-ignore]

    held: dict[str, Image] = {}

    @pipeline_def(  # type: ignore[untyped-decorator,unused-ignore]
        batch_size=1, num_threads=THREADS, device_id=None, prefetch_queue_depth=2 if ahead else 1, exec_async=ahead,
        exec_pipelined=ahead)
    def build() -> Any:
        frames = fn.external_source(source=lambda: [held["frame"]], batch=True, dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
        resized = fn.resize(frames, resize_x=SIDE, resize_y=SIDE, mode="not_larger", interp_type=types.INTERP_LINEAR, antialias=False)
        turned = fn.color_space_conversion(resized, image_type=types.BGR, output_type=types.RGB)
        return fn.crop_mirror_normalize(turned, dtype=types.FLOAT, output_layout="CHW", crop=(SIDE, SIDE), out_of_bounds_policy="pad",
                                        fill_values=PAD / 255.0, mean=[0.0] * 3, std=[255.0] * 3)

    pipeline: list[Any] = []

    def run(frame: Image) -> Any:
        held["frame"] = frame
        if not pipeline:
            pipeline.append(build())
            pipeline[0].build()
        return np.asarray(pipeline[0].run()[0][0])[None]

    return run


def kornia(shape: tuple[int, int]) -> Way:
    """kornia-rs's fused CPU pre-processor. Its threads are its own choice, its channels stay in the frame's order: viewed as RGB here."""
    import kornia_rs  # type: ignore[import-not-found,unused-ignore]

    made = kornia_rs.Preprocessor(mode="letterbox", format="bgr", pad_value=PAD)
    height, width = shape

    def run(frame: Image) -> Any:
        return made.run(frame.reshape(-1), width, height, SIDE, SIDE).numpy()[:, ::-1]

    return run


WAYS: dict[str, tuple[Callable[[tuple[int, int]], Way], bool]] = {
    "ours, float32": (ours, False), "ours, folded uint8": (ours_folded, False), "opencv blobFromImage": (opencv_blob, False),
    "opencv and numpy": (opencv_chain, False), "DALI": (dali, True), "DALI, ahead": (dali_ahead, True), "kornia-rs": (kornia, True),
}


def child(name: str) -> dict[str, Any]:
    """One process's slice: milliseconds of each case, and the tensor's difference from float64 arithmetic on OpenCV's resize."""
    found: dict[str, Any] = {}
    for case, shape in CASES.items():
        frame, run = smooth_image(*shape), WAYS[name][0](shape)
        for _ in range(5):
            out = run(frame)
        found[case] = {"difference": _difference(frame, out)}
        times: list[float] = []
        end = time.perf_counter() + SLICE_S
        while time.perf_counter() < end:
            began = time.perf_counter()
            run(frame)
            times.append((time.perf_counter() - began) * 1e3)
        found[case]["ms"] = times
    return found


def _difference(frame: Image, out: Any) -> float:
    """Mean absolute difference in steps of a byte."""
    import cv2

    tensor = np.asarray(out, np.float64)
    wanted = _boxed(cv2, frame)[:, :, ::-1].astype(np.float64)
    if out.dtype == np.uint8:
        return float(np.abs(tensor.reshape(SIDE, SIDE, 3)[:, :, ::-1] - wanted).mean())
    return float(np.abs(tensor.reshape(3, SIDE, SIDE) * 255.0 - wanted.transpose(2, 0, 1)).mean())


def peers_python() -> str:
    """The interpreter of the peers' environment, made when it is not there; empty when it cannot be."""
    from jetfleet_host.demo.models import cache_folder

    folder = cache_folder() / "bench" / "preprocess"
    python = folder / "bin" / "python"
    if python.is_file():
        return str(python)
    print("making the peers' environment (DALI is large) ...", file=sys.stderr)
    steps = ([sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  it cannot be made: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return ""
    return str(python)


def measure(rounds: int, python: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """All ways in turns, `rounds` times; what was left out, with the reason."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    left_out: dict[str, str] = {}
    for number in range(rounds):
        for name, (_, peer) in WAYS.items():
            if name in left_out:
                continue
            if peer and not python:
                left_out[name] = "its environment cannot be made"
                continue
            command = [python if peer else sys.executable, __file__, "--child", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                left_out[name] = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:160]
                continue
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  round {number + 1}, {name}", file=sys.stderr)
    return {name: found for name, found in results.items() if found and name not in left_out}, left_out


def table(results: dict[str, list[dict[str, Any]]], left_out: dict[str, str]) -> str:
    """Markdown: over all rounds together, ms a frame."""
    heads = [f"{case} {figure}" for case in CASES for figure in ("p50", "p95", "p99", "mean")]
    head = (f"Letterbox into {SIDE} x {SIDE}, {THREADS} threads, frames in memory; ms a frame over all rounds. Difference: mean, in "
            "steps of a byte, from float64 arithmetic on OpenCV's bilinear resize.")
    lines = [head, "", f"| way | {' | '.join(heads)} | difference |", f"|---|{'---|' * (len(heads) + 1)}"]
    for name, found in results.items():
        cells = []
        for case in CASES:
            times = np.array([ms for one in found for ms in one[case]["ms"]])
            cells += [f"{np.quantile(times, q):.2f}" for q in (0.5, 0.95, 0.99)]
            cells.append(f"{times.mean():.2f}")
        apart = max(statistics.fmean(one[case]["difference"] for one in found) for case in CASES)
        lines.append(f"| {name} | {' | '.join(cells)} | {apart:.3f} |")
    return "\n".join([*lines, *(f"\nLeft out: {name}: {why}" for name, why in left_out.items())])


def main() -> None:
    """Parse, run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--peers-python", default="", help="an interpreter that has DALI and kornia-rs")
    parser.add_argument("--child", choices=[*WAYS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return
    results, left_out = measure(1 if arguments.quick else arguments.rounds, arguments.peers_python or peers_python())
    kept = {name: {case: {"ms": [round(statistics.median(one[case]["ms"]), 4) for one in found], "difference": found[0][case]["difference"]}
                   for case in CASES} for name, found in results.items()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "preprocess.json").write_text(json.dumps({"threads": THREADS, "rows": kept, "left_out": left_out}, indent=1))
    print(table(results, left_out))


if __name__ == "__main__":
    main()
