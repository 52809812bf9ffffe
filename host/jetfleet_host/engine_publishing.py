"""Engines that were built on the host for a class: signed with the host's own builder key, and published as a builder board's are.

The class has to delegate to that key (`jetfleet keys delegate CLASS --host`). The host has tried nothing, having no such GPU: every engine
begins uncertified, and a board of the class tries it before others run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract import engine_work as machine
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import engine_field, engine_path
from jetfleet_contract.engines import Passport, engine_name
from jetfleet_contract.errors import InputError, UntrustedError

from .blob_files import copy_over, cut_file
from .delegations import accept, delegations_of, uncertified_of, vouched
from .engines.records import RECORD, Record, read_record
from .keys import BUILDER
from .store import engines as rows

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from tuf.api.metadata import Targets

    from .project import Project

HOST = "host"
REPLACED = ("wanted", "building", "given-up")
VOUCHED_S = 180 * 86_400.0


class Published(msgspec.Struct, frozen=True):
    """One engine of a class. `fresh`: it was not among the class's before."""

    key: str
    passport: Passport
    blob: str
    info: BlobInfo
    fresh: bool


def host_key(project: Project) -> str:
    """The public half (hex) of the host's builder key, which is made when there is none."""
    return next(iter(project.keys.held(BUILDER)), "") or project.keys.create(BUILDER)


def publish_engines(project: Project, session: Session, device_class: str, folder: Path, now: float) -> list[Published]:
    """Sign every whole engine of `folder`, as `jetfleet engines build` left it, for boards of the class.

    Args:
        now: seconds since 1970.

    Raises:
        InputError: `engine.nothing` without an engine, `engine.not-builder` when the class does not delegate to the host,
            `engine.subject` for one that was not built from a published bundle, `keys.*`.
        UntrustedError: `engine.flipped`, and as `delegations.accept`. StorageError: `store.write`.
    """
    found = _records(folder)
    public = _vouching_key(project, device_class)
    known = vouched(project, device_class)
    before = {path: file.hashes.get("sha256", "") for path, file in known.targets.items()} if known is not None else {}
    works = {record.key: rows.find(session, device_class, record.key) for record, _ in found}
    done = [_taken_over(project, device_class, record, path, before, works[record.key]) for record, path in found]
    fresh = [one for one in done if one.fresh]
    if fresh:
        names = {engine_name(one.key) for one in fresh}
        accept(project, device_class, _signed(project, device_class, public, known, fresh, now),
               uncertified_of(project, device_class) | names)
    for one in done:
        if one.fresh or works[one.key] is None:  # the other: signed by a run that was cut off before the database knew
            _enter(session, device_class, one, now)
    return done


def _records(folder: Path) -> list[tuple[Record, Path]]:
    found = []
    for record_path in sorted(folder.glob(f"*{RECORD}")):
        for path in sorted(folder.glob(f"{record_path.stem}.*")):
            record = read_record(record_path, path) if path != record_path else None
            if record is not None:
                found.append((record, path))
    if not found:
        raise InputError("engine.nothing", f"there is no whole engine in {folder}", where="FOLDER",
                         remedy="make some: jetfleet engines build BUNDLE --with rtx-aot --out FOLDER")
    return found


def _vouching_key(project: Project, device_class: str) -> str:
    vouching = next((one.keys for one in delegations_of(project) if one.device_class == device_class), ())
    public = next((one for one in project.keys.held(BUILDER) if one in vouching), None)
    if public is None:
        raise InputError("engine.not-builder", f"class {device_class[:63]} does not take engines from this project", where="--class",
                         remedy=f"jetfleet keys delegate {device_class[:63]} --host, with --device for each of its builder boards")
    return public


def _taken_over(project: Project, device_class: str, record: Record, path: Path, before: Mapping[str, str],
                work: machine.Work | None) -> Published:
    """Two builds of one key differ in bytes: an engine that boards try or run is not exchanged for another build of the same."""
    passport, blob = msgspec.structs.replace(record.passport, builder=HOST), record.digest.removeprefix("sha256:")
    cut = project.settings.delivery.chunk_kb * 1024
    if not project.blobs.size(passport.subject):
        raise InputError("engine.subject", f"{path.name} was built from {passport.subject[:12]}, which is no bundle of this project",
                         where=str(path), remedy="publish its bundle first, and build from the bundle, not from a lone ONNX file")
    known = before.get(engine_path(device_class, engine_name(record.key)))
    if known is not None and known != blob and project.blobs.size(known) and work is not None and work.state not in REPLACED:
        return Published(record.key, passport, known, cut_file(project.blobs.path(known), cut).info, fresh=False)
    tabled = copy_over(project.blobs, path, blob, cut)
    if tabled.blob != blob:
        raise UntrustedError("engine.flipped", f"{path.name} changed while it was published", where=str(path), remedy="publish it again")
    return Published(record.key, passport, blob, tabled.info, blob != known)


def _signed(project: Project, device_class: str, public: str, known: Targets | None, fresh: list[Published], now: float) -> bytes:
    from tuf.api.metadata import Metadata, TargetFile, Targets

    targets = dict(known.targets) if known is not None else {}
    for one in fresh:
        path = engine_path(device_class, engine_name(one.key))
        custom = {"custom": engine_field(one.info, one.passport.subject, one.passport)}
        targets[path] = TargetFile(one.info.size, {"sha256": one.blob}, path, custom)
    until = datetime.fromtimestamp(int(now + VOUCHED_S), timezone.utc)
    metadata = Metadata(Targets(version=known.version + 1 if known is not None else 1, expires=until, targets=targets))
    metadata.sign(project.keys.signer(BUILDER, public))
    return metadata.to_bytes()


def _enter(session: Session, device_class: str, one: Published, now: float) -> None:
    """As when a builder board gave it; `serve` looks for a second board."""
    work = rows.find(session, device_class, one.key) or machine.Work(device_class, one.key, one.passport)
    after, _ = machine.step(work, machine.Built(HOST, one.blob, one.passport), (), now)
    rows.save(session, after, now)
