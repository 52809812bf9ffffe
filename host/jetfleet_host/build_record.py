"""What a build went through, as an OCI referrer beside its bundle: the size after each stage, and the noise of each layer in int8."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jetfleet_contract.messages import Message

from .bundles import OpenBundle
from .compress.fused import NamedCount
from .compress.stage_records import FloatRun
from .compress.worth import ModelVerdict
from .measurements import attach_message, messages_of

BUILD_RECORD = "application/vnd.jetfleet.build-record.v1+json"


class StageSize(Message, frozen=True):
    """A stage and the bytes of the model file that it left."""

    stage: str
    size: int


class LayerLine(Message, frozen=True):
    """A layer by its first output: the relative error at the model's output when it alone is int8, and whether the twins run it so."""

    layer: str
    error: float
    int8: bool


class BuildRecord(Message, frozen=True):
    """Of the last build that wrote the bundle; layers in the graph's order. `floats`: the stages on the torch module, where there were.
    `graphs`: nodes and kernels before and after the clean-up; `worth`: whether int8 pays on a GPU at batch 1, by layer and in all."""

    stages: Annotated[tuple[StageSize, ...], Meta(max_length=256)] = ()
    layers: Annotated[tuple[LayerLine, ...], Meta(max_length=4096)] = ()
    floats: FloatRun | None = None
    graphs: Annotated[tuple[NamedCount, ...], Meta(max_length=256)] = ()
    worth: ModelVerdict | None = None


def attach_record(bundle: OpenBundle, record: BuildRecord) -> str:
    """Attach it; returns the digest of the referrer's manifest."""
    return attach_message(bundle, BUILD_RECORD, record)


def record_of(bundle: OpenBundle) -> BuildRecord | None:
    """The record of the last build, or None for a bundle that has none; raises as `measurements_of`."""
    found = messages_of(bundle, BUILD_RECORD, BuildRecord)
    return found[-1] if found else None
