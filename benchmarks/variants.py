"""Every way to run the demo's text detector and ResNet-50's shape here: latency, accuracy, verdict, and what a board would pick.

Peers in the same interleaved run, one process a measurement: the untouched fp32 file on ONNX Runtime, and what most people
would do for int8, `onnxruntime.quantization.quantize_static` over all nodes, in its default layout (int8) and in the one its
documentation advises for x86 (uint8). Accuracy is F1 at IoU 0.5 on labelled frames that calibration never saw.

    python benchmarks/variants.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from resnet_shape import resnet50

from jetfleet_contract.bundle import Evaluation, EvaluationRow, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import BackendInfo, Capability
from jetfleet_contract.policy import Candidate, Measurement, choose
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress.building import build, machine_name
from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.checkpoints import Checkpoints, library_versions
from jetfleet_host.compress.dataset import load_data, read_image, to_tensor
from jetfleet_host.compress.equality import outputs_of, relative_error
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import ModelHandle, serialized, write_model
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.placement import Layout, place, quantizable
from jetfleet_host.compress.preparing import FixShapes, Simplify, UpgradeOpset
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.compress.recipe import Job, Recipe, make_task
from jetfleet_host.compress.scoring import Built, Scorer, ways_to_run
from jetfleet_host.compress.timing import Timed, Timing, time_interleaved
from jetfleet_host.demo.models import text_detector
from jetfleet_host.demo.scene import labelled_images

RESULTS = Path(__file__).parent / "results" / "variants.json"
MAX_DROP = 0.5
THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    calibration: int
    held_out: int
    rounds: int
    runs: int


FULL, QUICK = Size(32, 48, 5, 20), Size(4, 4, 1, 4)


def _handle(path: Path, model: Any) -> ModelHandle:
    return write_model(path, serialized(model))


def _naive(source: ModelHandle, tensors: Sequence[Any], target: Path, kind: str) -> ModelHandle:
    """quantize_static over all nodes: per-channel weights; `kind` int8 symmetric (its default types) or uint8 (its x86 advice)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(tensors)

        def get_next(self) -> dict[str, Any] | None:
            tensor = next(self._rest, None)
            return None if tensor is None else {"x": tensor}

    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(str(source.path), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
                    activation_type=QuantType.QInt8 if kind == "int8" else QuantType.QUInt8,
                    extra_options={"ActivationSymmetric": kind == "int8"})
    return write_model(target, target.read_bytes())


def detector(folder: Path, size: Size) -> dict[str, Any]:
    """The demo's model at 480x640: our bundle and the peers, scored on held-out frames, timed interleaved."""
    task, shape = make_task("", "ppocr-det", shape=None, labels=(), options={}, overrides={})
    seen = labelled_images(folder / "seen", size.calibration, 3)
    unseen = load_data(labelled_images(folder / "unseen", size.held_out, 99))
    job = Job(text_detector(), seen, folder / "bundle", folder / "cache")
    made = build(job, Recipe("text", "1.0.0", ("cpu-x86",), task, shape, max_drop=MAX_DROP, threads=THREADS, latency_rounds=0), _quiet)
    task = made.spec.task
    original, upgraded = _original(folder, job.model, shape)
    tensors = [to_tensor(read_image(image), task.input) for image in load_data(seen).images]
    bundle = open_bundle(made.bundle, verify=False)
    ours = [Built(v, ModelHandle(bundle.blob_path(v.digest), v.digest, v.size)) for v in made.spec.variants]
    peers = [_peer("original", "fp32", original), _peer("naive-int8", "int8", _naive(upgraded, tensors, folder / "naive8.onnx", "int8")),
             _peer("naive-uint8", "uint8", _naive(upgraded, tensors, folder / "naiveu8.onnx", "uint8"))]
    scorer = Scorer(JobRunner(), Checkpoints(folder / "scores"), unseen, task, THREADS)
    reference = scorer.answer(original, "onnxruntime", "fp32")
    rows = [(built, scorer.row(built, backend, precision, scorer.answer(built.handle, backend, precision), reference, MAX_DROP))
            for built in (*peers, *ours) for backend, precision in ways_to_run(built.variant)]
    timings, first = _timed(rows, task, unseen.images[0], size)
    pick = _pick(made.spec, [row for built, row in rows if built in ours], first)
    table = [_line(row, timings[_name(row)]) for _, row in rows]
    base = next(line for line in table if line["candidate"] == "original@onnxruntime:fp32")
    for line in table:
        line["speedup"] = base["p50_ms"] / line["p50_ms"] if line["p50_ms"] else 0.0
    acceptable = [line for line in table if line["verdict"] == "accepted" and line["p50_ms"]]
    fastest = min(acceptable, key=lambda line: line["p50_ms"])
    chosen = next(line for line in table if line["candidate"] == pick)
    return {"rows": table, "pick": pick, "fastest_acceptable": fastest["candidate"], "pick_speedup": chosen["speedup"],
            "pick_over_fastest": chosen["p50_ms"] / fastest["p50_ms"], "pick_drop": chosen["drop"], "held_out_images": size.held_out,
            "int8_layers": made.spec.variant("int8").detail if "int8" not in made.refused else ""}


def _original(folder: Path, model: Path, shape: Any) -> tuple[ModelHandle, ModelHandle]:
    """The published file with a fixed shape; and the same at opset 17 and simplified, which `quantize_static` needs per channel."""
    import onnx

    published = onnx.load(str(model))
    upgraded = Simplify().apply(FixShapes(shape).apply(UpgradeOpset().apply(published)))
    return _handle(folder / "original.onnx", FixShapes(shape).apply(published)), _handle(folder / "upgraded.onnx", upgraded)


def _peer(name: str, precision: str, handle: ModelHandle) -> Built:
    return Built(Variant(name, handle.digest, handle.size, precision), handle)  # type: ignore[arg-type]


def _name(row: EvaluationRow) -> str:
    return f"{row.variant}@{row.backend}:{row.precision}"


def _timed(rows: Sequence[tuple[Built, EvaluationRow]], task: TaskSpec, image: Path,
           size: Size) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Timings of all rounds, and the measurements of a run before them: what a board would have had to choose by."""
    timed = [Timed(_name(row), built.handle.path, row.backend, row.precision) for built, row in rows]
    runner = JobRunner()
    before = time_interleaved(timed, task, image, runner, rounds=max(1, size.rounds // 4), runs=size.runs, threads=THREADS, step=_step)
    after = time_interleaved(timed, task, image, runner, rounds=size.rounds, runs=size.runs, threads=THREADS, step=_step)
    first = {name: Measurement(timing.quantile(0.5), timing.quantile(0.99), timing.peak_rss_mb, timing.error)
             for name, timing in before.items()}
    return after, first


def _pick(spec: ModelSpec, rows: Sequence[EvaluationRow], measured: dict[str, Any]) -> str:
    """The contract's own choice, with an evaluation from held-out frames and a board that has both CPU runtimes."""
    every = ("fp32", "bf16", "fp16", "int8")
    board = Capability("bench", "cpu-x86", "x86_64", backends=(
        BackendInfo("onnxruntime", "1", precisions=every), BackendInfo("openvino", "1", precisions=every)))
    chosen = choose(spec, Evaluation("f1", "fp32", MAX_DROP, "here", tuple(rows)), board, measured).chosen
    return chosen.name if isinstance(chosen, Candidate) else ""


def _line(row: EvaluationRow, timing: Timing) -> dict[str, Any]:
    return {"candidate": _name(row), "p50_ms": timing.quantile(0.5), "p99_ms": timing.quantile(0.99), "runs": len(timing.samples),
            "ran_in": timing.ran_in, "accuracy": row.accuracy, "drop": row.drop, "agreement": row.agreement, "size": row.size,
            "verdict": row.verdict, "reason": timing.error or row.reason}


def resnet(folder: Path, size: Size) -> dict[str, Any]:
    """ResNet-50's shape: fp32 and both int8 layouts on both runtimes; relative output error as a check that int8 computes it."""
    rng = np.random.default_rng(1)
    task, _ = make_task("classify", "imagenet", shape=None, labels=(), options={}, overrides={})
    task = msgspec.structs.replace(task, input=msgspec.structs.replace(task.input, name="x"))
    image = folder / "noise.png"
    cv2.imwrite(str(image), cv2.GaussianBlur(rng.integers(0, 255, (224, 224, 3), np.uint8), (9, 9), 0))
    frames = [np.asarray(cv2.GaussianBlur(rng.integers(0, 255, (224, 224, 3), np.uint8), (9, 9), 0)) for _ in range(8)]
    tensors = [to_tensor(frame, task.input) for frame in frames]
    fp32 = _handle(folder / "resnet50.onnx", Simplify().apply(resnet50()))
    proto = fp32.load()
    view = GraphView(proto)
    table = calibrate(fp32, tensors)
    layers = [node.output[0] for node in quantizable(view)]
    layouts: tuple[tuple[str, Layout], ...] = (("int8", "qdq-int8"), ("uint8", "qdq-uint8"))
    built = [_peer("fp32", "fp32", fp32)] + [
        _peer(name, name, _handle(folder / f"resnet50.{name}.onnx", write_qdq(proto, place(view, layers, layout), table)))
        for name, layout in layouts]
    reference = outputs_of(proto, tensors[:2])
    errors = {item.variant.name: float(np.mean([relative_error(r[0], f[0]) for r, f in zip(
        reference, outputs_of(item.handle.load(), tensors[:2]), strict=True)])) for item in built}
    timed = [Timed(f"{item.variant.name}@{backend}:{precision}", item.handle.path, backend, precision)
             for item in built for backend, precision in ways_to_run(item.variant)]
    timings = time_interleaved(timed, task, image, JobRunner(), rounds=size.rounds, runs=size.runs, threads=THREADS, step=_step)
    base = timings["fp32@onnxruntime:fp32"].quantile(0.5)
    return {"layers": len(layers), "rows": [{
        "candidate": name, "p50_ms": timing.quantile(0.5), "p99_ms": timing.quantile(0.99), "ran_in": timing.ran_in,
        "speedup": base / timing.quantile(0.5) if timing.samples else 0.0, "relative_error": errors[name.partition("@")[0]],
        "error": timing.error} for name, timing in timings.items()]}


def _quiet(stage: str, done: int, of: int) -> None:
    if done == of:
        print(f"variants: {stage}", file=sys.stderr, flush=True)


def _step(done: int, of: int) -> None:
    if done == of:
        print(f"variants: timed {of}", file=sys.stderr, flush=True)


def markdown(result: dict[str, Any]) -> str:
    """The tables and the targets, met or missed."""
    found, shape = result["detector"], result["resnet50"]
    amx = "amx_int8" in result["machine"]
    intro = (f"PP-OCRv4 text detector, 480x640, batch 1, {THREADS} threads; F1 on {found['held_out_images']} frames not used for "
             "calibration. `original` is the file as published, `naive` is `quantize_static` over all nodes; speed is against "
             "`original` on ONNX Runtime.")
    lines = [intro, "", "| candidate | ran in | p50 ms | p99 ms | speed | F1 | drop, points | agreement | MB | verdict |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    for row in sorted(found["rows"], key=lambda row: row["p50_ms"] or 1e9):
        mark = "**" if row["candidate"] == found["pick"] else ""
        lines.append(f"| {mark}{row['candidate']}{mark} | {row['ran_in']} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | "
                     f"{row['speedup']:.2f}x | "
                     f"{row['accuracy']:.4f} | {row['drop']:+.2f} | {row['agreement']:.3f} | {row['size'] / 1e6:.2f} | {row['verdict']} |")
    lines += ["", f"ResNet-50's shape (random weights, {shape['layers']} int8 layers), 224x224; speed is against fp32 on ONNX Runtime.", "",
              "| candidate | ran in | p50 ms | p99 ms | speed | output error |", "|---|---|---:|---:|---:|---:|"]
    lines += [f"| {row['candidate']} | {row['ran_in']} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['speedup']:.2f}x | "
              f"{row['relative_error']:.4f} |" for row in sorted(shape["rows"], key=lambda row: row["p50_ms"] or 1e9)]
    ours = next(row for row in shape["rows"] if row["candidate"] == "int8@openvino:int8")
    naive = next(row for row in found["rows"] if row["candidate"] == "naive-int8@onnxruntime:int8")
    lines += ["", "| target | here | |", "|---|---|---|",
              _target("pick over fp32 on ONNX Runtime >= 4x (hosts with AMX)", f"{found['pick_speedup']:.2f}x",
                      found["pick_speedup"] >= 4, amx),
              _target("pick within 5 % of the fastest acceptable", f"{found['pick_over_fastest']:.3f} ({found['pick']})",
                      found["pick_over_fastest"] <= 1.05, True),
              _target("F1 drop of the pick <= 0.5 point", f"{found['pick_drop']:+.2f}", found["pick_drop"] <= 0.5, True),
              _target("ResNet-50 symmetric int8 on OpenVINO >= 6x (hosts with AMX)", f"{ours['speedup']:.2f}x", ours["speedup"] >= 6, amx),
              f"| naive all-node int8 on ONNX Runtime | {naive['speedup']:.2f}x, drop {naive['drop']:+.2f} | for comparison |"]
    return "\n".join(lines)


def _target(what: str, value: str, met: bool, applies: bool) -> str:
    return f"| {what} | {value} | {'met' if met else 'missed' if applies else 'below it; this CPU has no AMX'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and runs: whether it works, not what it measures")
    quick = parser.parse_args().quick
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="jetfleet-variants-") as name:
        folder = Path(name)
        result = {"machine": machine_name(), "threads": THREADS, "quick": quick, "taken": time.time(), "software": library_versions(),
                  "detector": detector(folder, size), "resnet50": resnet(folder, size)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
