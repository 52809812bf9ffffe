"""Command: build."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from jetfleet_host.compress.building import BuildReport

_MODEL = typer.Argument(..., metavar="MODEL", help="The trained model: an ONNX, TorchScript (.pt), torch.export (.pt2), TFLite or Keras "
                        "file, a SavedModel, or package.module:function that makes a torch module.")
_DATA = typer.Option(..., "--data", help="Folder of images, with labels.json or class sub-folders where there are labels.")
_TARGETS = typer.Option(..., "--target", help="Board that the bundle is for; give it again for more.")
_OUT = typer.Option(..., "--out", help="Bundle folder to write.")
_CACHE = typer.Option(None, "--cache", help="Folder for checkpoints of finished stages (default: the user's cache folder).")
_PARENT = typer.Option(None, "--parent", help="Bundle that this model was trained or compressed from: kept as its lineage.")
_OPTIONS = typer.Option([], "--task-option", help="NAME=VALUE for the task's decoder; give it again for more.")
_RECIPE = typer.Option("", "--recipe", metavar="NAME|R.toml", help="Stages that the model goes through: `jetfleet recipes` lists "
                       "those that come along.")
_HOLD = typer.Option(None, "--hold-scales-from", metavar="BUNDLE",
                     help="Keep the int8 scales of this bundle where they lose no accuracy, so that boards get a smaller delta.")
_JSON = typer.Option(False, "--json", help="Print JSON.")

_STAGES = {
    "read": "read model and data", "prepare": "prepare (opset, shapes, folding)", "reference": "score the reference",
    "calibrate": "calibrate", "sensitivity": "noise by layer", "int8": "search int8", "score": "score every candidate",
    "write": "write the bundle", "latency": "time every candidate",
}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("build")(build)


def build(
    model: str = _MODEL,
    data: str = _DATA,
    name: str = typer.Option(..., help="The model's name in the fleet."),
    version: str = typer.Option(..., help="Its version; a published version never changes."),
    target: list[str] = _TARGETS,
    out: Path = _OUT,
    preset: str = typer.Option("", help="Known pre-processing: ppocr-det, ppocr-cls, imagenet, yolo (any), yolov5, yolov8, yolo11, yolo26, "
                               "yolo-seg, yolo-pose, regions (a class map), tensors."),
    task: str = typer.Option("", help="What the output means: detect-db, detect-yolo, segment, keypoints, classify or raw."),
    task_option: list[str] = _OPTIONS,
    labels: str = typer.Option("", help="Class labels, comma-separated, or @FILE with one a line."),
    shape: str = typer.Option("", help="Input shape, for example 1x3x480x640 (default: the model's own, for free axes the preset's)."),
    mean: str = typer.Option("", help="One or three numbers: tensor = (pixel * scale - mean) / std."),
    std: str = typer.Option("", help="One or three numbers."),
    scale: float = typer.Option(0.0, help="Factor on the 0..255 pixels (default: the preset's, 1/255)."),
    color: str = typer.Option("", help="Channel order of the tensor: rgb or bgr."),
    resize: str = typer.Option("", help="stretch or letterbox."),
    recipe: str = _RECIPE,
    max_drop: float | None = typer.Option(None, help="Largest accepted loss of accuracy, in points (default: the recipe's, else 0.5)."),
    percentile: float = typer.Option(99.99, min=90.0, max=100.0, help="Share of values that the int8 range covers, in percent."),
    calibration_images: int = typer.Option(32, min=1, max=4096, help="Images to calibrate with, evenly spaced over the data."),
    threads: int = typer.Option(0, min=0, max=1024, help="CPU threads for scoring and timing; 0 lets the runtime decide."),
    latency_rounds: int = typer.Option(3, min=0, max=100, help="Rounds of timing over all candidates; 0 skips timing."),
    cache: Path | None = _CACHE,
    parent: Path | None = _PARENT,
    hold_scales_from: Path | None = _HOLD,
    as_json: bool = _JSON,
) -> None:
    """Make every variant of a model, score each, refuse what loses too much, and write a bundle.

    Example:

        jetfleet build detector.onnx --data images --name detector --version 1.0.0 --target cpu-x86 --target orin-nano --out detector.bundle

        jetfleet build yolo11n.onnx --preset yolo11 --labels @coco.txt --data photos --name y --version 1 --target orin-nano --out y.bundle

        jetfleet build nets:resnet18 --recipe prune-ptq --preset imagenet --data parts --name p --version 1 --target orin-nx-16 --out p
    """
    from jetfleet_host.compress.intake.models import declared_by
    from jetfleet_host.compress.recipe import Job, Recipe, make_task, parse_options, parse_shape, parse_triple, with_quantize
    from jetfleet_host.compress.recipe_build import build_by_recipe, quantize_of
    from jetfleet_host.compress.recipe_file import RecipeFile
    from jetfleet_host.compress.recipe_shelf import read_recipe

    stages = read_recipe(recipe) if recipe else RecipeFile()
    overrides: dict[str, Any] = {}
    if mean:
        overrides["mean"] = parse_triple(mean, "--mean")
    if std:
        overrides["std"] = parse_triple(std, "--std")
    if scale:
        overrides["scale"] = scale
    if color:
        overrides["color"] = _one_of("--color", color, ("rgb", "bgr"))
    if resize:
        overrides["resize"] = _one_of("--resize", resize, ("stretch", "letterbox"))
    wanted = task or ("" if preset else "detect-db")
    spec, size = make_task(wanted, preset, shape=parse_shape(shape) if shape else None, labels=_labels(labels),
                           options=parse_options(task_option), overrides=overrides,
                           declared=None if shape else declared_by(model))
    asked = Recipe(name, version, tuple(dict.fromkeys(target)), spec, size, percentile=percentile,
                   max_drop=stages.max_drop if max_drop is None else max_drop, calibration_images=calibration_images, threads=threads,
                   latency_rounds=latency_rounds)
    asked = with_quantize(asked, quantize) if (quantize := quantize_of(stages)) else asked
    job = Job(Path(model), Path(data), out, cache or default_cache(), parent, hold_scales_from)
    with _progress() as step:
        made = build_by_recipe(model, data, job, asked, stages, step)
    if made is not None:
        _show_built(made, as_json)


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/jetfleet/build``, else ``~/.cache/jetfleet/build``."""
    import os

    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "jetfleet" / "build"


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, one a stage; nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    with Progress(TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
                  disable=not console.is_terminal) as bars:
        shown: dict[str, Any] = {}

        def step(stage: str, done: int, of: int) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(_STAGES.get(stage, stage), total=of)
            bars.update(shown[stage], completed=done, total=of)

        yield step


def _show_built(made: BuildReport, as_json: bool) -> None:
    from jetfleet_host import report as reports
    from jetfleet_host.build_record import record_of
    from jetfleet_host.bundles import open_bundle

    from .report import print_stages, print_table

    opened = open_bundle(made.bundle)
    record = record_of(opened)
    if as_json:
        shown = {**reports.as_json(opened, made.measurements, record=record), "path": str(made.bundle), "left_out": list(made.refused)}
        print(json.dumps(shown, indent=2))
        return
    if record is not None and record.floats is not None:
        print_stages(record.floats)
    print_table(opened, made.measurements, record)
    if made.refused:
        print(f"Left out of the bundle, because no runtime may use it: {', '.join(made.refused)}.")
    print(f"Wrote {made.bundle} ({made.manifest_digest}).")
    print(f"Next: jetfleet publish {made.bundle} --dir PROJECT")


def _labels(text: str) -> tuple[str, ...]:
    from jetfleet_contract.errors import InputError

    if not text.startswith("@"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    path = Path(text[1:])
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("build.labels", f"the label file {path} cannot be read: {error}", where=str(path),
                         remedy="give a text file with one label a line") from None


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    from jetfleet_contract.errors import InputError

    if value not in allowed:
        raise InputError("build.input", f"{option} {value[:40]!r} is unknown", remedy=f"use {' or '.join(allowed)}")
    return value
