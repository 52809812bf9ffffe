"""What the two sides of the trust chain agree on, without any cryptography: package, custom fields, envelopes.

The meta topic carries one retained package, so that a device never sees a new timestamp beside an old snapshot.
Every role's metadata stays the exact bytes that were signed. jetfleet adds signed fields to TUF's metadata
(specification 1.0, "custom" and unrecognised fields):

    timestamp   x-jetfleet = {"root": version of the root it belongs to, "signed": seconds since 1970}
    targets     x-jetfleet = {"deployment": [keys], "command": [keys]}; delegates to one role a device class, see `delegations`
    each target custom     = {"size", "table", "blobs": {hex: [size, chunk_size, table]}, "release", "chunk_size" of the manifest}

A target is named ``bundle/NAME/VERSION``; its hash is the manifest's. Beside it there may be ``delta/NAME/VERSION``: the
index of the deltas that lead to that version (see `deltas`), with an empty "blobs"; and ``kernels/INTERFACE`` (see `kernel_sets`).
Keys of envelopes are Ed25519 public keys in hex and are their own key ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec

from .chunks import CHUNK_BYTES, BlobInfo, top_page
from .errors import MalformedError, UntrustedError
from .messages import MAX_APPS, MAX_MESSAGE_BYTES, Deployment, Envelope, Message, Signature, decode, encode, signed_bytes
from .topics import check_blob, check_name

FIELD = "x-jetfleet"
MAX_PACKAGE_BYTES = 100_000
MAX_ROOTS = 256
MAX_BLOBS_A_TARGET = 300
MAX_SIGNATURES = 16
MAX_KEYS = 16
MAX_SOURCES = 32

T = TypeVar("T", bound=msgspec.Struct)


class MetaPackage(Message, frozen=True):
    """The retained package: the root chain in rising order, then one of each."""

    root: tuple[msgspec.Raw, ...]
    timestamp: msgspec.Raw
    snapshot: msgspec.Raw
    targets: msgspec.Raw


class TimestampField(msgspec.Struct, frozen=True):
    """What a timestamp says besides TUF's fields. `signed` floors the clock of boards that have none."""

    root: int
    signed: int


class SigningKeys(msgspec.Struct, frozen=True):
    """Who may sign deployments and commands, named by the targets role, so that they rotate without touching root."""

    deployment: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


class TargetField(msgspec.Struct, frozen=True, omit_defaults=True):
    """A target's custom field: the manifest's own size and table, and every other blob of the bundle. `release` counts the publications of
    one model name, so that older and newer do not depend on how versions are spelled; 0 in targets made before it existed.
    `chunk_size` is the manifest's."""

    size: int
    table: str
    blobs: dict[str, tuple[int, int, str]]
    release: int = 0
    chunk_size: int = CHUNK_BYTES


class BundleTarget(msgspec.Struct, frozen=True):
    """A bundle that the targets role vouches for. `manifest` is its manifest's blob, `blobs` all others."""

    name: str
    version: str
    manifest: str
    info: BlobInfo
    blobs: dict[str, BlobInfo]
    release: int = 0

    def every(self) -> dict[str, BlobInfo]:
        """Manifest and all other blobs."""
        return {self.manifest: self.info, **self.blobs}


class DeltaTarget(msgspec.Struct, frozen=True):
    """The signed index of the deltas that lead to one published version: its blob, and how that is fetched."""

    name: str
    version: str
    index: str
    info: BlobInfo


def decode_package(data: bytes) -> MetaPackage:
    """Decode a package and check its bounds; nothing in it is trusted yet.

    Raises:
        MalformedError: `message.*`, `trust.roots`.
    """
    package = decode(data, MetaPackage, limit=MAX_PACKAGE_BYTES)
    if not 1 <= len(package.root) <= MAX_ROOTS:
        raise MalformedError("trust.roots", f"{len(package.root)} roots are not within 1..{MAX_ROOTS}")
    return package


def encode_package(package: MetaPackage) -> bytes:
    """The package's JSON; each role's bytes stay as they were signed."""
    return msgspec.json.encode(package)


def target_path(name: str, version: str) -> str:
    return f"bundle/{check_name('model', name)}/{check_name('version', version)}"


def delta_path(name: str, version: str) -> str:
    return f"delta/{check_name('model', name)}/{check_name('version', version)}"


def target_field(info: BlobInfo, blobs: dict[str, BlobInfo], release: int = 0) -> dict[str, object]:
    """The custom field of a target, as plain JSON values."""
    packed = {blob: (b.size, b.chunk_size, b.table) for blob, b in blobs.items()}
    built: dict[str, object] = msgspec.to_builtins(TargetField(info.size, info.table, packed, release, info.chunk_size))
    return built


def read_target(path: str, manifest: str, custom: object) -> BundleTarget:
    """Turn a verified target into a BundleTarget; sizes, tables and names within bounds.

    Args:
        path: the target's path. manifest: its SHA-256 in hex. custom: its custom field.

    Raises:
        MalformedError: `trust.target`, `name.bad`, `blob.*`, `table.bad`.
    """
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != "bundle":
        raise MalformedError("trust.target", f"target {path[:120]!r} is no bundle")
    field = read_field(custom, TargetField, f"target {path[:120]}")
    if len(field.blobs) > MAX_BLOBS_A_TARGET:
        raise MalformedError("trust.target", f"target {path} has {len(field.blobs)} blobs, over the limit of {MAX_BLOBS_A_TARGET}")
    if not 0 <= field.release < 1 << 31:
        raise MalformedError("trust.target", f"target {path} has release {field.release}, out of bounds")
    info, blobs = blobs_of_field(field)
    return BundleTarget(check_name("model", parts[1]), check_name("version", parts[2]), check_blob(manifest), info, blobs,
                        field.release)


def read_delta_target(path: str, index: str, custom: object) -> DeltaTarget:
    """Turn a verified target below ``delta/`` into a DeltaTarget.

    Raises:
        MalformedError: `trust.target`, `name.bad`, `blob.*`, `table.bad`.
    """
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != "delta":
        raise MalformedError("trust.target", f"target {path[:120]!r} is no index of deltas")
    field = read_field(custom, TargetField, f"target {path[:120]}")
    if field.blobs:
        raise MalformedError("trust.target", f"target {path[:120]} names blobs, which an index of deltas does in its own bytes")
    info = _info(field.size, field.chunk_size, field.table)
    return DeltaTarget(check_name("model", parts[1]), check_name("version", parts[2]), check_blob(index), info)


def blobs_of_field(field: TargetField) -> tuple[BlobInfo, dict[str, BlobInfo]]:
    """How the target's own blob and all others are fetched. MalformedError `blob.*`, `table.bad`."""
    return _info(field.size, field.chunk_size, field.table), {check_blob(blob): _info(*packed) for blob, packed in field.blobs.items()}


def _info(size: int, chunk_size: int, table: str) -> BlobInfo:
    info = BlobInfo(size, chunk_size, check_blob(table) if table else "")
    top_page(info)
    return info


def read_keys(field: object) -> SigningKeys:
    """The signing keys of verified targets metadata. MalformedError `trust.target`, `blob.bad`."""
    keys = read_field(field, SigningKeys, "targets")
    if len(keys.deployment) > MAX_KEYS or len(keys.command) > MAX_KEYS:
        raise MalformedError("trust.target", f"more than {MAX_KEYS} keys of one kind")
    for key in (*keys.deployment, *keys.command):
        check_blob(key)
    return keys


def read_timestamp(field: object) -> TimestampField:
    """jetfleet's field of a timestamp, times before the year 2514. MalformedError `trust.target`."""
    read = read_field(field, TimestampField, "timestamp")
    if not (0 < read.signed < 1 << 34 and 0 < read.root < 1 << 31):
        raise MalformedError("trust.target", "timestamp: jetfleet's field is out of bounds")
    return read


def read_field(value: object, kind: type[T], where: str) -> T:
    """A field of jetfleet's in verified metadata; `where` is what the error names. MalformedError `trust.target`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise MalformedError("trust.target", f"{where}: jetfleet's field is wrong: {error}") from None


def check_deployment(deployment: Deployment) -> Deployment:
    """Names fit for topics and paths, counts within bounds, apps fed by each other without a circle.

    Raises:
        MalformedError: `name.bad`, `blob.bad`, `deployment.apps`, `deployment.input`, `deployment.sources`.
    """
    check_name("device", deployment.device)
    if deployment.receiver:
        check_blob(deployment.receiver)
    feeds = {check_name("app", app.app): app.input_from for app in deployment.apps}
    if len(deployment.apps) > MAX_APPS or len(feeds) != len(deployment.apps):
        raise MalformedError("deployment.apps", f"{len(deployment.apps)} apps are over the limit of {MAX_APPS}, or two have one name")
    for app in deployment.apps:
        check_blob(app.bundle)
        check_name("model", app.name)
        check_name("version", app.version)
        names = [check_name("source", source.name) for source in app.sources]
        if len(names) > MAX_SOURCES or len(set(names)) != len(names):
            raise MalformedError("deployment.sources", f"app {app.app} has over {MAX_SOURCES} sources, or two of one name")
        _check_feed(app.app, feeds)
    return deployment


def _check_feed(app: str, feeds: dict[str, str]) -> None:
    at = app
    for _ in range(len(feeds)):
        at = feeds[at]
        if not at:
            return
        if at not in feeds:
            raise MalformedError("deployment.input", f"app {app} is fed by {at[:63]!r}, which is not in the deployment")
    raise MalformedError("deployment.input", f"app {app} is fed by itself in a circle")


# --- envelopes ---------------------------------------------------------------------------------------------


def message_digest(message: msgspec.Struct) -> str:
    """SHA-256 in hex of a message's canonical bytes: tells two bodies of one `seq` apart, whoever signed them.

    Decoded once more first, so that a whole number in a float field counts as what the receiver sees.
    """
    return hashlib.sha256(encode(decode(encode(message), type(message)))).hexdigest()


def seal(kind: str, message: msgspec.Struct, key: str, sign: Callable[[bytes], bytes]) -> bytes:
    """Sign a message as `kind` with the private half of `key` (hex), and give the envelope's JSON."""
    body = encode(message)
    return encode(Envelope(kind, msgspec.Raw(body), (Signature(key, sign(signed_bytes(kind, body)).hex()),)))


def unseal(data: bytes, kind: str, message: type[T], keys: Collection[str], verify: Callable[[str, bytes, bytes], bool], *,
           limit: int = MAX_MESSAGE_BYTES) -> T:
    """Open an envelope: type, signature by one of `keys`, then the body. The body is not decoded before it is trusted.

    Args:
        keys: public keys in hex whose word counts. verify: ``(key, signature, data) -> bool``.

    Raises:
        MalformedError: `message.*`. UntrustedError: `trust.type`, `trust.unknown-key`, `trust.signature`.
    """
    envelope = decode(data, Envelope, limit=limit)
    if envelope.type != kind:
        raise UntrustedError("trust.type", f"this is a signed {envelope.type[:40]!r}, not a {kind}")
    if len(envelope.signatures) > MAX_SIGNATURES:
        raise MalformedError("message.bad", f"{len(envelope.signatures)} signatures are over the limit of {MAX_SIGNATURES}")
    known = [s for s in envelope.signatures if s.keyid in keys]
    if not known:
        raise UntrustedError("trust.unknown-key", f"the {kind} is signed by none of the keys that may sign it",
                             remedy="was the key rotated or the project made anew? Then give the board the new root.json")
    body = bytes(envelope.signed)
    if not any(verify(s.keyid, _hex(s.sig), signed_bytes(kind, body)) for s in known):
        raise UntrustedError("trust.signature", f"the signature of the {kind} is wrong")
    return decode(body, message, limit=limit)


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text) if len(text) == 128 else b""
    except ValueError:
        return b""
