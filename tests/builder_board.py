"""A builder board's side of class delegations, for tests: it signs what it has built with its own key, as TUF targets metadata."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import engine_field

SUBJECT = "5b" * 32


def engine(path: str, blob: str = "e0" * 32, *, size: int = 1000, custom: Any = None) -> TargetFile:
    field = {"custom": engine_field(BlobInfo(size), SUBJECT) if custom is None else custom}
    return TargetFile(size, {"sha256": blob}, path, field)


class Builder:
    """One builder's key and what it vouches for."""

    def __init__(self) -> None:
        self.signer = CryptoSigner.generate_ed25519()
        self.public: str = self.signer.public_key.keyval["public"]

    def sign(self, engines: Mapping[str, TargetFile], *, version: int = 1, expires: float = 0.0, also: tuple[Builder, ...] = ()) -> bytes:
        """Delegated metadata that names these engines; `also` sign it too."""
        until = datetime.fromtimestamp(expires or time.time() + 30 * 86_400, timezone.utc).replace(microsecond=0)
        metadata = Metadata(Targets(version=version, expires=until, targets=dict(engines)))
        for builder in (self, *also):
            metadata.sign(builder.signer, append=True)
        return metadata.to_bytes()

    def vouch(self, device_class: str, *names: str, version: int = 1) -> bytes:
        paths = [f"engine/{device_class}/{name}" for name in names]
        return self.sign({path: engine(path) for path in paths}, version=version)
