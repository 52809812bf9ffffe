"""A build by a recipe: MODEL and DATA in any form, float stages under the guard, then the same road as every build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract.errors import InputError

from .building import BuildReport, Given, Progress, build
from .checkpoints import Checkpoints
from .dataset import load_data
from .float_stage import Workshop
from .floating.registry import stage_for
from .intake.exporting import export_module
from .intake.images import data_folder
from .intake.models import kind_of, module_of, onnx_of
from .intake.splitting import Splits, load_splits
from .recipe import Job, Recipe
from .recipe_file import FloatStageConfig, Quantize, RecipeFile
from .samples import ImageSamples, class_order, class_targets
from .stage_driver import StageDriver
from .stage_records import FloatRun
from .task_samples import TaskSamples

if TYPE_CHECKING:
    from torch.nn import Module


def build_by_recipe(model: str, data: str, job: Job, recipe: Recipe, file: RecipeFile, progress: Progress) -> BuildReport | None:
    """Build a bundle by a recipe. None in those of torchrun's processes that only help the first one to train.

    Args:
        model: whatever `intake.models` takes. data: a folder, a ``.npz`` or a factory.
        job: where to write; its `model` and `data` are not read.

    Raises:
        InputError: `recipe.stage` when a stage needs what this model is not; those of the intake and of `build`.
    """
    checkpoints = Checkpoints(job.cache)
    given_data = data_folder(data, job.cache / "data")
    named = msgspec.structs.replace(recipe.task, labels=recipe.task.labels or given_data.classes)
    recipe = msgspec.structs.replace(recipe, task=named)
    if not file.stage:
        whole = load_data(given_data.folder)
        return build(job, recipe, progress, Given(onnx_of(model, recipe.shape, checkpoints, job.cache / "converters"), whole, whole))
    splits = load_splits(given_data.folder, file.seed, recipe.calibration_images)
    stages = float_stages(file)
    if not stages:
        onnx = onnx_of(model, recipe.shape, checkpoints, job.cache / "converters")
        return build(job, recipe, progress, Given(onnx, splits.validation, splits.calibration))
    if kind_of(model) != "factory":
        raise InputError("recipe.stage", f"the stage {_tag(stages[0])!r} changes a torch module, and {model} is none", where=model,
                         remedy="give the factory package.module:function that makes it with its weights, or a recipe without such stages")
    classes = class_order(splits.train, recipe.task.labels)
    module, run = _run_stages(model, stages, splits, classes, recipe, file, checkpoints, progress)
    if not _leads():
        return None
    key = checkpoints.key("float-export", run.stages[-1].digest, recipe.shape)
    onnx = (checkpoints.model(key) or checkpoints.keep_model(key, export_module(module, recipe.shape))).path
    task = msgspec.structs.replace(recipe.task, labels=classes or recipe.task.labels)
    spent = 100.0 * (run.best - run.metric)
    left = msgspec.structs.replace(recipe, task=task, max_drop=round(max(0.0, recipe.max_drop - spent), 4))
    return build(job, left, progress, Given(onnx, splits.validation, splits.calibration, run))


def _leads() -> bool:
    from .floating.processes import leads

    return leads()


def quantize_of(file: RecipeFile) -> Quantize | None:
    """The recipe's quantize stage. InputError `recipe.order` when there are two."""
    found = [config for config in file.stage if isinstance(config, Quantize)]
    if len(found) > 1:
        raise InputError("recipe.order", "the recipe has two 'quantize' stages", where=file.name or "stage", remedy="keep one, at the end")
    return found[0] if found else None


def float_stages(file: RecipeFile) -> tuple[FloatStageConfig, ...]:
    """The stages on torch modules, in their order. InputError `recipe.order` when one comes after the graph was quantized."""
    if file.training.task and file.training.label_smoothing:
        raise InputError("recipe.bad", "label_smoothing belongs to the loss of classifiers, and [training] task brings another",
                         where=file.name or "training", remedy="leave label_smoothing out, and smooth within the task's own loss")
    stages: list[FloatStageConfig] = []
    quantized = False
    for config in file.stage:
        if isinstance(config, Quantize):
            quantized = True
        elif quantized:
            raise InputError("recipe.order", f"the stage {_tag(config)!r} comes after 'quantize'", where=file.name or "stage",
                             remedy="quantize last; 'qat' is the stage that trains with quantization in mind")
        else:
            stages.append(config)
    return tuple(stages)


def _run_stages(model: str, stages: tuple[FloatStageConfig, ...], splits: Splits, classes: tuple[str, ...], recipe: Recipe,
                file: RecipeFile, checkpoints: Checkpoints, progress: Progress) -> tuple[Module, FloatRun]:
    make = _workshops(model, splits, classes, recipe, file, checkpoints, progress)
    driver = StageDriver(checkpoints, stage_for, make, recipe.max_drop,
                         lambda index, of, kind, strength: progress(f"{kind} {index + 1}/{of} at {strength:.2f}", 0, 1))
    return driver.run(module_of(model), stages)


def _workshops(model: str, splits: Splits, classes: tuple[str, ...], recipe: Recipe, file: RecipeFile, checkpoints: Checkpoints,
               progress: Progress) -> Callable[[int], Workshop]:
    folder = checkpoints.folder / "stages"
    made = _of_own_task if file.training.task else _of_classifier
    shop = made(model, splits, classes, recipe, file, folder, progress)

    def workshop(index: int) -> Workshop:
        place = folder / f"{checkpoints.key('workshop', model, shop.train.digest, file, index)[:16]}"
        place.mkdir(parents=True, exist_ok=True)
        return replace(shop, folder=place)

    return workshop


def _of_classifier(model: str, splits: Splits, classes: tuple[str, ...], recipe: Recipe, file: RecipeFile, folder: Path,
                   progress: Progress) -> Workshop:
    from .floating.judging import agreement_with, label_loss, own_answers, right_answers

    teacher = partial(module_of, model)
    train, validation = (ImageSamples(part, recipe.task.input, class_targets(part, classes)) for part in (splits.train, splits.validation))
    if splits.train.truth is None:
        train = ImageSamples(splits.train, recipe.task.input, own_answers(teacher(), train))
    score = right_answers if splits.validation.truth is not None else agreement_with(teacher)
    return Workshop(recipe.shape, train, validation, label_loss(file.training), score, teacher, file.training, file.seed, folder, progress)


def _of_own_task(model: str, splits: Splits, classes: tuple[str, ...], recipe: Recipe, file: RecipeFile, folder: Path,
                 progress: Progress) -> Workshop:
    from .floating.user_task import UserTask

    task = UserTask(file.training.task)
    train, validation = (TaskSamples(part, recipe.task.input, classes) for part in (splits.train, splits.validation))
    return Workshop(recipe.shape, train, validation, task.loss, task.score, partial(module_of, model), file.training, file.seed, folder,
                    progress, task.collate, task.distance, task.digest)


def _tag(config: FloatStageConfig) -> str:
    return str(type(config).__struct_config__.tag)
