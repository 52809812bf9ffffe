"""ResNet-50 trained, pruned and quantized by `jetfleet build` on rendered characters; then the very same graphs timed at 224x224.

Accuracy is of the test split, which no stage was trained on (the guard saw it). Latency: ONNX Runtime's fp32 file as it was trained, beside
what the build made of it, batch 1, interleaved, one process a measurement. Training is at --side pixels, for there is no GPU here; a
convolution network's graph is the same at any size.

    python benchmarks/prune_int8.py [--net resnet50] [--side 32] [--epochs 6] [--ratio 0.3] [--seed 0] [--rounds 5] [--cache DIR]

`--epochs 0 --max-drop 100` trains nothing: the shape alone, for bytes and latency.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from characters import CLASSES, render

from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_host.build_record import record_of
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress.building import machine_name
from jetfleet_host.compress.handles import serialized
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.recipe import Job, Recipe, make_task, with_quantize
from jetfleet_host.compress.recipe_build import build_by_recipe
from jetfleet_host.compress.recipe_file import Prune, Quantize, RecipeFile, Training, Tune
from jetfleet_host.compress.timing import Timed, time_interleaved

SIDE = 224
RESULT = Path(__file__).resolve().parent / "results" / "prune_int8.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--train", type=int, default=18_000)
    parser.add_argument("--test", type=int, default=6_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "jetfleet-bench-prune")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asked.cache.mkdir(parents=True, exist_ok=True)
    data = asked.cache / f"characters-{asked.side}-{asked.train}-{asked.test}-{asked.seed}.npz"
    if not data.exists():
        drawn = render(asked.side, asked.train, asked.test, asked.seed)
        np.savez(data, images=drawn.images, labels=drawn.labels, classes=np.array(list(CLASSES)), split=drawn.split)
    tune = Tune(epochs=asked.epochs)
    prune = Prune(ratio=asked.ratio, importance="taylor" if asked.epochs else "l1", epochs=asked.epochs, round_to=16)
    base = built(asked, data, (tune,), "base")
    small = built(asked, data, (tune, prune, Quantize(correct_bias=True)), "small")
    report = {**figures(asked, base, small), "machine": machine_name(), "side": asked.side, "train": asked.train, "test": asked.test,
              "net": asked.net, "epochs": asked.epochs, "ratio": asked.ratio, "seed": asked.seed}
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


def built(asked: argparse.Namespace, data: Path, stages: tuple[Any, ...], name: str) -> Path:
    """A bundle by these stages; what another recipe has already made is taken from the cache."""
    training = Training(learning_rate=2e-3, batch=64, label_smoothing=0.1)
    file = RecipeFile(name=name, seed=asked.seed, max_drop=asked.max_drop, training=training, stage=stages)
    task, shape = make_task("classify", "", shape=(1, 3, asked.side, asked.side), labels=(), options={}, overrides={})
    recipe = Recipe(f"chars-{name}", "1", ("cpu-x86",), task, shape, latency_rounds=0, max_drop=asked.max_drop)
    last = stages[-1]
    recipe = with_quantize(recipe, last) if isinstance(last, Quantize) else msgspec.structs.replace(recipe, methods=())
    out: Path = asked.cache / f"{name}-{asked.net}-{asked.side}-{asked.epochs}-{asked.ratio}-{asked.seed}"
    model = f"characters_nets:{asked.net}"
    build_by_recipe(model, str(data), Job(Path(model), data, out, asked.cache / "cache"), recipe, file, shown)
    return out


def shown(stage: str, done: int, of: int) -> None:
    if done in (0, of) or stage.startswith(("tune", "prune")):
        print(f"{stage}: {done} of {of}", file=sys.stderr, flush=True)


def figures(asked: argparse.Namespace, base: Path, small: Path) -> dict[str, Any]:
    """Accuracy from the bundles, bytes and latency of the same graphs at 224x224."""
    first, second = open_bundle(base), open_bundle(small)
    floats = {name: record_of(bundle) for name, bundle in (("base", first), ("small", second))}
    folder = asked.cache / "at224"
    folder.mkdir(exist_ok=True)
    files = {"base fp32": (first, "fp32"), "pruned fp32": (second, "fp32"), "pruned int8": (second, "int8"),
             "pruned uint8": (second, "uint8")}
    paths = {name: at_size(bundle, variant, folder / f"{name.replace(' ', '-')}.onnx") for name, (bundle, variant) in files.items()
             if any(one.name == variant for one in bundle.spec.variants)}
    ways = {"base fp32 @onnxruntime": ("base fp32", "onnxruntime", "fp32"),
            "pruned fp32 @onnxruntime": ("pruned fp32", "onnxruntime", "fp32"),
            "pruned uint8 @onnxruntime": ("pruned uint8", "onnxruntime", "int8"), "base fp32 @openvino": ("base fp32", "openvino", "fp32"),
            "pruned uint8 @openvino": ("pruned uint8", "openvino", "int8"), "pruned int8 @openvino": ("pruned int8", "openvino", "int8")}
    image = folder / "image.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    task = TaskSpec("raw", InputSpec(first.spec.task.input.name, SIDE, SIDE, "rgb", "stretch", 1 / 255), ())
    timings = time_interleaved([Timed(name, paths[file], backend, precision) for name, (file, backend, precision) in ways.items()
                                if file in paths], task, image, JobRunner(), rounds=asked.rounds, runs=20, threads=0, step=lambda *_: None)
    reference = timings["base fp32 @onnxruntime"].quantile(0.5)
    rows = []
    for name, timing in timings.items():
        bundle, variant = files[ways[name][0]]
        scored = next((row for row in bundle.evaluation.rows if (row.variant, row.backend) == (variant, ways[name][1])), None)
        p50 = timing.quantile(0.5)
        rows.append({"what": name, "accuracy": scored.accuracy if scored else None, "bytes": paths[ways[name][0]].stat().st_size,
                     "p50_ms": p50, "p95_ms": timing.quantile(0.95), "times": reference / p50 if p50 else None, "ran_in": timing.ran_in,
                     "error": timing.error})
    stages = floats["small"].floats.stages if floats["small"] and floats["small"].floats else ()
    return {"rows": rows, "stages": [{"kind": stage.kind, "ending": stage.ending, "metric": stage.metric, "reason": stage.reason}
                                     for stage in stages]}


def at_size(bundle: Any, variant: str, out: Path) -> Path:
    """The variant's graph with its input at 224x224."""
    import onnx

    digest = next(one.digest for one in bundle.spec.variants if one.name == variant)
    model = onnx.load_model_from_string(bundle.blob_path(digest).read_bytes())
    for axis, size in ((2, SIDE), (3, SIDE)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    out.write_bytes(serialized(model))
    return out


def print_table(report: dict[str, Any]) -> None:
    print("| what | test accuracy | MB | p50 ms at 224 | p95 ms | times as fast | ran in |\n|---|---:|---:|---:|---:|---:|---|")
    for row in report["rows"]:
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %"
        ratio = f"{row['times']:.2f}" if row["times"] else row["error"]
        print(f"| {row['what']} | {accuracy} | {row['bytes'] / 1e6:.1f} | {row['p50_ms']:.2f} | {row['p95_ms']:.2f} | {ratio} "
              f"| {row['ran_in']} |")
    for stage in report["stages"]:
        print(f"\n{stage['kind']}: {stage['ending']}, {stage['metric']:.4f}: {stage['reason']}")


if __name__ == "__main__":
    main()
