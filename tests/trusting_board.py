"""A board's trust for tests of attacks: it holds metadata of a repository in memory, and `refused` shows that an attack left it there."""

from __future__ import annotations

import json

import pytest
from signed_repository import NOW

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.messages import Instant

MANIFEST = "ab" * 32


def at(wall: float = NOW, *, trusted: bool = True) -> Instant:
    return Instant(10.0, "boot", wall, trusted)


def refused(store: TrustStore, package: bytes, code: str, now: Instant | None = None) -> None:
    """`package` is refused with `code`, and what was trusted before still is: in memory and on disk."""
    before = store.versions
    with pytest.raises(JetfleetError) as caught:
        store.update(package, now or at())
    assert caught.value.code == code
    assert isinstance(caught.value, (UntrustedError, MalformedError))
    assert store.versions == before
    again = TrustStore(store._folder, store._pinned)
    assert again.versions == before


def unsigned(data: bytes) -> bytes:
    """Metadata without its signatures."""
    metadata = json.loads(data)
    metadata["signatures"] = []
    return json.dumps(metadata).encode()


def flip_signature(data: bytes) -> bytes:
    """Metadata with one wrong digit in a signature."""
    metadata = json.loads(data)
    sig = metadata["signatures"][0]["sig"]
    metadata["signatures"][0]["sig"] = ("0" if sig[0] != "0" else "1") + sig[1:]
    return json.dumps(metadata).encode()
