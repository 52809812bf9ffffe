"""A builder board's signature: the metadata of its class with what it built, signed with the board's own key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from jetfleet_contract.errors import MalformedError

VOUCHED_S = 180 * 86_400.0


class Vouched(NamedTuple):
    """One blob that a builder signs for: where it is named, what it is, and its custom field (`engine_field`, `timing_field`)."""

    path: str
    blob: str
    size: int
    field: dict[str, object]


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
