"""The board's own Ed25519 key: made on the board, never leaves it, signs what the board says.

This file is also the one place of the agent that touches the cryptography library for envelopes (RFC 8032).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_agent.durable import need_folder, write_file
from jetfleet_contract.errors import StorageError
from jetfleet_contract.trust import seal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

_FILE = "identity.pem"
_REMEDY = "restore the file, or remove it to get a new identity and enrol the board again at the host"


class Identity:
    """The private key of this board. Never printed: `repr` shows the public half."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_hex = key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"Identity({self.public_hex})"

    @classmethod
    def load_or_create(cls, folder: Path) -> Identity:
        """Load the key of `folder`, or make one there (mode 0600, durable before it is first used).

        Raises:
            StorageError: `identity.unreadable` (never replaced by itself: the host knows this board by its key), `store.write`.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        path = folder / _FILE
        if path.exists():
            stored = read_key(path, "the board's key", _REMEDY)
            if not isinstance(stored, Ed25519PrivateKey):
                raise StorageError("identity.unreadable", "the board's key is no Ed25519 key", where=str(path), remedy=_REMEDY)
            return cls(stored)
        need_folder(folder)
        key = Ed25519PrivateKey.generate()
        write_key(path, key)
        return cls(key)

    def sign(self, kind: str, message: msgspec.Struct) -> bytes:
        """The envelope (JSON) of `message`, signed as `kind` (`birth`, `report` ...)."""
        return seal(kind, message, self.public_hex, self._key.sign)

    def sign_bytes(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of TUF metadata that this board vouches for."""
        return self._key.sign(data)


def write_key(path: Path, key: Ed25519PrivateKey | X25519PrivateKey) -> None:
    """Keep a private key, readable for its owner only and durable. Raises StorageError `store.write`."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)


def read_key(path: Path, what: str, remedy: str) -> PrivateKeyTypes:
    """A private key of this board, of whatever kind; whoever else could read it cannot any more. `what` names it in errors.

    Raises:
        StorageError: `identity.unreadable`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError("identity.unreadable", f"{what} cannot be read ({type(error).__name__})", where=str(path),
                           remedy=remedy) from None


def verify_ed25519(key: str, signature: bytes, data: bytes) -> bool:
    """True when `signature` over `data` is by the public key `key` (64 hex digits)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
