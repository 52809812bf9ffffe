"""Where a model comes from, as annotations of its manifest: signed with it, the same for the same inputs, readable by any OCI tool.

The parent uses the annotations that OCI image-spec 1.1 has for base images; the rest is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from jetfleet_contract.errors import InputError

PARENT_DIGEST = "org.opencontainers.image.base.digest"
PARENT_NAME = "org.opencontainers.image.base.name"
SOURCE = "vnd.jetfleet.source.digest"
DATA = "vnd.jetfleet.data.digest"
RECIPE = "vnd.jetfleet.recipe.digest"
_READ_BYTES = 1 << 20


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """`parent` is NAME:VERSION of the bundle that this model was trained or compressed from, `parent_digest` its manifest's; digests are
    ``sha256:<hex>`` of the trained model's file, of the data that scored and calibrated it, and of the recipe. Empty: not told."""

    parent: str = ""
    parent_digest: str = ""
    source: str = ""
    data: str = ""
    recipe: str = ""


def told_by(model: Path, data_digest: str, recipe: msgspec.Struct, parent: tuple[str, str] = ("", "")) -> dict[str, str]:
    """The annotations of a build. `parent` is NAME:VERSION and manifest digest. InputError `model.unreadable`."""
    recipe_digest = hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest()
    found = {SOURCE: f"sha256:{_digest(model)}", DATA: f"sha256:{data_digest}", RECIPE: f"sha256:{recipe_digest}",
             PARENT_NAME: parent[0], PARENT_DIGEST: parent[1]}
    return {key: value for key, value in found.items() if value}


def lineage_of(found: Mapping[str, str]) -> Lineage:
    """The lineage that a manifest's annotations tell."""
    return Lineage(*(found.get(key, "")[:200] for key in (PARENT_NAME, PARENT_DIGEST, SOURCE, DATA, RECIPE)))


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while part := stream.read(_READ_BYTES):
                hasher.update(part)
    except OSError as error:
        raise InputError("model.unreadable", f"the model {path} cannot be read: {error.strerror}", where=str(path),
                         remedy="give the path of the model file that was trained, readable for you") from None
    return hasher.hexdigest()
