"""The models of a project: what is published, where it comes from, what it is called, who runs it, what may go.

Signed metadata says which versions boards accept; the database holds what people call them (tags) and what was done with them (history).
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract.bundle import EVALUATION, MAX_SPEC_BYTES, Evaluation, EvaluationRow, ModelSpec, decode_manifest
from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.messages import Deployment, decode
from jetfleet_contract.topics import check_name
from jetfleet_contract.trust import BundleTarget

from .blob_use import referenced_blobs
from .lineage import Lineage, lineage_of
from .project import Project
from .publish import find_bundle, published, read_small, read_spec, withdraw
from .store import experiments
from .store.models import AppRow, Desired, ModelEvent, ModelTag

PRODUCTION = "production"
YOUNG_S = 3600.0
"""Blobs younger than this stay: `publish` copies them before it signs."""


class Use(msgspec.Struct, frozen=True):
    """A board that has a version: it runs it now (`runs`), or its deployment names it."""

    device: str
    app: str
    runs: bool


class Found(msgspec.Struct, frozen=True):
    """One published version with all that is known of it. `delivered_bytes` of its blobs; times in seconds since 1970."""

    name: str
    version: str
    bundle: str
    release: int
    size: int
    tags: tuple[str, ...]
    lineage: Lineage
    spec: ModelSpec
    evaluation: Evaluation
    uses: tuple[Use, ...]
    history: tuple[dict[str, Any], ...]


def resolve(project: Project, session: Session, text: str, *, where: str = "--model") -> BundleTarget:
    """The published bundle that ``NAME:VERSION`` or ``NAME@TAG`` means.

    Raises:
        InputError: `models.name`, `models.tag` (no such tag), `models.unknown` (not published).
    """
    name, at, tag = text.partition("@")
    if at:
        row = session.get(ModelTag, (name, tag))
        if row is None:
            known = session.scalars(select(ModelTag.tag).where(ModelTag.model == name).order_by(ModelTag.tag)).all()
            raise InputError("models.tag", f"model {name[:63]!r} has no tag {tag[:63]!r}", where=where,
                             remedy=f"it has: {', '.join(known) or 'none'}; set one with: jetfleet models tag {name}:VERSION {tag}")
        return find_bundle(project, name, row.version)
    name, colon, version = text.partition(":")
    if not colon or not version:
        raise InputError("models.name", f"{text[:80]!r} is no NAME:VERSION", where=where,
                         remedy="for instance detector:1, or detector@production")
    return find_bundle(project, name, version)


def tags_of(session: Session) -> dict[tuple[str, str], tuple[str, ...]]:
    """Tags by (model, version)."""
    found: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
    for row in session.scalars(select(ModelTag).order_by(ModelTag.tag)):
        found[row.model, row.version] += (row.tag,)
    return found


def show(project: Project, session: Session, target: BundleTarget) -> Found:
    """All about one version."""
    manifest = decode_manifest(read_small(project.blobs, target.manifest))
    evaluation = decode(read_small(project.blobs, manifest.only(EVALUATION).blob), Evaluation, limit=MAX_SPEC_BYTES)
    events = session.scalars(select(ModelEvent).where(ModelEvent.model == target.name, ModelEvent.version == target.version)
                             .order_by(ModelEvent.id.desc()).limit(20))
    return Found(target.name, target.version, target.manifest, target.release, sum(info.size for info in target.every().values()),
                 tags_of(session)[target.name, target.version], lineage_of(manifest.annotations), read_spec(project, target), evaluation,
                 uses_of(session, target.manifest), tuple({"at": e.at, "what": e.what, "detail": e.detail} for e in events))


def uses_of(session: Session, bundle: str) -> tuple[Use, ...]:
    """Boards that run a bundle or should."""
    found = {(row.device, row.app): Use(row.device, row.app, runs=True)
             for row in session.scalars(select(AppRow).where(AppRow.bundle == bundle))}
    for row in session.scalars(select(Desired)):
        for app in msgspec.json.decode(row.body, type=Deployment).apps:
            if app.bundle == bundle:
                found.setdefault((row.device, app.app), Use(row.device, app.app, runs=False))
    return tuple(use for _, use in sorted(found.items()))


def descent(project: Project, target: BundleTarget) -> list[str]:
    """The line of parents as NAME:VERSION, nearest first, as far as it is told; the last one may not be published any more."""
    by_digest = {other.manifest: other for other in published(project)}
    line: list[str] = []
    at: BundleTarget | None = target
    while at is not None and len(line) < 100:
        lineage = lineage_of(decode_manifest(read_small(project.blobs, at.manifest)).annotations)
        if not lineage.parent:
            break
        line.append(lineage.parent)
        at = by_digest.get(lineage.parent_digest.removeprefix("sha256:"))
    return line


# --- what people do with models ------------------------------------------------------------------------------------


def tag(session: Session, target: BundleTarget, name: str, now: float) -> str:
    """Point a tag to this version. The version that it pointed to before, or empty. InputError `models.tag`."""
    try:
        check_name("tag", name)
    except MalformedError as error:
        raise InputError("models.tag", error.what, remedy=error.remedy) from None
    row = session.get(ModelTag, (target.name, name))
    before = row.version if row else ""
    session.merge(ModelTag(model=target.name, tag=name, version=target.version, at=now))
    session.add(ModelEvent(model=target.name, version=target.version, what="tagged", detail=f"{name}, was {before or 'not set'}", at=now))
    return before


def untag(session: Session, model: str, name: str, now: float) -> None:
    """Forget a tag. InputError `models.tag` when there is none."""
    row = session.get(ModelTag, (model, name))
    if row is None:
        raise InputError("models.tag", f"model {model[:63]!r} has no tag {name[:63]!r}", remedy="jetfleet models list shows them")
    session.add(ModelEvent(model=model, version=row.version, what="untagged", detail=name, at=now))
    session.delete(row)
    session.flush()


def promote(project: Project, session: Session, target: BundleTarget, now: float) -> str:
    """Make this version the `production` one. The one before, or empty.

    Raises:
        InputError: `models.refused` when the signed evaluation accepts no candidate that it has weights for.
    """
    found = show(project, session, target)
    shipped = {variant.name for variant in found.spec.variants}
    if not any(row.verdict == "accepted" and row.variant in shipped for row in found.evaluation.rows):
        raise InputError("models.refused", f"no variant of {target.name}:{target.version} was accepted by its evaluation",
                         remedy=f"see: jetfleet models show {target.name}:{target.version}")
    before = tag(session, target, PRODUCTION, now)
    session.add(ModelEvent(model=target.name, version=target.version, what="promoted", detail=f"after {before or 'none'}", at=now))
    return before


def retire(project: Project, session: Session, target: BundleTarget, now: float) -> None:
    """Take a version out of the signed targets, so that no board accepts it any more.

    Raises:
        InputError: `models.in-use` while a board runs it or should, it is tagged, or an experiment compares it.
    """
    name = f"{target.name}:{target.version}"
    uses, tags = uses_of(session, target.manifest), tags_of(session)[target.name, target.version]
    compared = [state.plan.id for state in experiments.active(session) if target.manifest in (state.plan.a.bundle, state.plan.b.bundle)]
    reasons = [f"board {uses[0].device} and {len(uses) - 1} more have it"] if uses else []
    reasons += [f"it is tagged {', '.join(tags)}"] if tags else []
    reasons += [f"experiment {compared[0]} compares it"] if compared else []
    if reasons:
        raise InputError("models.in-use", f"{name} cannot be retired: {'; '.join(reasons)}",
                         remedy="roll out another version first, untag it, or end the experiment")
    session.add(ModelEvent(model=target.name, version=target.version, what="retired", at=now))
    session.flush()
    withdraw(project, target.name, target.version)


def unused_blobs(project: Project, now: float | None = None) -> dict[Path, int]:
    """Files of the blob folder that no signed target leads to, with their sizes; the youngest are left out."""
    kept = referenced_blobs(project)
    moment = time.time() if now is None else now
    found = {}
    for path in sorted(project.blobs.folder.iterdir()):
        status = path.stat()
        if path.is_file() and not path.name.startswith(".") and path.name not in kept and moment - status.st_mtime > YOUNG_S:
            found[path] = status.st_size
    return found


# --- comparing -----------------------------------------------------------------------------------------------------


class Row(msgspec.Struct, frozen=True):
    """One line of a comparison: the same thing of both versions."""

    what: str
    a: str
    b: str

    @property
    def same(self) -> bool:
        return self.a == self.b


def diff(a: Found, b: Found) -> list[Row]:
    """What differs between two versions, and what stays: task, input, variants, accuracy, lineage."""
    rows = [Row("task", a.spec.task.kind, b.spec.task.kind), Row("input", _input(a.spec), _input(b.spec)),
            Row("labels", _labels(a.spec), _labels(b.spec)), Row("targets", " ".join(a.spec.targets), " ".join(b.spec.targets)),
            Row("bundle MB", f"{a.size / 1e6:.2f}", f"{b.size / 1e6:.2f}"), Row("source", a.lineage.source[7:19], b.lineage.source[7:19]),
            Row("data", a.lineage.data[7:19], b.lineage.data[7:19]), Row("recipe", a.lineage.recipe[7:19], b.lineage.recipe[7:19])]
    variants = sorted({variant.name for found in (a, b) for variant in found.spec.variants})
    rows += [Row(f"variant {name}", _variant(a.spec, name), _variant(b.spec, name)) for name in variants]
    ways = sorted({_way(row) for found in (a, b) for row in found.evaluation.rows})
    return rows + [Row(way, _score(a.evaluation, way), _score(b.evaluation, way)) for way in ways]


def _input(spec: ModelSpec) -> str:
    i = spec.task.input
    return f"{i.width}x{i.height} {i.color} {i.resize}"


def _labels(spec: ModelSpec) -> str:
    labels = spec.task.labels
    return f"{len(labels)}: {', '.join(labels[:4])}{' ...' if len(labels) > 4 else ''}"


def _variant(spec: ModelSpec, name: str) -> str:
    found = next((variant for variant in spec.variants if variant.name == name), None)
    return f"{found.size / 1e6:.2f} MB {found.layout} {found.digest[7:15]}" if found else "-"


def _way(row: EvaluationRow) -> str:
    return f"{row.variant}@{row.backend}:{row.precision}"


def _score(evaluation: Evaluation, way: str) -> str:
    found = next((row for row in evaluation.rows if _way(row) == way), None)
    return f"{row_metric(found)} {found.verdict}" if found else "-"


def row_metric(row: EvaluationRow) -> str:
    """``f1 0.9435``."""
    return f"{row.metric} {row.accuracy:.4f}"
