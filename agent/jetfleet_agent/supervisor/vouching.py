"""A builder board's signature: the metadata of its class with what it built, signed with the board's own key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, table_of
from jetfleet_contract.delegations import MAX_TIMING_BYTES, engine_field, engine_path, timing_field
from jetfleet_contract.engines import engine_name, key_of, timing_name
from jetfleet_contract.errors import MalformedError

from .engine_ports import Giving
from .engine_work import EngineOrder

VOUCHED_S = 180 * 86_400.0


class Vouched(NamedTuple):
    """One blob that a builder signs for: where it is named, what it is, and its custom field (`engine_field`, `timing_field`)."""

    path: str
    blob: str
    size: int
    field: dict[str, object]


def given_for(uploads: Giving, device_class: str, order: EngineOrder, data: bytes, timings: Path | None) -> tuple[Vouched, ...]:
    """Offer the host what was built for it: the engine, then its timing cache unless that is too large to share."""
    key, subject, footing = key_of(order.passport), order.passport.subject, order.passport.footing
    engine = _offered(uploads, data, device_class, engine_name(key), order.command,
                      lambda info: engine_field(info, subject, order.passport))
    if timings is None or not 0 < timings.stat().st_size <= MAX_TIMING_BYTES:
        return (engine,)
    return engine, _offered(uploads, timings.read_bytes(), device_class, timing_name(footing), order.command,
                            lambda info: timing_field(info, subject, footing))


def _offered(uploads: Giving, data: bytes, device_class: str, name: str, command: int,
             field: Callable[[BlobInfo], dict[str, object]]) -> Vouched:
    tabled = table_of(data[at:at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    uploads.offer_bytes(data, "engine", name, command=command)
    return Vouched(engine_path(device_class, name), tabled.blob, len(data), field(tabled.info))


def vouch(known: bytes | None, fresh: Sequence[Vouched], *, keyid: str, sign: Callable[[bytes], bytes], now: float) -> bytes:
    """TUF targets metadata that follows on `known` (verified, None: there is none yet) and names these under their paths.

    Args:
        keyid: of the board's key in the class's delegation. sign: Ed25519 over bytes. now: seconds since 1970.

    Raises:
        MalformedError: `trust.malformed`.
    """
    from securesystemslib.signer import Signature
    from tuf.api.metadata import Metadata, TargetFile, Targets
    from tuf.api.serialization import DeserializationError

    try:
        old = Metadata[Targets].from_bytes(known).signed if known is not None else None
    except DeserializationError as error:
        raise MalformedError("trust.malformed", f"the class's metadata cannot be read: {error}") from None
    files = {one.path: TargetFile(one.size, {"sha256": one.blob}, one.path, {"custom": one.field}) for one in fresh}
    targets = {**(old.targets if old else {}), **files}
    until = datetime.fromtimestamp(int(now + VOUCHED_S), timezone.utc)
    metadata = Metadata(Targets(version=old.version + 1 if old else 1, expires=until, targets=targets))
    metadata.signatures[keyid] = Signature(keyid, sign(metadata.signed_bytes).hex())
    return metadata.to_bytes()
