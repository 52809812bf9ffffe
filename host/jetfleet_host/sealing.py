"""Sealing a secret to one board: the curve and the cipher of `jetfleet_contract.sealing`. The plain text goes nowhere else."""

from __future__ import annotations

from jetfleet_contract.errors import InputError
from jetfleet_contract.sealing import MAX_SECRET_BYTES, Sealed, sealing_info, sealing_keys

PURPOSE = "secret"


def seal(receiver: str, secret: bytes, *, device: str, name: str, version: int) -> Sealed:
    """Seal `secret` to the board with this X25519 key (64 hex digits). No two boxes of one secret are alike.

    Raises:
        InputError: `secret.size`, `secret.key` (no key to seal to). MalformedError: `name.bad`.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise InputError("secret.size", f"a secret has 1 to {MAX_SECRET_BYTES} bytes", remedy="give a shorter one")
    try:
        theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(receiver))
        once = X25519PrivateKey.generate()
        shared = once.exchange(theirs)
    except ValueError:
        raise InputError("secret.key", f"board {device} has announced no key to seal to", where=device,
                         remedy="does its agent run, and is it new enough? See jetfleet device show") from None
    enc = once.public_key().public_bytes_raw()
    key, nonce = sealing_keys(shared, enc, theirs.public_bytes_raw(), sealing_info(device, PURPOSE, name, version))
    return Sealed(enc, ChaCha20Poly1305(key).encrypt(nonce, secret, None))
