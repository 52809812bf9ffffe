"""The key to which boards seal what shows a picture: X25519, in the project's ``keys/``, mode 0600. Only its public half travels, in signed
deployments. A key that was replaced still opens what was sealed to it, as long as its file is there.

    keys/sealing.<public>.pem
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.crops import PURPOSE
from jetfleet_contract.errors import InputError, MalformedError, UntrustedError
from jetfleet_contract.sealing import Sealed, sealing_info, sealing_keys
from jetfleet_contract.topics import check_blob
from jetfleet_host.durable import locked, write_file
from jetfleet_host.keys import private_bytes, read_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

_STEM = "sealing"


class CropKeys:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, X25519PrivateKey] = {}

    def receiver(self) -> str:
        """The public half (hex) of the newest key; made now if there is none. InputError `keys.*`; StorageError `store.write`."""
        held = self.files()
        if held:
            return max(held.items(), key=lambda item: (item[1].stat().st_mtime_ns, item[0]))[0]
        with locked(self._folder):
            return next(iter(self.files()), "") or self.create()

    def create(self) -> str:
        """A new key, to which boards seal from their next deployment on; its public half in hex."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        key = X25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw().hex()
        write_file(self._folder / f"{_STEM}.{public}.pem", private_bytes(key, None), mode=0o600)
        return public

    def files(self) -> dict[str, Path]:
        """Every key's file by its public half. A file of another name is no key."""
        found = {}
        for path in sorted(self._folder.glob(f"{_STEM}.*.pem")):
            public = path.name.removeprefix(f"{_STEM}.").removesuffix(".pem")
            if _is_key(public):
                found[public] = path
        return found

    def open(self, sealed: Sealed, *, device: str, app: str, number: int) -> bytes:
        """What a board sealed as its crop `number` of `app`.

        Raises:
            UntrustedError: `crop.sealed`, when no key here opens it for that board, app and number. InputError `keys.*`.
        """
        info = sealing_info(device, PURPOSE, app, number)
        for public in self.files():
            data = self._opened(public, sealed, info)
            if data is not None:
                return data
        raise UntrustedError("crop.sealed", f"crop {number} of board {device} is sealed to no key that is here, or for another board",
                             remedy="was the project restored without keys/? Then roll out again")

    def _opened(self, public: str, sealed: Sealed, info: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            shared = self._key(public).exchange(X25519PublicKey.from_public_bytes(sealed.enc))
            key, nonce = sealing_keys(shared, sealed.enc, bytes.fromhex(public), info)
            return ChaCha20Poly1305(key).decrypt(nonce, sealed.box, None)
        except (InvalidTag, ValueError):
            return None

    def _key(self, public: str) -> X25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        if public not in self._held:
            key = read_private(self.files()[public], None, "the key to which boards seal")
            if not isinstance(key, X25519PrivateKey):
                raise InputError("keys.bad", "the file holds no X25519 key", where=str(self.files()[public]),
                                 remedy="restore the file from a backup")
            self._held[public] = key
        return self._held[public]


def _is_key(text: str) -> bool:
    try:
        return bool(check_blob(text))
    except MalformedError:
        return False
