"""Certified engines as OCI referrers of the bundle that they were built from: a registry that gets the layout carries them along.

The manifest's `subject` is the bundle's manifest, its config the passport, its one layer the engine. A bundle itself never changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from jetfleet_contract.bundle import OCI_MANIFEST, Descriptor, Manifest
from jetfleet_contract.delegations import EngineTarget
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import encode

from .bundles import OpenBundle, add_blob
from .delegations import engines_of, uncertified_of
from .measurements import enter_referrer, subject_of
from .project import Project

ENGINE = "application/vnd.jetfleet.engine.v1"
PASSPORT = "application/vnd.jetfleet.engine.passport.v1+json"


def certified_engines(project: Project, bundle: OpenBundle) -> list[tuple[str, EngineTarget]]:
    """The engines of this bundle that boards other than their builder may run, with their class; only those whose bytes are here."""
    every = [(owner, target) for owner, target in engines_of(project)
             if target.subject == bundle.manifest_digest[7:] and target.passport is not None
             and project.blobs.size(target.blob) == target.info.size]
    held = {owner: uncertified_of(project, owner) for owner, _ in every}
    return [(owner, target) for owner, target in every if target.path.rpartition("/")[2] not in held[owner]]


def attach_engines(project: Project, bundle: OpenBundle, engines: Iterable[tuple[str, EngineTarget]]) -> list[str]:
    """Add these to the bundle's layout; again is fine. The digests of the referrers' manifests.

    Raises:
        InputError: `bundle.digest` when an engine's file is not what its builder signed, `engine.no-passport`.
    """
    return [_attach(project, bundle, owner, target) for owner, target in engines]


def _attach(project: Project, bundle: OpenBundle, device_class: str, target: EngineTarget) -> str:
    if target.passport is None:
        raise InputError("engine.no-passport", f"the engine {target.path} was signed without a passport", where=str(project.dir))
    digest = f"sha256:{target.blob}"
    layer = add_blob(bundle.path, ENGINE, project.blobs.path(target.blob), "engine.bin", expected=digest, size=target.info.size)
    config = add_blob(bundle.path, PASSPORT, encode(target.passport), "")
    notes = {"vnd.jetfleet.class": device_class, "vnd.jetfleet.builder": target.passport.builder}
    whole = Manifest(2, OCI_MANIFEST, ENGINE, config, (layer,), notes, subject_of(bundle))
    manifest = add_blob(bundle.path, OCI_MANIFEST, encode(whole), "")
    enter_referrer(bundle, Descriptor(OCI_MANIFEST, manifest.digest, manifest.size, artifact_type=ENGINE))
    return manifest.digest
