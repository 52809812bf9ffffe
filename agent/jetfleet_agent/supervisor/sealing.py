"""Sealing to the host: the curve and the cipher of `jetfleet_contract.sealing`, from the board's side."""

from __future__ import annotations

from jetfleet_contract.errors import UntrustedError
from jetfleet_contract.sealing import Sealed, sealing_info, sealing_keys


def seal(receiver: str, data: bytes, *, device: str, purpose: str, name: str, version: int) -> Sealed:
    """Seal `data` to the X25519 key `receiver` (64 hex digits). No two boxes of the same bytes are alike.

    Raises:
        UntrustedError: `crop.receiver` when that is no usable key. MalformedError: `name.bad`.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(receiver))
        once = X25519PrivateKey.generate()
        shared = once.exchange(theirs)
    except ValueError:
        raise UntrustedError("crop.receiver", "the deployment names no key to which pictures can be sealed",
                             remedy="roll out again from a host that has one: jetfleet keys list") from None
    enc = once.public_key().public_bytes_raw()
    key, nonce = sealing_keys(shared, enc, theirs.public_bytes_raw(), sealing_info(device, purpose, name, version))
    return Sealed(enc, ChaCha20Poly1305(key).encrypt(nonce, data, None))
