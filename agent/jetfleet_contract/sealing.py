"""Sealed boxes: what only its receiver may read, and only where it was meant. Pure: curve and cipher come in from the two sides.

HPKE (RFC 9180), base mode, single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. HPKE's `info` binds a box to its board,
its purpose, its name and its version, so that a box cannot be used for another board, or put back after a newer one.
"""

from __future__ import annotations

import hashlib
import hmac

from .errors import MalformedError
from .messages import Message, encode
from .topics import check_name

_INFO = b"jetfleet/1 sealed "
MAX_SECRET_BYTES = 4096
TAG_BYTES = 16
KEY_BYTES = 32
NONCE_BYTES = 12
_VERSION = b"HPKE-v1"
_KEM = b"KEM\x00\x20"
_SUITE = b"HPKE\x00\x20\x00\x01\x00\x03"


class SealingContext(Message, frozen=True):
    """What a box is for. `version` grows with each secret of one name."""

    device: str
    purpose: str
    name: str
    version: int


class Sealed(Message, frozen=True):
    """`enc` is the sender's one-time X25519 key, `box` cipher text and tag."""

    enc: bytes
    box: bytes


def sealing_info(device: str, purpose: str, name: str, version: int) -> bytes:
    """The bytes that a box is bound to. MalformedError `name.bad`."""
    return _INFO + encode(SealingContext(check_name("device", device), purpose, check_name("secret", name), version))


def sealing_keys(shared: bytes, enc: bytes, receiver: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of the one message of a box (RFC 9180, sections 4.1 and 5.1).

    Args:
        shared: X25519's output, 32 bytes. enc, receiver: the two public keys. info: of `sealing_info`.
    """
    prk = _extract(_KEM, b"", b"eae_prk", shared)
    secret = _expand(_KEM, prk, b"shared_secret", enc + receiver, KEY_BYTES)
    context = b"\0" + _extract(_SUITE, b"", b"psk_id_hash", b"") + _extract(_SUITE, b"", b"info_hash", info)
    key = _extract(_SUITE, secret, b"secret", b"")
    return _expand(_SUITE, key, b"key", context, KEY_BYTES), _expand(_SUITE, key, b"base_nonce", context, NONCE_BYTES)


def box_text(sealed: Sealed) -> str:
    """The box as it travels: two hex words with a dot between."""
    return f"{sealed.enc.hex()}.{sealed.box.hex()}"


def box_from(text: str) -> Sealed:
    """Read a box. MalformedError `secret.box`."""
    enc, _, box = text.partition(".")
    try:
        sealed = Sealed(bytes.fromhex(enc), bytes.fromhex(box))
    except ValueError:
        sealed = Sealed(b"", b"")
    if len(sealed.enc) != KEY_BYTES or not TAG_BYTES < len(sealed.box) <= MAX_SECRET_BYTES + TAG_BYTES:
        raise MalformedError("secret.box", "this is no sealed box")
    return sealed


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.new(salt or bytes(32), _VERSION + suite + label + material, hashlib.sha256).digest()


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """One block of HKDF-Expand is enough: no output here is longer than SHA-256's."""
    labelled = length.to_bytes(2, "big") + _VERSION + suite + label + info
    return hmac.new(prk, labelled + b"\x01", hashlib.sha256).digest()[:length]
