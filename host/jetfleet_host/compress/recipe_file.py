"""A recipe file (``R.toml``): which stages a build goes through, in their order, each a frozen struct that names its kind.

Nothing here imports torch. `float_stage.py` says what a float stage is; the guard decides after each whether its result stays.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Epochs = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An unknown key is a typing error, never ignored."""


class Training(_Strict, frozen=True):
    """How stages that train do so. `precision`: bf16 means autocast with float32 master weights. `batch`: over all `devices`.
    `cache_mb`: decoded samples up to that size stay in memory; what is larger is read again by `workers` in each epoch. `task`: a factory
    ``package.module:function`` that gives loss and score of the user's own; empty for classifiers."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0.0)] = 1e-4
    batch: Count = 64
    workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    cache_mb: Annotated[int, msgspec.Meta(ge=0)] = 1024
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    devices: Count = 1
    gradient_compression: Literal["none", "fp16", "powersgd"] = "none"
    checkpoint_activations: bool = False
    label_smoothing: Share = 0.0
    profile: bool = False
    task: str = ""


class Tune(_Strict, frozen=True, tag_field="kind", tag="tune"):
    """Train the model on the labels for some epochs."""

    epochs: Epochs = 3
    learning_rate: float = 0.0


class Prune(_Strict, frozen=True, tag_field="kind", tag="prune"):
    """Structured pruning by dependency groups, in `steps` with `epochs` of tuning after each. `ratio`: share of channels to remove;
    `scope`: one ranking over all layers, or a ratio for each layer from a sensitivity scan; `round_to`: the target's channel tile."""

    ratio: Share = 0.3
    importance: Literal["l1", "taylor", "bn-scale"] = "l1"
    scope: Literal["global", "by-layer"] = "global"
    round_to: Count = 8
    steps: Count = 1
    epochs: Epochs = 1
    ignore: tuple[str, ...] = ()


class Sparsify(_Strict, frozen=True, tag_field="kind", tag="sparsify"):
    """Weights set to zero and kept there while tuning: the smallest `ratio` of them, or two of four along the input channels."""

    pattern: Literal["unstructured", "2:4"] = "2:4"
    ratio: Share = 0.5
    steps: Count = 1
    epochs: Epochs = 1


class Distil(_Strict, frozen=True, tag_field="kind", tag="distil"):
    """Train against a teacher: the model as it came in, or `teacher` (any input that a build takes). `student`: a factory
    ``package.module:function`` whose model takes this one's place; empty keeps the present one. `alpha`: weight of the teacher's
    loss; `hints`: weight of the feature loss over `pairs` of modules, each ``student.module=teacher.module``."""

    epochs: Epochs = 3
    temperature: Positive = 4.0
    alpha: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.7
    hints: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    pairs: tuple[str, ...] = ()
    teacher: str = ""
    student: str = ""


class Separate(_Strict, frozen=True, tag_field="kind", tag="separate"):
    """Replace dense convolutions by depthwise-separable ones, in `share` of them, those that save most first; then tune."""

    share: Share = 0.5
    epochs: Epochs = 3


class Qat(_Strict, frozen=True, tag_field="kind", tag="qat"):
    """Train with fake quantization where the twins will quantize; the scales that it learned go into the scale table. `observer`:
    scales of activations are learned with the weights, or follow the greatest magnitude."""

    epochs: Epochs = 2
    learning_rate: Positive = 1e-4
    observer: Literal["lsq", "ema"] = "lsq"


class Quantize(_Strict, frozen=True, tag_field="kind", tag="quantize"):
    """Post-training quantization: the last stage, on the exported graph. `dynamic` adds an ONNX Runtime file without calibration;
    `scales`: a calibration cache of TensorRT up to 10 whose scales are taken where they lose no accuracy."""

    calibrator: Literal["minmax", "percentile", "entropy", "mse"] = "percentile"
    percentile: Annotated[float, msgspec.Meta(ge=90.0, le=100.0)] = 99.99
    per_channel: bool = True
    equalize: bool = False
    correct_bias: bool = False
    dynamic: bool = False
    images: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    scales: str = ""


FloatStageConfig = Tune | Prune | Sparsify | Distil | Separate | Qat
StageConfig = FloatStageConfig | Quantize


class RecipeFile(_Strict, frozen=True):
    """A whole recipe. `max_drop`: points of the metric that all stages together may lose; `stage`: in the order in which they run."""

    name: str = ""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_drop: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 0.5
    training: Training = Training()
    stage: tuple[StageConfig, ...] = ()
