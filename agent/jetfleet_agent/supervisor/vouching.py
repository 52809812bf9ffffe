"""A builder board's signature: the metadata of its class with one engine more, signed with the board's own key."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import engine_field
from jetfleet_contract.engines import Passport
from jetfleet_contract.errors import MalformedError

VOUCHED_S = 180 * 86_400.0


def vouch(known: bytes | None, path: str, blob: str, info: BlobInfo, passport: Passport, *, keyid: str,
          sign: Callable[[bytes], bytes], now: float) -> bytes:
    """TUF targets metadata that follows on `known` (verified, None: there is none yet) and names the engine under `path`.

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
    file = TargetFile(info.size, {"sha256": blob}, path, {"custom": engine_field(info, passport.subject, passport)})
    targets = {**(old.targets if old else {}), path: file}
    until = datetime.fromtimestamp(int(now + VOUCHED_S), timezone.utc)
    metadata = Metadata(Targets(version=old.version + 1 if old else 1, expires=until, targets=targets))
    metadata.signatures[keyid] = Signature(keyid, sign(metadata.signed_bytes).hex())
    return metadata.to_bytes()
