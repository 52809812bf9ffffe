"""What a build was asked for: one frozen struct, with the presets of known model families."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.errors import InputError

from .calibration import Calibrator
from .recipe_file import Quantize

Shape = tuple[int, int, int, int]


class Preset(msgspec.Struct, frozen=True):
    """Pre-processing, labels and shape of a model family, as its authors publish them."""

    task: str
    shape: Shape
    input: InputSpec
    labels: tuple[str, ...] = ()
    options: dict[str, float | str | bool] = {}


# PP-OCR: deploy/python of PaddleOCR 2.x; both models take BGR frames and (x / 255 - 0.5) / 0.5.
_HALF = (0.5, 0.5, 0.5)
_OCR = InputSpec("", 0, 0, "bgr", "stretch", 1.0 / 255.0, _HALF, _HALF)
# torchvision's ImageNet constants.
_IMAGENET = InputSpec("", 0, 0, "rgb", "stretch", 1.0 / 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Ultralytics: LetterBox (114) and RGB / 255; YOLOv5 to YOLO26 alike.
_YOLO = InputSpec("", 0, 0, "rgb", "letterbox", 1.0 / 255.0, pad=114)
_SQUARE = (1, 3, 640, 640)

PRESETS: Mapping[str, Preset] = {
    "ppocr-det": Preset("detect-db", (1, 3, 480, 640), _OCR, ("text",)),
    "ppocr-cls": Preset("classify", (1, 3, 48, 192), _OCR, ("0", "180")),
    "imagenet": Preset("classify", (1, 3, 224, 224), _IMAGENET),
    "yolo": Preset("detect-yolo", _SQUARE, _YOLO),
    "yolov5": Preset("detect-yolo", _SQUARE, _YOLO, options={"layout": "v5"}),
    "yolov8": Preset("detect-yolo", _SQUARE, _YOLO, options={"layout": "v8"}),
    "yolo11": Preset("detect-yolo", _SQUARE, _YOLO, options={"layout": "v8"}),
    "yolo26": Preset("detect-yolo", _SQUARE, _YOLO, options={"layout": "end2end"}),
    "yolo-seg": Preset("segment", _SQUARE, _YOLO),
    "yolo-pose": Preset("keypoints", _SQUARE, _YOLO),
    "regions": Preset("segment", (1, 3, 512, 512), _IMAGENET, options={"form": "regions"}),
    "tensors": Preset("raw", (1, 3, 224, 224), _IMAGENET),
}
# What a task means without a preset.
DEFAULT_PRESET = {"detect-db": "ppocr-det", "classify": "imagenet", "detect-yolo": "yolo", "segment": "yolo-seg", "keypoints": "yolo-pose",
                  "raw": "tensors"}


class Recipe(msgspec.Struct, frozen=True):
    """One build. `task.input.name` is filled from the model; `methods` come beside fp32. `percentile` is what the calibrator of that name
    clips at; the other fields of int8 are those of `recipe_file.Quantize`."""

    name: str
    version: str
    targets: tuple[str, ...]
    task: TaskSpec
    shape: Shape
    methods: tuple[Literal["fp16", "int8"], ...] = ("fp16", "int8")
    max_drop: float = 0.5
    percentile: float = 99.99
    calibrator: Calibrator = "percentile"
    per_channel: bool = True
    equalize: bool = False
    correct_bias: bool = False
    dynamic: bool = False
    scales: str = ""
    calibration_images: int = 32
    probe_images: int = 8
    threads: int = 0
    latency_rounds: int = 3
    latency_runs: int = 20


class Job(msgspec.Struct, frozen=True):
    """Where a build reads and writes. `parent` is the bundle that the model was trained from, for its lineage; `hold` one whose int8
    scales are kept where that loses no accuracy."""

    model: Path
    data: Path
    out: Path
    cache: Path
    parent: Path | None = None
    hold: Path | None = None


def with_quantize(recipe: Recipe, config: Quantize) -> Recipe:
    """The recipe with a quantize stage's settings."""
    return msgspec.structs.replace(recipe, percentile=config.percentile, calibrator=config.calibrator, per_channel=config.per_channel,
                                   equalize=config.equalize, correct_bias=config.correct_bias, dynamic=config.dynamic, scales=config.scales,
                                   calibration_images=config.images)


def make_task(kind: str, preset: str, *, shape: Shape | None, labels: tuple[str, ...], options: dict[str, float | str | bool],
              overrides: Mapping[str, Any], declared: Shape | None = None) -> tuple[TaskSpec, Shape]:
    """The task and input shape from a preset, with what the user gave on top.

    Args:
        overrides: fields of `InputSpec` that the user set (mean, std, scale, color, resize, pad).
        declared: the model's own input shape, 0 for a free axis; what it fixes goes before the preset's.

    Raises:
        InputError: `build.preset`, `build.task`, `build.shape`, `build.input`.
    """
    if preset and preset not in PRESETS:
        raise InputError("build.preset", f"there is no preset {preset[:40]!r}", remedy=f"use one of {', '.join(PRESETS)}")
    chosen = PRESETS.get(preset or DEFAULT_PRESET.get(kind, ""))
    if chosen is None:
        raise InputError("build.task", f"task {kind[:40]!r} has no default pre-processing",
                         remedy=f"use --task {' or '.join(DEFAULT_PRESET)}, or a --preset")
    if preset and kind and kind != chosen.task:
        raise InputError("build.task", f"preset {preset!r} is for task {chosen.task!r}, not {kind!r}", remedy="leave out --task")
    size = shape or (_filled(declared, chosen.shape) if declared else chosen.shape)
    if size[0] != 1 or size[1] != 3 or min(size) < 1 or max(size) > 16384:
        raise InputError("build.shape", f"the shape {'x'.join(map(str, size))} is not 1x3xHEIGHTxWIDTH",
                         remedy="boards run batch 1 on colour frames, for example --shape 1x3x480x640")
    given = msgspec.structs.replace(chosen.input, width=size[3], height=size[2], **overrides)
    if min(given.std) <= 0 or given.scale <= 0:
        raise InputError("build.input", "--std and --scale must be positive", remedy="see --help for the formula")
    return TaskSpec(kind or chosen.task, given, labels or chosen.labels, {**chosen.options, **options}), size


def _filled(declared: Shape, preset: Shape) -> Shape:
    n, c, h, w = (own or other for own, other in zip(declared, preset, strict=True))
    return n, c, h, w


def parse_shape(text: str) -> Shape:
    """``1x3x480x640`` as four numbers. InputError `build.shape`."""
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) for part in parts):
        raise InputError("build.shape", f"the shape {text[:60]!r} is not four numbers", remedy="for example --shape 1x3x480x640")
    n, c, h, w = (int(part) for part in parts)
    return n, c, h, w


def parse_options(pairs: list[str]) -> dict[str, float | str | bool]:
    """``k=v`` pairs; numbers, true and false are read as such. InputError `build.option`."""
    options: dict[str, float | str | bool] = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key:
            raise InputError("build.option", f"task option {pair[:60]!r} is not NAME=VALUE",
                             remedy="for example --task-option threshold=0.3")
        options[key] = _value(value)
    return options


def parse_triple(text: str, option: str) -> tuple[float, float, float]:
    """``0.5`` or ``0.485,0.456,0.406`` as three numbers. InputError `build.input`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise InputError("build.input", f"{option} {text[:60]!r} is not one or three numbers", remedy=f"for example {option} 0.5,0.5,0.5")
    first, second, third = values * 3 if len(values) == 1 else values
    return first, second, third


def _value(text: str) -> float | str | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text
