"""The bundle: an immutable OCI image layout that carries one model in all its variants.

The manifest is an OCI image manifest whose config and weights use the CNCF ModelPack media types, so that any
registry tool can carry it. jetfleet's own layers have `application/vnd.jetfleet.*` types:

    model spec    task, input, variants          (`ModelSpec`, one)
    evaluation    accuracy, size, latency rows   (`Evaluation`, one)
    probe         golden inputs and outputs      (`ProbeSet` index plus PNG layers)
    weights       one ONNX file a variant

Same inputs, same bytes: JSON with sorted keys, no time stamps. What comes later (engines, deltas, measurements)
are referrers: manifests whose `subject` is this bundle's descriptor.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from .drift import DriftReference
from .errors import MalformedError
from .messages import MAX_MESSAGE_BYTES, Message, decode
from .predictions import Detection, trim
from .topics import check_name

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
MODEL_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
SPEC = "application/vnd.jetfleet.model-spec.v1+json"
EVALUATION = "application/vnd.jetfleet.evaluation.v1+json"
PROBE_INDEX = "application/vnd.jetfleet.probe.v1+json"
PROBE_IMAGE = "application/vnd.jetfleet.probe.v1.png"
LICENCE = "application/vnd.cncf.model.doc.v1.raw"

MAX_WORLDS = 8

FILEPATH = "org.cncf.model.filepath"

MAX_LAYERS = 256
MAX_BLOB_BYTES = 4 << 30


def digest_of(data: bytes) -> str:
    """``sha256:`` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An OCI content descriptor. Unknown fields are ignored, as the OCI specification asks."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str = ""

    @property
    def blob(self) -> str:
        """The 64 hex digits that name the blob in topics and stores."""
        return self.digest.partition(":")[2]


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An OCI image manifest, version 2."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}
    subject: Descriptor | None = None

    def only(self, media_type: str) -> Descriptor:
        """The one layer of that type.

        Raises:
            MalformedError: `bundle.layers` when there is none or more than one.
        """
        found = [layer for layer in self.layers if layer.media_type == media_type]
        if len(found) != 1:
            raise MalformedError("bundle.layers", f"the bundle has {len(found)} layers of type {media_type}, it needs 1")
        return found[0]

    def layer(self, digest: str) -> Descriptor:
        """The layer with that digest, or MalformedError `bundle.layers`."""
        for candidate in self.layers:
            if candidate.digest == digest:
                return candidate
        raise MalformedError("bundle.layers", f"the bundle has no layer {digest[:80]}")


class InputSpec(Message, frozen=True):
    """How a frame becomes the model's input tensor.

    ``tensor = (resize(frame_as_color) * scale - mean) / std``, NCHW float32, batch 1. `stretch` resizes to exactly
    width x height; `letterbox` keeps the aspect ratio, centres, and fills with `pad` (0..255). `input_scale`: of a model whose input is
    int8, which then gets ``round(tensor / input_scale)``; 0: its input is a float.
    """

    name: str
    width: int
    height: int
    color: Literal["rgb", "bgr"] = "bgr"
    resize: Literal["stretch", "letterbox"] = "stretch"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad: int = 114
    input_scale: float = 0.0


class TaskSpec(Message, frozen=True):
    """What the model's output means: task plug-in `kind` with its labels and options."""

    kind: str
    input: InputSpec
    labels: tuple[str, ...] = ()
    options: dict[str, float | str | bool] = {}


class Variant(Message, frozen=True):
    """One weight file. `layout`: plain, qdq-int8 (symmetric, TensorRT and OpenVINO), qdq-uint8 (its twin for ONNX Runtime x86), qdq-arm
    (the twin moved to signed bytes), qdq-uint8-narrow (7-bit weights, for x86 without VNNI), dynamic (scales found at run time).
    `precision` uint8 is of int8 files for CPU runtimes only."""

    name: str
    digest: str
    size: int
    precision: Literal["fp32", "fp16", "int8", "uint8"]
    layout: Literal["plain", "qdq-int8", "qdq-uint8", "qdq-arm", "qdq-uint8-narrow", "dynamic"] = "plain"
    detail: str = ""


class ModelSpec(Message, frozen=True):
    """Name, version, task and variants of a bundle. `targets` are the device classes it was prepared for; `reference` is what the reference
    model saw and said on the builder's images, which drift is judged against. `worlds` are the same of each set of images that these were
    joined from, where they were (a day and a night): a camera that shows one of them has not moved away."""

    name: str
    version: str
    task: TaskSpec
    variants: tuple[Variant, ...]
    targets: tuple[str, ...]
    reference: DriftReference | None = None
    worlds: Annotated[tuple[DriftReference, ...], msgspec.Meta(max_length=MAX_WORLDS)] = ()

    @property
    def references(self) -> tuple[DriftReference, ...]:
        """All that drift is judged against; empty for a bundle that was built without."""
        return () if self.reference is None else (self.reference, *self.worlds)

    def variant(self, name: str) -> Variant:
        """The variant of that name, or MalformedError `bundle.variant`."""
        for candidate in self.variants:
            if candidate.name == name:
                return candidate
        raise MalformedError("bundle.variant", f"the bundle has no variant {name[:80]!r}")


class EvaluationRow(Message, frozen=True):
    """One (variant, backend, execution precision): what it scored and where each number came from.

    `accuracy` is the task's metric against labels (or agreement with fp32 without labels), 0..1; `drop` is the
    reference's accuracy minus this one's, in points (100 x). `verdict` refused keeps the row, with its reason, but
    no board may pick it. Latencies are ms of the session alone, batch 1.
    """

    variant: str
    backend: str
    precision: str
    metric: str
    accuracy: float
    drop: float
    agreement: float
    samples: int
    latency_p50_ms: float
    latency_p99_ms: float
    size: int
    verdict: Literal["accepted", "refused"]
    reason: str
    origin: Literal["measured", "simulated"] = "measured"


class Evaluation(Message, frozen=True):
    """The builder's static evaluation. `machine` names where it was measured; `max_drop` is in points."""

    metric: str
    reference: str
    max_drop: float
    machine: str
    rows: tuple[EvaluationRow, ...]
    software: dict[str, str] = {}


class ProbeItem(Message, frozen=True):
    """One golden input (a PNG layer) and what the reference model (fp32) says of it."""

    image: str
    expected: tuple[Detection, ...]


class ProbeSet(Message, frozen=True):
    """Golden inputs and reference answers; a challenger must agree with them to `min_agreement`."""

    items: tuple[ProbeItem, ...]
    min_agreement: float = 0.9

    def to_tree(self) -> Any:
        tree = super().to_tree()
        for item in tree["items"]:
            trim(item["expected"])
        return tree


MAX_SPEC_BYTES = 4 * MAX_MESSAGE_BYTES


def decode_manifest(data: bytes) -> Manifest:
    """Decode and check a bundle's manifest: counts, sizes and digests within bounds, no two layers alike.

    Raises:
        MalformedError: `message.*` or `bundle.*`.
    """
    manifest = decode(data, Manifest, limit=MAX_SPEC_BYTES)
    if manifest.schema_version != 2 or manifest.media_type != OCI_MANIFEST:
        raise MalformedError("bundle.manifest", "not an OCI image manifest of schema version 2")
    if manifest.artifact_type != MODEL_ARTIFACT:
        raise MalformedError("bundle.type", f"artifact type {manifest.artifact_type[:80]!r} is no model bundle")
    if len(manifest.layers) > MAX_LAYERS:
        raise MalformedError("bundle.layers", f"{len(manifest.layers)} layers are over the limit of {MAX_LAYERS}")
    for descriptor in (manifest.config, *manifest.layers):
        check_descriptor(descriptor)
    digests = [layer.digest for layer in manifest.layers]
    if len(set(digests)) != len(digests):
        raise MalformedError("bundle.layers", "two layers have the same digest")
    return manifest


def check_descriptor(descriptor: Descriptor) -> None:
    """Digest is a lower-case sha256, size within bounds; else MalformedError `bundle.descriptor`."""
    algorithm, _, value = descriptor.digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or value.strip("0123456789abcdef"):
        raise MalformedError("bundle.descriptor", f"digest {descriptor.digest[:80]!r} is not a sha256")
    if not 0 <= descriptor.size <= MAX_BLOB_BYTES:
        raise MalformedError("bundle.descriptor", f"size {descriptor.size} is out of bounds")


def check_contents(manifest: Manifest, spec: ModelSpec, evaluation: Evaluation, probe: ProbeSet) -> None:
    """The parts of a bundle belong together: every named file is a layer of the right type and size, and no other is there.

    Raises:
        MalformedError: `name.bad`, `bundle.variant` (names twice, or an evaluation of none of them), `bundle.layers` (a named
            file is no layer, or of another size or type), `bundle.extra` (a layer that nothing names), `bundle.path`.
    """
    check_name("model", spec.name)
    check_name("version", spec.version)
    names = [check_name("variant", variant.name) for variant in spec.variants]
    if not names or len(set(names)) != len(names):
        raise MalformedError("bundle.variant", "the bundle has no variant, or two of one name")
    for row in evaluation.rows:
        if row.verdict == "accepted":  # a refused row may name a variant whose weights were left out for that
            spec.variant(row.variant)
    weights = {variant.digest: variant.size for variant in spec.variants}
    images = {item.image for item in probe.items}
    for digest, size in weights.items():
        layer = manifest.layer(digest)
        if layer.media_type != WEIGHT or layer.size != size:
            raise MalformedError("bundle.layers", f"layer {digest} is not the weight file that the model spec names")
    for digest in images:
        if manifest.layer(digest).media_type != PROBE_IMAGE:
            raise MalformedError("bundle.layers", f"layer {digest} is not the probe image that the probe set names")
    for layer in manifest.layers:
        _check_expected(layer, weights.keys() | images)


def _check_expected(layer: Descriptor, named: set[str]) -> None:
    """A layer has a type we know, a harmless file path, and is named by somebody."""
    path = layer.annotations.get(FILEPATH, "")
    if path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/") or len(path) > 255:
        raise MalformedError("bundle.path", f"layer {layer.digest} wants to be stored as {path[:80]!r}")
    if layer.media_type in (SPEC, EVALUATION, PROBE_INDEX, LICENCE):
        return
    if layer.media_type not in (WEIGHT, PROBE_IMAGE):
        raise MalformedError("bundle.extra", f"layer {layer.digest} has the unknown type {layer.media_type[:80]!r}")
    if layer.digest not in named:
        raise MalformedError("bundle.extra", f"layer {layer.digest} is named by neither the model spec nor the probe set")
