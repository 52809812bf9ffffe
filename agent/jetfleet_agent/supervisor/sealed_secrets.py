"""What only this board may read: camera addresses with their passwords, sealed to a key that was made here and never leaves.

    sealing.pem     the board's X25519 key, mode 0600
    secrets.json    the sealed boxes as they came, mode 0600: opened each time a pipeline needs one, never stored open

A deployment says ``secret:NAME`` where the address would stand. The open text goes to the pipeline over the local socket, and nowhere else.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_agent.durable import need_folder, write_file
from jetfleet_contract.errors import InputError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Message
from jetfleet_contract.sealing import box_from, sealing_info, sealing_keys
from jetfleet_contract.topics import check_name

from .identity import read_key, write_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

log = logging.getLogger(__name__)

PURPOSE = "secret"
MAX_SECRETS = 64
MAX_VERSION = 1 << 53
_REMEDY = "remove the file to get a new key; the host then has to set the board's secrets again"


class _Kept(Message, frozen=True):
    """`box` is empty for a secret that was removed: its version stays, so that an old box cannot bring it back."""

    version: int
    box: str = ""


class SecretStore:
    """The secrets of one board. Used by the control thread only. `repr` shows no secret.

    Raises:
        StorageError: `identity.unreadable`, `store.write`.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._device = device
        need_folder(folder)
        self._key = _load_or_create(folder / "sealing.pem")
        self._kept = _load(folder / "secrets.json")
        self.public_hex = self._key.public_key().public_bytes_raw().hex()

    def accept(self, name: str, version: int, box: str) -> None:
        """Keep a sealed secret, or forget one (empty box), durably. It is opened once to see that it can be.

        Raises:
            MalformedError: `name.bad`, `secret.box`. StorageError: `store.write`.
            UntrustedError: `secret.version` (not newer than what is kept), `secret.sealed` (not sealed for this board, name and version),
                `secret.full`.
        """
        check_name("secret", name)
        known = self._kept.get(name)
        if not 0 < version < MAX_VERSION or (known is not None and version <= known.version):
            raise UntrustedError("secret.version", f"version {version} of secret {name} is not newer than what is kept")
        if known is None and len(self._kept) >= MAX_SECRETS:
            raise UntrustedError("secret.full", f"{MAX_SECRETS} secrets are kept already", remedy="remove one first")
        if box:
            self._open(name, version, box)
        kept = {**self._kept, name: _Kept(version, box)}
        write_file(self._folder / "secrets.json", msgspec.json.encode(kept), mode=0o600)
        self._kept = kept

    def reveal(self, name: str) -> str:
        """The open text of a secret.

        Raises:
            InputError: `secret.unknown`, `secret.text`. UntrustedError: `secret.sealed`.
        """
        kept = self._kept.get(name)
        if kept is None or not kept.box:
            raise InputError("secret.unknown", f"this board has no secret {name[:63]!r}",
                             remedy="set it on the host, then roll out again: jetfleet device secret set DEVICE NAME")
        try:
            return self._open(name, kept.version, kept.box).decode()
        except UnicodeDecodeError:
            raise InputError("secret.text", f"secret {name} is no text", remedy="set it again") from None

    def versions(self) -> dict[str, int]:
        """Names and versions of what is kept; never a value."""
        return {name: kept.version for name, kept in sorted(self._kept.items()) if kept.box}

    def _open(self, name: str, version: int, box: str) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        sealed = box_from(box)
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(sealed.enc))
            info = sealing_info(self._device, PURPOSE, name, version)
            key, nonce = sealing_keys(shared, sealed.enc, self._key.public_key().public_bytes_raw(), info)
            return ChaCha20Poly1305(key).decrypt(nonce, sealed.box, None)
        except (InvalidTag, ValueError):
            raise UntrustedError("secret.sealed", f"secret {name} was not sealed for this board under this name and version",
                                 remedy="was the board given a new identity? Then set the secret again") from None


class NoSecrets:
    """For a supervisor that was given no store: it announces no key and knows no secret."""

    public_hex = ""

    def accept(self, name: str, version: int, box: str) -> None:  # noqa: ARG002 - a SecretStore's shape
        raise self._refusal(name)

    def reveal(self, name: str) -> str:
        raise self._refusal(name)

    @staticmethod
    def _refusal(name: str) -> InputError:
        return InputError("secret.unsupported", f"this agent keeps no secrets, nor {name[:63]!r}", remedy="run jetfleet-agent itself")

    def versions(self) -> dict[str, int]:
        return {}


def _load_or_create(path: Path) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if not path.exists():
        made = X25519PrivateKey.generate()
        write_key(path, made)
        return made
    key = read_key(path, "the board's sealing key", _REMEDY)
    if not isinstance(key, X25519PrivateKey):
        raise StorageError("identity.unreadable", "the board's sealing key is no X25519 key", where=str(path), remedy=_REMEDY)
    return key


def _load(path: Path) -> dict[str, _Kept]:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, _Kept])
        for name in kept:
            check_name("secret", name)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, MalformedError) as error:
        log.warning("the stored secrets are unusable and have to be set again (%s)", type(error).__name__)
        return {}
    return kept
