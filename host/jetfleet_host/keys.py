"""Private keys of a project: Ed25519, PKCS#8 PEM, mode 0600, one file a key, named by role and public key.

Which key counts is not decided here: TUF's root metadata names the keys of its roles, targets metadata those of
deployments and commands. So a rotation is whole or has not happened, whatever lies in the folder. Private bytes
leave this file only inside a signer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import InputError
from jetfleet_contract.topics import check_blob
from jetfleet_host.durable import write_file

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

TUF_ROLES = ("root", "targets", "snapshot", "timestamp")
MESSAGE_ROLES = ("deployment", "command")
ROLES = (*TUF_ROLES, *MESSAGE_ROLES)


class KeyFolder:
    """The ``keys/`` folder of a project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, role: str) -> str:
        """Make a key for `role` and give its public half in hex. It counts once metadata names it."""
        from securesystemslib.signer import CryptoSigner

        check_role(role)
        signer = CryptoSigner.generate_ed25519()
        public = public_hex(signer)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(self._path(role, public), signer.private_bytes, mode=0o600)
        return public

    def has(self, role: str, public: str) -> bool:
        return self._path(role, public).exists()

    def signer(self, role: str, public: str) -> CryptoSigner:
        """The signer for that public key.

        Raises:
            InputError: `keys.missing`, `keys.mode` (others may read it), `keys.bad`.
        """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner

        path = self._path(role, public)
        if not path.exists():
            raise InputError("keys.missing", f"the private {role} key {public[:16]} is not here", where=str(path),
                             remedy="put it back for this command, or work where it is kept")
        if path.stat().st_mode & 0o077:
            raise InputError("keys.mode", f"the private {role} key can be read by others", where=str(path),
                             remedy=f"chmod 600 {path}; if strangers use this machine, also `jetfleet keys rotate {role}`")
        try:
            signer = CryptoSigner(load_pem_private_key(path.read_bytes(), None))
        except (OSError, ValueError, TypeError) as error:
            raise InputError("keys.bad", f"the private {role} key cannot be read ({type(error).__name__})", where=str(path),
                             remedy="restore the file from a backup") from None
        if public_hex(signer) != public:
            raise InputError("keys.bad", f"the file does not hold the {role} key that its name says", where=str(path),
                             remedy="restore the file from a backup")
        return signer

    def remove(self, role: str, public: str) -> None:
        """Forget a key that no metadata names any more."""
        self._path(role, public).unlink(missing_ok=True)

    def held(self, role: str) -> tuple[str, ...]:
        """Public halves of the keys of `role` whose private half is here."""
        return tuple(sorted(path.stem.partition(".")[2] for path in self.folder.glob(f"{check_role(role)}.*.pem")))

    def _path(self, role: str, public: str) -> Path:
        return self.folder / f"{check_role(role)}.{check_blob(public)}.pem"


def check_role(role: str) -> str:
    """InputError `keys.role` for a role that does not exist."""
    if role not in ROLES:
        raise InputError("keys.role", f"there is no role {role[:40]!r}", remedy=f"use one of {', '.join(ROLES)}")
    return role


def public_hex(signer: CryptoSigner) -> str:
    """The raw Ed25519 public key, 64 hex digits."""
    value: str = signer.public_key.keyval["public"]
    return value
