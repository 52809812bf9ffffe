"""Private keys of a project: Ed25519, PKCS#8 PEM, mode 0600, one file a key, named by role and public key.

Which key counts is not decided here: TUF's root metadata names the keys of its roles, targets metadata those of
deployments and commands. So a rotation is whole or has not happened, whatever lies in the folder. Private bytes
leave this file only inside a signer, or as a file that is again a key's. A key that is kept elsewhere may be encrypted
under a passphrase (PKCS#8, scrypt or PBKDF2 and AES, as `cryptography` chooses).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.topics import check_blob
from jetfleet_host.durable import write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from securesystemslib.signer import CryptoSigner

TUF_ROLES = ("root", "targets", "snapshot", "timestamp")
MESSAGE_ROLES = ("deployment", "command")
ROLES = (*TUF_ROLES, *MESSAGE_ROLES)
BUILDER = "builder"
"""The host's own key for engines that it builds itself. It counts for the device classes that delegate to it, and no TUF role knows it."""
SERVE_ROLES = ("snapshot", "timestamp", "deployment", "command")
"""What the control machine needs. Root and targets decide what boards trust and run, and belong elsewhere."""


class KeyFolder:
    """The ``keys/`` folder of a project, or a folder on a medium that is kept elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, role: str) -> str:
        """Make a key for `role` and give its public half in hex. It counts once metadata names it."""
        return make_key(self.folder, role, None)[0]

    def has(self, role: str, public: str) -> bool:
        return self.path(role, public).exists()

    def signer(self, role: str, public: str) -> CryptoSigner:
        """The signer for that public key.

        Raises:
            InputError: `keys.missing`, `keys.mode` (others may read it), `keys.bad`, `keys.passphrase`.
        """
        path = self.path(role, public)
        if not path.exists():
            raise InputError("keys.missing", f"the private {role} key {public[:16]} is not here", where=str(path),
                             remedy="put it back for this command, or work where it is kept")
        found = signer_from(path)
        if public_hex(found) != public:
            raise InputError("keys.bad", f"the file does not hold the {role} key that its name says", where=str(path),
                             remedy="restore the file from a backup")
        return found

    def copy_to(self, other: KeyFolder, role: str, public: str, passphrase: bytes | None = None) -> Path:
        """Write the key into another folder, durably, encrypted when there is a passphrase; the new file's path. Raises as `signer`."""
        self.signer(role, public)
        other.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = other.path(role, public)
        write_file(target, private_bytes(read_private(self.path(role, public), None, f"the {role} key"), passphrase), mode=0o600)
        return target

    def remove(self, role: str, public: str) -> None:
        """Forget a key: no metadata names it any more, or it lies elsewhere now."""
        self.path(role, public).unlink(missing_ok=True)

    def held(self, role: str) -> tuple[str, ...]:
        """Public halves of the keys of `role` whose private half is here. A file of another name is no key."""
        found = [path.name.split(".")[1] for path in self.folder.glob(f"{_file_role(role)}.*.pem") if path.name.count(".") == 2]
        return tuple(sorted(public for public in found if _is_public(public)))

    def path(self, role: str, public: str) -> Path:
        return self.folder / f"{_file_role(role)}.{check_blob(public)}.pem"


def check_role(role: str) -> str:
    """InputError `keys.role` for a role that does not exist."""
    if role not in ROLES:
        raise InputError("keys.role", f"there is no role {role[:40]!r}", remedy=f"use one of {', '.join(ROLES)}")
    return role


def _file_role(role: str) -> str:
    return role if role == BUILDER else check_role(role)


def public_hex(signer: CryptoSigner) -> str:
    """The raw Ed25519 public key, 64 hex digits."""
    value: str = signer.public_key.keyval["public"]
    return value


def make_key(folder: Path, role: str, passphrase: bytes | None) -> tuple[str, Path]:
    """Make a key of `role` in any folder, encrypted where there is a passphrase: its public half (hex) and file. InputError `keys.role`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    path = KeyFolder(folder).path(role, public)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path, private_bytes(key, passphrase), mode=0o600)
    return public, path


def signer_from(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """The signer of a key file. Raises as `read_private`, and InputError `keys.bad` for a key that is not Ed25519."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    key = read_private(path, passphrase, f"the private key {path.name}")
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("keys.bad", "the file holds no Ed25519 key", where=str(path), remedy="give a key that jetfleet made")
    return CryptoSigner(key)


def read_private(path: Path, passphrase: bytes | None, what: str) -> PrivateKeyTypes:
    """Read a private key.

    Raises:
        InputError: `keys.missing`, `keys.mode` (others may read it), `keys.passphrase` (missing or wrong), `keys.bad`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    remedy = "restore the file from a backup"
    try:
        if path.stat().st_mode & 0o077:
            raise InputError("keys.mode", f"{what} can be read by others", where=str(path),
                             remedy=f"chmod 600 {path}; if strangers use this machine, also rotate the key")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("keys.missing", f"{what} is not here", where=str(path), remedy="give the path of its file") from None
    except OSError as error:
        raise InputError("keys.bad", f"{what} cannot be read ({error.strerror})", where=str(path), remedy=remedy) from None
    encrypted = b"ENCRYPTED" in data[:200]
    if encrypted and passphrase is None:
        raise InputError("keys.passphrase", f"{what} is encrypted", where=str(path), remedy="give its passphrase: --passphrase-file FILE")
    try:
        return load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise InputError("keys.passphrase", f"the passphrase of {what} is wrong", where=str(path), remedy="try again") from None
        raise InputError("keys.bad", f"{what} cannot be read ({type(error).__name__})", where=str(path), remedy=remedy) from None


def private_bytes(key: PrivateKeyTypes, passphrase: bytes | None) -> bytes:
    """PKCS#8 PEM, encrypted under `passphrase` when there is one."""
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def _is_public(text: str) -> bool:
    try:
        return bool(check_blob(text))
    except MalformedError:
        return False
