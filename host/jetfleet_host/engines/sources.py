"""What engines are built from: the variants of a bundle, or one ONNX file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_host.bundles import digest_file, open_bundle
from jetfleet_host.engines.jobs import Span

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_BATCH = 4096


class Weights(msgspec.Struct, frozen=True):
    """One ONNX file. `subject` is the bundle's manifest (hex), or the file's own digest where there is no bundle; `size` is the input's
    (height, width) as the bundle has it, zeros elsewhere."""

    name: str
    path: Path
    digest: str
    subject: str
    precision: str = ""
    size: tuple[int, int] = (0, 0)


class Wish(msgspec.Struct, frozen=True):
    """What a user says of free axes: `batches` () or (smallest, usual, largest), `size` (height, width) or zeros."""

    batches: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)


class Profile(msgspec.Struct, frozen=True):
    """The input that an engine is built for: usual shape (N, C, H, W), batch sizes (smallest, usual, largest) or () when N is fixed."""

    shape: tuple[int, ...]
    batches: tuple[int, ...]
    spans: tuple[Span, ...]


def weights_of(source: Path, variants: tuple[str, ...]) -> tuple[Weights, ...]:
    """The chosen variants of a bundle folder, all when none is named; or the one file.

    Raises:
        InputError: `engine.source`, `engine.variant`, and those of `open_bundle`.
    """
    if source.is_dir():
        bundle = open_bundle(source)
        known = {variant.name: variant for variant in bundle.spec.variants}
        for name in variants:
            if name not in known:
                raise InputError("engine.variant", f"the bundle has no variant {name[:80]!r}", where=str(source),
                                 remedy=f"there are {', '.join(known)}")
        size = (bundle.spec.task.input.height, bundle.spec.task.input.width)
        subject = bundle.manifest_digest[7:]
        return tuple(Weights(name, bundle.blob_path(one.digest), one.digest[7:], subject, one.precision, size)
                     for name, one in known.items() if not variants or name in variants)
    if not source.is_file():
        raise InputError("engine.source", f"there is no bundle or ONNX file {source}", where=str(source), remedy="check the path")
    if variants:
        raise InputError("engine.variant", "one ONNX file has no variants", where="--variant", remedy="leave --variant out")
    digest = digest_file(source)[7:]
    return (Weights("model", source, digest, digest),)


def profile_of(weights: Weights, model: ModelProto, wish: Wish) -> Profile:
    """The shapes for the model's image input.

    Raises:
        IncompatibleError: `engine.input` unless it has one input of four axes.
        InputError: `engine.profile` for a free axis without a size, or a batch for a model whose batch is fixed.
    """
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    axes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(axes) != 4:
        raise IncompatibleError("engine.input", f"{weights.name} has {len(inputs)} inputs, it needs one image of four axes (N, C, H, W)",
                                where=str(weights.path), remedy="export the model with one image as its input")
    batches, given = wish.batches, wish.size if all(wish.size) else weights.size
    shape = [axes[0], axes[1], axes[2] or given[0], axes[3] or given[1]]
    if axes[0] and batches:
        raise InputError("engine.profile", f"the batch of {weights.name} is fixed at {axes[0]}", where="--batch",
                         remedy="leave --batch out, or export the model with a free batch axis")
    if not shape[0] and not batches and all(weights.size):
        shape[0] = 1  # as boards run a bundle: a frame at a time
    if not all(shape[1:]) or not (shape[0] or batches):
        raise InputError("engine.profile", f"input {inputs[0].name} of {weights.name} has free axes and no profile",
                         where=str(weights.path), remedy="give --batch MIN,USUAL,MAX, and --size HxW where height and width are free too")
    _sane(batches)
    if all(axes):
        return Profile(tuple(shape), (), ())
    smallest, usual, largest = batches or (shape[0],) * 3
    span = Span(inputs[0].name, *((count, *shape[1:]) for count in (smallest, usual, largest)))
    return Profile((usual, *shape[1:]), batches, (span,))


def precision_of(weights: Weights, model: ModelProto) -> str:
    """A bundle's word for it, else what the weights are: int8 with Q/DQ nodes, fp16 when most bytes are, fp32."""
    if weights.precision:
        return weights.precision
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return "int8"
    bits = {10: 16, 1: 32}
    counts = {kind: sum(math.prod(tensor.dims) * size for tensor in model.graph.initializer if tensor.data_type == kind)
              for kind, size in bits.items()}
    return "fp16" if counts[10] > counts[1] else "fp32"


def _sane(batches: tuple[int, ...]) -> None:
    if batches and not (len(batches) == 3 and 1 <= batches[0] <= batches[1] <= batches[2] <= MAX_BATCH):
        raise InputError("engine.profile", f"batches {', '.join(map(str, batches))} are not three rising numbers from 1 to {MAX_BATCH}",
                         where="--batch", remedy="for example --batch 1,4,8")
