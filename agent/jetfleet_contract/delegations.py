"""Engines that a class's builder boards vouch for: names, paths and fields of the delegated metadata. Pure.

The targets role delegates to one role a device class, ``class-CLASS``, and for paths below ``engine/CLASS/`` alone, so that a builder's
key of one class says nothing about another. The role's metadata is TUF targets metadata. The snapshot names it by version, length and hash;
being large, it travels as a blob, whose chunk table stands in jetfleet's field of the snapshot's entry:

    snapshot meta "class-CLASS.json"   x-jetfleet = {"table": hex, or none for a blob of one chunk, "chunk_size", "uncertified": [names]}
    each engine target custom          = {"size", "table", "chunk_size", "subject": the bundle's manifest (hex), "passport"}
    a timing cache's custom            = the same with "timing", the footing that it was measured on, and no passport

An engine whose name stands in `uncertified` was tried by its builder alone: no board runs it unless the host asks, by a signed command.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .chunks import CHUNK_BYTES, BlobInfo, top_page
from .engines import Footing, Passport, check_passport, timing_name
from .errors import MalformedError
from .topics import check_blob, check_name

MAX_DELEGATED_BYTES = 4 << 20
MAX_ENGINES = 10_000
MAX_TIMING_BYTES = 32 << 20
"""Of the timing cache that a class's builders share: kernels and what they took, some hundred kB a model."""
MAX_CLASSES = 64
_PREFIX = "class-"


class DelegationField(msgspec.Struct, frozen=True, omit_defaults=True):
    """jetfleet's field of a delegated role's entry in the snapshot."""

    table: str = ""
    chunk_size: int = CHUNK_BYTES
    uncertified: tuple[str, ...] = ()


class EngineField(msgspec.Struct, frozen=True, omit_defaults=True):
    """An engine target's custom field: how its blob is fetched, the manifest of the bundle that it was built from, and its passport; or
    `timing`: it is no engine, but what the builders of that footing measured of kernels, and `subject` the bundle that was built last."""

    size: int
    subject: str
    table: str = ""
    chunk_size: int = CHUNK_BYTES
    passport: Passport | None = None
    timing: Footing | None = None


class DelegationBlob(msgspec.Struct, frozen=True):
    """The blob that a class's metadata is: to be fetched, hashed, and then verified."""

    device_class: str
    version: int
    blob: str
    info: BlobInfo
    uncertified: frozenset[str] = frozenset()


class EngineTarget(msgspec.Struct, frozen=True):
    """An engine that a builder of the class signed. `subject` is the manifest of the bundle that it belongs to; `passport` says what it is
    bound to (None in metadata of before there were passports: such an engine is run by nobody). `timing`: it is a timing cache of that
    footing, and no engine."""

    path: str
    blob: str
    info: BlobInfo
    subject: str
    passport: Passport | None = None
    timing: Footing | None = None


def role_of_class(device_class: str) -> str:
    """The delegated role's name; `name.bad` for a class that cannot be one."""
    return _PREFIX + check_name("class", device_class)


def class_of_role(role: str) -> str | None:
    """The class of a delegated role, None when the role is no class's. MalformedError `name.bad`."""
    return check_name("class", role.removeprefix(_PREFIX)) if role.startswith(_PREFIX) else None


def engine_paths(device_class: str) -> str:
    """The one path pattern that a class's role is delegated."""
    return f"engine/{check_name('class', device_class)}/*"


def engine_path(device_class: str, name: str) -> str:
    """``engine/CLASS/NAME``. `name` is the engine's key or any other name that fits a path."""
    return f"engine/{check_name('class', device_class)}/{check_name('engine', name)}"


def delegation_field(info: BlobInfo, uncertified: Iterable[str] = ()) -> dict[str, object]:
    """jetfleet's field of a snapshot's entry, as plain JSON values."""
    built: dict[str, object] = msgspec.to_builtins(DelegationField(info.table, info.chunk_size, tuple(sorted(uncertified))))
    return built


def engine_field(info: BlobInfo, subject: str, passport: Passport | None = None) -> dict[str, object]:
    """The custom field of an engine target, as plain JSON values."""
    built: dict[str, object] = msgspec.to_builtins(EngineField(info.size, check_blob(subject), info.table, info.chunk_size, passport))
    return built


def timing_field(info: BlobInfo, subject: str, footing: Footing) -> dict[str, object]:
    """The custom field of a timing cache, as plain JSON values."""
    field = EngineField(info.size, check_blob(subject), info.table, info.chunk_size, timing=footing)
    built: dict[str, object] = msgspec.to_builtins(field)
    return built


def read_delegation(device_class: str, version: int, length: object, blob: object, field: object) -> DelegationBlob:
    """A snapshot's entry of a class, within bounds. MalformedError `trust.target`, `blob.*`, `table.bad`."""
    try:
        read = msgspec.convert(field if field is not None else {}, DelegationField)
    except (msgspec.ValidationError, ValueError) as error:
        raise MalformedError("trust.target", f"class {device_class}: jetfleet's field is wrong: {error}") from None
    if type(length) is not int or not 0 < length <= MAX_DELEGATED_BYTES or not isinstance(blob, str):
        raise MalformedError("trust.target", f"class {device_class}: its metadata has no hash or length within {MAX_DELEGATED_BYTES} bytes")
    info = BlobInfo(length, read.chunk_size, check_blob(read.table) if read.table else "")
    top_page(info)
    if len(read.uncertified) > MAX_ENGINES:
        raise MalformedError("trust.target", f"class {device_class}: {len(read.uncertified)} engines are over the limit of {MAX_ENGINES}")
    uncertified = frozenset(check_name("engine", name) for name in read.uncertified)
    return DelegationBlob(device_class, version, check_blob(blob), info, uncertified)


def read_engine(device_class: str, path: str, blob: str, custom: object) -> EngineTarget:
    """Turn a verified delegated target into an EngineTarget.

    Raises:
        MalformedError: `trust.target` (also for a path outside the class), `name.bad`, `blob.*`, `table.bad`.
    """
    parts = path.split("/")
    if len(parts) != 3 or parts[:2] != ["engine", device_class]:
        raise MalformedError("trust.target", f"target {path[:120]!r} is no engine of class {device_class}")
    check_name("engine", parts[2])
    try:
        field = msgspec.convert(custom, EngineField)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise MalformedError("trust.target", f"target {path[:120]}: jetfleet's field is wrong: {error}") from None
    info = BlobInfo(field.size, field.chunk_size, check_blob(field.table) if field.table else "")
    top_page(info)
    passport = check_passport(field.passport) if field.passport is not None else None
    if passport is not None and passport.subject != field.subject:
        raise MalformedError("trust.target", f"target {path[:120]}: its passport is of another bundle")
    if field.timing is not None and (passport is not None or parts[2] != timing_name(field.timing) or field.size > MAX_TIMING_BYTES):
        raise MalformedError("trust.target", f"target {path[:120]} is no timing cache of what it says")
    return EngineTarget(path, check_blob(blob), info, check_blob(field.subject), passport, field.timing)
