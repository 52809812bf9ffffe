"""What the float stages win, on rendered characters (36 classes, characters.py), every rival with the same data, epochs and trainer.

    distillation   a student of half the width: trained on labels alone, and against the teacher, for as many epochs
    pruning        half of the channels: jetfleet (Taylor; at once, and a third at a time with an epoch after each) and Torch-Pruning
                   alone (its own global magnitude pruner, at once, at the same multiply-accumulates), three epochs of tuning each
    quantization   all layers in symmetric int8, in ONNX Runtime: after training (percentile calibration), and after two epochs of
                   training with quantization

    python benchmarks/compress.py [--seeds 0 1 2] [--train 18000] [--test 6000] [--epochs 12] [--side 32] [--width 16]
                                  [--precision bf16]
                                  [--only distillation pruning quantization] [--out benchmarks/results/compress.json]

Each figure is accuracy on the test split, in points. `error` is the standard error of a paired difference over the test images, in points.
Results are written after each row, so that a run that is stopped leaves what it has.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import characters
import numpy as np
import onnx
import onnxruntime
import torch
import torch_pruning as tp
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.float_stage import Split, Workshop
from jetfleet_host.compress.floating.channel_groups import macs
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.holding import Held
from jetfleet_host.compress.learned_scales import take_scales
from jetfleet_host.compress.models.mobilenet import InvertedResidual
from jetfleet_host.compress.models.resnet import BasicBlock, ResNet
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.compress.recipe_file import Distil, FloatStageConfig, Prune, Qat, Training, Tune

CLASSES = len(characters.CLASSES)
_TUNING_EPOCHS = 3
_CALIBRATION_IMAGES = 64
Hits = NDArray[np.float64]


class Pictures:
    """A split of the rendered set: (3, H, W) float32, grey 128 at zero and +-128 at +-2."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], digest: str) -> None:
        self._images = np.ascontiguousarray((images.astype(np.float32).transpose(0, 3, 1, 2) - 128.0) / 64.0)
        self._labels, self.digest = labels, digest

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self._images[index], self._labels[index]


@dataclass(frozen=True)
class Bench:
    """What every row shares. `rows` is written to `out` whenever it grows."""

    given: argparse.Namespace
    train: Pictures
    test: Pictures
    rows: list[dict[str, Any]]
    started: float

    def workshop(self, seed: int, folder: str, teacher: Callable[[], nn.Module] | None = None) -> Workshop:
        training = Training(batch=64, learning_rate=4e-3, weight_decay=1e-3, precision=self.given.precision)
        return Workshop((1, 3, self.given.side, self.given.side), self.train, self.test, functional.cross_entropy, hits,
                        teacher or nn.Identity, training, seed, Path(folder), self.say)

    def stage(self, config: FloatStageConfig, model: nn.Module, seed: int, **workshop: Any) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            return stage_for(config)(model, config, self.workshop(seed, folder, **workshop))

    def say(self, what: str, done: int, of: int) -> None:
        if done == of:
            sys.stderr.write(f"[{time.monotonic() - self.started:6.0f} s] {what}\n")

    def row(self, **values: Any) -> None:
        self.rows.append(values)
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()
        about = {"command": "python benchmarks/compress.py " + " ".join(sys.argv[1:]), "machine": machine(), "data": self.test.digest,
                 "train_images": len(self.train), "test_images": len(self.test), "seconds": round(time.monotonic() - self.started)}
        self.given.out.parent.mkdir(parents=True, exist_ok=True)
        self.given.out.write_text(json.dumps({**about, "rows": self.rows}, indent=1) + "\n")


def resnet(width: int) -> nn.Module:
    return ResNet(BasicBlock, (1, 1, 1), (width, 2 * width, 4 * width), CLASSES, small=True)


def mobile() -> nn.Module:
    """Inverted residuals: depthwise layers are what int8 hurts most."""
    blocks = [InvertedResidual(16, 24, 4, 2), InvertedResidual(24, 24, 4, 1), InvertedResidual(24, 48, 4, 2),
              InvertedResidual(48, 48, 4, 1)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), *blocks, nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(48, CLASSES))


def hits(model: nn.Module, split: Split) -> Hits:
    """1.0 where the class is right."""
    model.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(split), 256):
            pairs = [split[index] for index in range(start, min(start + 256, len(split)))]
            answers = model(torch.as_tensor(np.stack([image for image, _ in pairs]))).argmax(1).numpy()
            found.append(answers == np.array([target for _, target in pairs]))
    return np.concatenate(found).astype(np.float64)


def points(values: Hits) -> float:
    return round(100 * float(values.mean()), 2)


def difference(one: Hits, other: Hits) -> dict[str, float]:
    """`one` - `other`, and the standard error of it, in points."""
    delta = one - other
    return {"gain": points(delta), "error": round(100 * float(delta.std(ddof=1)) / len(delta) ** 0.5, 2)}


def trained(bench: Bench, factory: Callable[[], nn.Module], seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    return bench.stage(Tune(epochs=epochs), factory(), seed)


def distillation(bench: Bench, seed: int, teacher: nn.Module) -> None:
    torch.manual_seed(seed)
    start = resnet(bench.given.width // 2)
    alone = hits(bench.stage(Tune(epochs=bench.given.epochs), start, seed), bench.test)
    config = Distil(epochs=bench.given.epochs, temperature=4.0, alpha=0.9)
    learned = hits(bench.stage(config, start, seed, teacher=lambda: copy.deepcopy(teacher)), bench.test)
    bench.row(part="distillation", seed=seed, teacher=points(hits(teacher, bench.test)), alone=points(alone), distilled=points(learned),
              **difference(learned, alone))


def pruning(bench: Bench, seed: int, base: nn.Module) -> None:
    shape = (1, 3, bench.given.side, bench.given.side)
    before = hits(base, bench.test)
    cut = Prune(ratio=0.5, importance="taylor", round_to=4, epochs=0)
    ways: dict[str, tuple[FloatStageConfig, ...]] = {
        "at once, tuned": (replace(cut, epochs=_TUNING_EPOCHS),),
        "at once by magnitude, tuned": (replace(cut, importance="l1", epochs=_TUNING_EPOCHS),),
        "in three steps, an epoch after each": (replace(cut, steps=_TUNING_EPOCHS, epochs=1),),
        "at once, distilled from what it was": (cut, Distil(epochs=_TUNING_EPOCHS, temperature=4.0, alpha=0.9)),
    }
    for way, stages in ways.items():
        ours = base
        for config in stages:
            ours = bench.stage(config, ours, seed, teacher=lambda: copy.deepcopy(base))
        theirs = bench.stage(Tune(epochs=_TUNING_EPOCHS), pruned_alone(base, shape, macs(ours, shape)), seed)
        mine, rival = hits(ours, bench.test), hits(theirs, bench.test)
        bench.row(part="pruning", seed=seed, way=way, base=points(before), jetfleet=points(mine), torch_pruning=points(rival),
                  recovered=round(100 * float(mine.mean() / before.mean()), 2), mmacs_base=round(macs(base, shape) / 1e6, 2),
                  mmacs_jetfleet=round(macs(ours, shape) / 1e6, 2), mmacs_torch_pruning=round(macs(theirs, shape) / 1e6, 2),
                  **difference(mine, rival))


def pruned_alone(base: nn.Module, shape: tuple[int, ...], target: int) -> nn.Module:
    """Torch-Pruning as its readme uses it, with the ratio that comes nearest to `target` multiply-accumulates from above or below."""
    tries: list[tuple[int, int, nn.Module]] = []
    for ratio in np.linspace(0.2, 0.7, 41):
        model = copy.deepcopy(base).train(mode=False)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        pruner = tp.pruner.MagnitudePruner(model, torch.zeros(shape), importance=tp.importance.GroupMagnitudeImportance(p=2),
                                           global_pruning=True, pruning_ratio=float(ratio), round_to=4, in_channel_groups={},
                                           out_channel_groups={}, ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)])
        pruner.step()
        tries.append((abs(macs(model, shape) - target), len(tries), model))
    return min(tries)[2]


def quantization(bench: Bench, seed: int) -> None:
    base = trained(bench, mobile, seed, bench.given.epochs)
    tuned = bench.stage(Tune(epochs=2, learning_rate=2e-4), base, seed)
    learned = bench.stage(Qat(epochs=2, learning_rate=2e-4), base, seed)
    float_hits = hits(tuned, bench.test)
    with tempfile.TemporaryDirectory() as folder:
        after, during = (int8_hits(bench, model, Path(folder)) for model in (tuned, learned))
    bench.row(part="quantization", seed=seed, float32=points(float_hits), after_training=points(after), with_training=points(during),
              **difference(during, after))


def int8_hits(bench: Bench, model: nn.Module, folder: Path) -> Hits:
    """All layers in symmetric int8 with learned scales where there are some, run by ONNX Runtime."""
    clean, learned = take_scales(exported(model, bench.given.side))
    ready = write_model(folder / "float.onnx", serialized(clean))
    table = calibrate(ready, [bench.train[index][0][None] for index in range(_CALIBRATION_IMAGES)], percentile=99.99)
    held = Held("training", {name: entry.scale for name, entry in learned.ranges.items()}, learned.weights)
    view = GraphView(ready.load())
    placement = place(view, {node.output[0] for node in quantizable(view)}, "qdq-int8")
    session = onnxruntime.InferenceSession(write_qdq(ready.load(), placement, held.over(table)).SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    right = [session.run(None, {source: image[None]})[0].argmax() == target
             for image, target in (bench.test[index] for index in range(len(bench.test)))]
    return np.array(right, np.float64)


def exported(model: nn.Module, side: int) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(model.eval(), (torch.zeros(1, 3, side, side),), dynamo=True, opset_version=18, external_data=False,
                                verbose=False)
    return onnx.load_model_from_string(program.model_proto.SerializeToString())


def machine() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, value in (("train", 18_000), ("test", 6_000), ("epochs", 12), ("side", 32), ("width", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--only", nargs="+", default=["distillation", "pruning", "quantization"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compress.json")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    made = characters.render(given.side, given.train, given.test, 0)
    train, test = (Pictures(*made.part(name), f"{name} {made.digest}") for name in ("train", "test"))
    bench = Bench(given, train, test, [], started)
    for seed in given.seeds:
        if {"distillation", "pruning"} & set(given.only):
            base = trained(bench, functools.partial(resnet, given.width), seed, given.epochs)
        if "distillation" in given.only:
            distillation(bench, seed, base)
        if "pruning" in given.only:
            pruning(bench, seed, base)
        if "quantization" in given.only:
            quantization(bench, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
