"""Post-training int8: our files against onnxruntime.quantization's, from the same calibration images, on real models.

Models: PP-OCRv4's text detector (F1 on labelled frames) and PP-OCR's orientation classifier (accuracy), both scored on images that
calibration never saw, and ResNet-50's shape (random weights: error and speed alone). Every file holds all layers that its tool can
quantize: no ladder, no guard, so that tool stands against tool. Timed on ONNX Runtime, one process a measurement, interleaved.

    python benchmarks/quantize.py [--quick] [--rounds 3] [--peer nncf=VENV/bin/python ...] [--bundle DIR=DATA ...]

`--rounds 0` leaves latency out: accuracy does not depend on what else the machine does. `--peer` adds one of ptq_peer.py, run by the Python
of its own environment, with the same calibration images; `--bundle` adds the fp32 file of a bundle of ours, calibrated on one in five of
the images of DATA (32 at most) and scored on the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from resnet_shape import resnet50

from jetfleet_contract.bundle import TaskSpec
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress.bias_correction import correct_bias
from jetfleet_host.compress.building import machine_name
from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.checkpoints import Checkpoints, library_versions
from jetfleet_host.compress.dataset import DataSet, load_data, read_image, to_tensor
from jetfleet_host.compress.equality import outputs_of, relative_error
from jetfleet_host.compress.equalization import equalize
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import ModelHandle, serialized, write_model
from jetfleet_host.compress.intake.splitting import subset
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.linting import lint
from jetfleet_host.compress.placement import Layout, place, quantizable
from jetfleet_host.compress.preparing import Simplify
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.compress.recipe import make_task
from jetfleet_host.compress.scoring import Scorer
from jetfleet_host.compress.stages import prepare
from jetfleet_host.compress.timing import Timed, time_interleaved
from jetfleet_host.demo.models import text_detector, text_orientation
from jetfleet_host.demo.scene import labelled_images, orientation_crops

RESULTS = Path(__file__).parent / "results" / "quantize.json"
THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    calibration: int
    held_out: int
    rounds: int
    runs: int


@dataclass(frozen=True)
class Subject:
    """One model: the clean fp32 graph that both tools start from, images to calibrate with, and data to score on, where there is any."""

    name: str
    model: ModelHandle
    task: TaskSpec
    tensors: Sequence[Any]
    held_out: DataSet | None
    image: Path


FULL, QUICK = Size(32, 32, 3, 15), Size(4, 4, 1, 3)


def _detector(folder: Path, size: Size) -> Subject:
    task, shape = make_task("", "ppocr-det", shape=None, labels=(), options={}, overrides={})
    return _real(folder, "PP-OCRv4 detector", text_detector(), task, shape, labelled_images(folder / "seen", size.calibration, 3),
                 labelled_images(folder / "unseen", size.held_out, 99))


def _orientation(folder: Path, size: Size) -> Subject:
    task, shape = make_task("", "ppocr-cls", shape=None, labels=(), options={}, overrides={})
    return _real(folder, "PP-OCR orientation", text_orientation(), task, shape, orientation_crops(folder / "crops", size.calibration, 5),
                 orientation_crops(folder / "others", 4 * size.held_out, 77))


def _real(folder: Path, name: str, model: Path, task: TaskSpec, shape: Any, seen: Path, unseen: Path) -> Subject:
    from jetfleet_host.compress.stages import import_model

    checkpoints = Checkpoints(folder / "cache")
    imported = import_model(model, shape, checkpoints)
    task = msgspec.structs.replace(task, input=msgspec.structs.replace(task.input, name=imported.input))
    images, held_out = load_data(seen).images, load_data(unseen)
    tensors = [to_tensor(read_image(image), task.input) for image in images]
    return Subject(name, prepare(imported.model, shape, tensors[:2], checkpoints, lambda *_: None), task, tensors, held_out, images[0])


def _resnet(folder: Path, size: Size) -> Subject:
    rng = np.random.default_rng(1)
    task, _ = make_task("classify", "imagenet", shape=None, labels=(), options={}, overrides={})
    task = msgspec.structs.replace(task, input=msgspec.structs.replace(task.input, name="x"))
    folder.mkdir(parents=True)
    count = min(16, size.calibration)
    frames = [np.asarray(cv2.GaussianBlur(rng.integers(0, 255, (224, 224, 3), np.uint8), (9, 9), 0)) for _ in range(count)]
    cv2.imwrite(str(folder / "noise.png"), frames[0])
    model = write_model(folder / "resnet50.onnx", serialized(Simplify().apply(resnet50())))
    return Subject("ResNet-50's shape", model, task, [to_tensor(frame, task.input) for frame in frames], None, folder / "noise.png")


def _theirs(subject: Subject, target: Path, **options: Any) -> ModelHandle:
    """quantize_static over all nodes, as its documentation calls it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(subject.tensors)

        def get_next(self) -> dict[str, Any] | None:
            tensor = next(self._rest, None)
            return None if tensor is None else {subject.task.input.name: tensor}

    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(str(subject.model.path), str(target), Reader(), quant_format=QuantFormat.QDQ, **options)
    return write_model(target, target.read_bytes())


def _peers(subject: Subject, folder: Path) -> dict[str, ModelHandle]:
    from onnxruntime.quantization import QuantType

    x86 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    return {
        "ORT default (int8, by tensor)": _theirs(subject, folder / "ort-default.onnx"),
        "ORT x86 advice (uint8, by channel)": _theirs(subject, folder / "ort-x86.onnx", **x86),
        "ORT GPU advice (int8 symmetric, by channel)": _theirs(
            subject, folder / "ort-gpu.onnx", per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True}),
    }


def _others(subject: Subject, folder: Path, peers: Sequence[str]) -> dict[str, ModelHandle]:
    """Files of the peers that have an environment of their own. One that fails is told on stderr, and missing in the table."""
    rows = folder / "rows.npy"
    np.save(rows, np.concatenate(list(subject.tensors)))
    found: dict[str, ModelHandle] = {}
    for peer in peers:
        name, _, python = peer.partition("=")
        out = folder / f"{name}.onnx"
        done = subprocess.run([python, str(Path(__file__).with_name("ptq_peer.py")), name, str(subject.model.path), str(rows), str(out)],
                              capture_output=True, text=True, check=False, timeout=1200)
        if done.returncode:
            print(f"quantize: {subject.name}: {name} failed: {done.stderr.strip()[-300:]}", file=sys.stderr)
            continue
        version = json.loads(done.stdout.strip().splitlines()[-1])["version"]
        found[f"{name} {version}"] = write_model(out, out.read_bytes())
    return found


def _of_bundle(folder: Path, given: str) -> Subject:
    """A bundle's fp32 file, as a model that somebody else might have made."""
    path, _, data = given.partition("=")
    bundle = open_bundle(Path(path))
    fp32 = next(one for one in bundle.spec.variants if one.name == "fp32")
    folder.mkdir(parents=True)
    model = write_model(folder / "model.onnx", bundle.blob_path(fp32.digest).read_bytes())
    whole = load_data(Path(data))
    few = range(0, len(whole.images), 5)
    seen, held_out = subset(whole, list(few)[:32], "seen"), subset(whole, [i for i in range(len(whole.images)) if i % 5], "held out")
    task = bundle.spec.task
    tensors = [to_tensor(read_image(image), task.input) for image in seen.images]
    return Subject(bundle.spec.name, model, task, tensors, held_out, seen.images[0])


def _ours(subject: Subject, folder: Path) -> dict[str, ModelHandle]:
    found: dict[str, ModelHandle] = {}

    def keep(name: str, model: ModelHandle, table: Any, layout: Layout) -> None:
        proto = model.load()
        view = GraphView(proto)
        made = write_qdq(proto, place(view, [node.output[0] for node in quantizable(view)], layout), table)
        found[name] = write_model(folder / f"ours-{len(found)}.onnx", serialized(made))

    tables = {kind: calibrate(subject.model, subject.tensors, percentile=99.99, calibrator=kind)
              for kind in ("percentile", "minmax", "entropy", "mse")}
    keep("TensorRT twin, percentile", subject.model, tables["percentile"], "qdq-int8")
    for kind, table in tables.items():
        keep(f"x86 twin, {kind}", subject.model, table, "qdq-uint8")
    layers = [node.output[0] for node in quantizable(GraphView(subject.model.load()))]
    corrected, _ = correct_bias(subject.model, layers, tables["percentile"], subject.tensors[:8])
    keep("x86 twin, percentile, bias corrected", subject.model, corrected, "qdq-uint8")
    keep("x86 twin, percentile, 7-bit weights", subject.model, tables["percentile"], "qdq-uint8-narrow")
    by_tensor = msgspec.structs.replace(tables["percentile"], per_channel=False)
    keep("x86 twin, percentile, by tensor", subject.model, by_tensor, "qdq-uint8")
    evened, told = equalize(subject.model.load(), subject.tensors[:8])
    if told.pairs:
        even = write_model(folder / "evened.onnx", serialized(evened))
        table = msgspec.structs.replace(calibrate(even, subject.tensors, percentile=99.99), per_channel=False)
        keep(f"x86 twin, percentile, by tensor, equalized ({told.pairs} pairs)", even, table, "qdq-uint8")
        corrected, _ = correct_bias(even, layers, table, subject.tensors[:8])
        keep("x86 twin, percentile, by tensor, equalized, bias corrected", even, corrected, "qdq-uint8")
    return found


def measure(subject: Subject, folder: Path, size: Size, peers: Sequence[str]) -> dict[str, Any]:
    """Every file of one model: accuracy, agreement, output error, bytes, latency, and what the linter says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"fp32": subject.model, **_peers(subject, folder), **_others(subject, folder, peers), **_ours(subject, folder)}
    probes = subject.tensors[:4]
    reference = outputs_of(subject.model.load(), probes)
    scorer = Scorer(JobRunner(), Checkpoints(folder / "scores"), subject.held_out, subject.task, THREADS) if subject.held_out else None
    answer = scorer.answer(subject.model, "onnxruntime", "fp32") if scorer else None
    rows = []
    for name, handle in files.items():
        found = outputs_of(handle.load(), probes)
        pairs = [(r, f) for a, b in zip(reference, found, strict=True) for r, f in zip(a, b, strict=True)]
        row: dict[str, Any] = {
            "file": name, "bytes": handle.size,
            "error": float(np.mean([relative_error(expected, got) for expected, got in pairs])),
            "lint_errors": sum(finding.level == "error" for finding in lint(handle.load())),
            "lint_warnings": sum(finding.level == "warning" for finding in lint(handle.load())),
        }
        if scorer and answer:
            said = scorer.answer(handle, "onnxruntime", "fp32" if name == "fp32" else "int8")
            row["accuracy"], row["agreement"] = scorer.accuracy(said, answer), _agreement(answer, said)
        rows.append(row)
        print(f"quantize: {subject.name}: {name}", file=sys.stderr, flush=True)
    timings = time_interleaved(
        [Timed(name, handle.path, "onnxruntime", "fp32" if name == "fp32" else "int8") for name, handle in files.items()], subject.task,
        subject.image, JobRunner(), rounds=size.rounds, runs=size.runs, threads=THREADS, step=lambda *_: None)
    for row in rows:
        timing = timings[row["file"]]
        row.update(p50_ms=timing.quantile(0.5), p95_ms=timing.quantile(0.95), runs=len(timing.samples), timing_error=timing.error)
    held_out = len(subject.held_out.images) if subject.held_out else 0
    return {"model": subject.name, "metric": scorer.metric if scorer else "", "held_out": held_out,
            "calibration": len(subject.tensors), "rows": rows}


def _agreement(reference: Any, said: Any) -> float:
    from jetfleet_contract.predictions import agreement

    return agreement(reference.predictions, said.predictions)


def markdown(result: dict[str, Any]) -> str:
    """One table a model."""
    lines = []
    for model in result["models"]:
        told = f"{model['metric']} on {model['held_out']} images not used for calibration" if model["metric"] else "random weights"
        lines += [f"{model['model']}: {told}; {model['calibration']} to calibrate with; {result['threads']} threads, ONNX Runtime.", "",
                  "| file | accuracy | agreement | output error | MB | p50 ms | p95 ms | lint: errors, warnings |",
                  "|---|---:|---:|---:|---:|---:|---:|---:|"]
        for row in model["rows"]:
            score = f"{100 * row['accuracy']:.2f} | {row['agreement']:.3f}" if "accuracy" in row else "- | -"
            timed = f"{row['p50_ms']:.2f} | {row['p95_ms']:.2f}" if row["runs"] else "- | -"
            lines.append(f"| {row['file']} | {score} | {row['error']:.4f} | {row['bytes'] / 1e6:.2f} | {timed} | "
                         f"{row['lint_errors']}, {row['lint_warnings']} |")
        lines.append("")
    return "\n".join(lines).strip()


def _command(asked: argparse.Namespace) -> str:
    """As it was called, without the paths of this machine."""
    words = ["python benchmarks/quantize.py", *(["--quick"] if asked.quick else [])]
    words += [f"--rounds {asked.rounds}"] if asked.rounds >= 0 else []
    words += [f"--peer {peer.partition('=')[0]}=PYTHON" for peer in asked.peer]
    words += [f"--bundle {Path(given.partition('=')[0]).name}=DATA" for given in asked.bundle]
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and runs: whether it works, not what it measures")
    parser.add_argument("--rounds", type=int, default=-1, help="rounds of timing; 0 leaves latency out")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="nncf, aimet or olive, and its Python")
    parser.add_argument("--bundle", action="append", default=[], metavar="DIR=DATA", help="one more model, and images to score it on")
    asked = parser.parse_args()
    quick = asked.quick
    size = QUICK if quick else FULL
    if asked.rounds >= 0:
        size = replace(size, rounds=asked.rounds)
    with tempfile.TemporaryDirectory(prefix="jetfleet-quantize-") as name:
        folder = Path(name)
        subjects: dict[str, Callable[[Path], Subject]] = {
            "orientation": lambda at: _orientation(at, size), "detector": lambda at: _detector(at, size),
            "resnet50": lambda at: _resnet(at, size),
            **{f"bundle{number}": partial(_of_bundle, given=given) for number, given in enumerate(asked.bundle)}}
        models = [measure(make(folder / key), folder / key / "files", size, asked.peer) for key, make in subjects.items()]
    result = {"machine": machine_name(), "threads": THREADS, "quick": quick, "taken": time.time(), "software": library_versions(),
              "command": _command(asked), "models": models}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
