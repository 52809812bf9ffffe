"""What a method makes of a model: a bundle, scored on the same validation images as every other method's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jetfleet_contract.bundle import TaskSpec
from jetfleet_host.build_record import record_of
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.compress.building import Given, build
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.intake.factories import is_factory
from jetfleet_host.compress.intake.models import onnx_of
from jetfleet_host.compress.intake.splitting import Splits, load_splits
from jetfleet_host.compress.recipe import Job, Recipe, Shape, with_quantize
from jetfleet_host.compress.recipe_build import build_by_recipe, quantize_of
from jetfleet_host.compress.samples import class_order

from .methods import Method

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Bench:
    """What all methods of one model have in common. `data`: a data folder; `seed` splits it, whatever a recipe says of its own."""

    name: str
    model: str
    data: Path
    task: TaskSpec
    shape: Shape
    targets: tuple[str, ...]
    seed: int = 0
    calibration_images: int = 32
    threads: int = 0

    def splits(self) -> Splits:
        """Which images train, validate and calibrate; raises as `load_splits`."""
        return load_splits(self.data, self.seed, self.calibration_images)

    def original(self, cache: Path) -> Path:
        """The model as an ONNX file; raises as `intake.models.onnx_of`."""
        return onnx_of(self.model, self.shape, Checkpoints(cache), cache / "converters")

    def build(self, method: Method, out: Path, cache: Path, max_drop: float, progress: Progress) -> OpenBundle:
        """The method's bundle in `out`. Raises as `build` and `build_by_recipe`."""
        job = Job(Path(self.model), self.data, out, cache)
        asked = Recipe(self.name, "matrix", self.targets, self.task, self.shape, max_drop=max_drop, calibrator=method.calibrator,
                       calibration_images=self.calibration_images, threads=self.threads, latency_rounds=0)
        if method.recipe is not None and method.recipe.stage:
            quantize = quantize_of(method.recipe)
            build_by_recipe(self.model, str(self.data), job, with_quantize(asked, quantize) if quantize else asked,
                            msgspec.structs.replace(method.recipe, seed=self.seed), progress)
            return open_bundle(out, verify=False)
        splits = self.splits()
        task = msgspec.structs.replace(self.task, labels=class_order(splits.train, self.task.labels)) if self.task.kind == "classify" \
            else self.task
        plain = msgspec.structs.replace(asked, task=task, methods=method.makes)
        build(job, plain, progress, Given(self.original(cache), splits.validation, splits.calibration))
        return open_bundle(out, verify=False)


def model_name(model: str) -> str:
    """A model's name in a table: of a file its stem, of a factory the last part of its module and the function."""
    if not is_factory(model):
        return Path(model).stem.lower()
    module, _, function = model.partition(":")
    return f"{module.rpartition('.')[2]}.{function}".lower()


def left_out(bundle: OpenBundle) -> str:
    """Stages that the guard left out of a bundle, or made gentler, each with its reason; "" when every one stayed as it was asked for."""
    record = record_of(bundle)
    stages = record.floats.stages if record is not None and record.floats is not None else ()
    return "; ".join(f"{stage.kind} {stage.ending}: {stage.reason}" for stage in stages if stage.ending != "kept")
