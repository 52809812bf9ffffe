"""Who keeps which private key: what lies here, what is kept offline, what the control machine needs, and what is about to expire.

    keys/elsewhere.json    where keys went that were here once: a note for people, nothing rests on it

A project begins with all keys in one folder, which is right for a laptop. For a fleet, root goes to media that lie in a safe, targets
stays at the builder, and the machine that runs `serve` gets the rest: whoever breaks into it can stop updates, but not choose them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract.errors import InputError, StorageError
from jetfleet_host.crop_keys import CropKeys
from jetfleet_host.durable import sync_folder, write_file
from jetfleet_host.keys import MESSAGE_ROLES, ROLES, SERVE_ROLES, TUF_ROLES, KeyFolder, check_role, public_hex, signer_from
from jetfleet_host.repository import HANDOVER, LIFETIME, Metadatas, role_keys

if TYPE_CHECKING:
    from jetfleet_host.project import Project

ELSEWHERE = "elsewhere.json"
ROOT_WARNING_S = 90 * 86_400.0


@dataclass(frozen=True)
class KeyRow:
    """One key. `use`: current, or unused (left by an interrupted rotation). `held`: its private half is in this project.

    `threshold` of `keys` have to sign; `version` and `expires` (seconds since 1970) are those of the metadata that rests on the key.
    """

    role: str
    public: str
    use: str
    held: bool
    place: str
    threshold: int
    keys: int
    version: int
    expires: float


@dataclass(frozen=True)
class Finding:
    """Something about the keys that a person should know. `level`: fail or warn."""

    code: str
    level: str
    what: str
    remedy: str


def key_table(project: Project) -> tuple[KeyRow, ...]:
    """Every key that metadata names, and those that lie in the folder unused."""
    current = project.repository.load()
    places = _places(project)
    rows = []
    for role in ROLES:
        publics, held = _named(current, role), project.keys.held(role)
        metadata = current.targets if role in MESSAGE_ROLES else getattr(current, role)
        threshold = current.root.signed.roles[role].threshold if role in TUF_ROLES else 1
        for public in (*publics, *(public for public in held if public not in publics)):
            place = str(project.keys_dir) if public in held else places.get(public, "elsewhere")
            rows.append(KeyRow(role, public, "current" if public in publics else "unused", public in held, place, threshold, len(publics),
                               metadata.signed.version, metadata.signed.expires.timestamp()))
    return tuple(rows)


def take_out(project: Project, role: str, to: Path, *, keep: bool, passphrase: bytes | None = None) -> tuple[Path, ...]:
    """Write a role's keys into a folder elsewhere, read them back, and remove them here unless `keep`. Again is fine, also after a kill.

    Raises:
        InputError: `keys.role`, `keys.missing` (none is here), `keys.exists` (a file that is not this key, or under another passphrase),
            `keys.place` (the folder is the project's own).
    """
    to = to.absolute()
    if to == project.keys_dir or project.keys_dir in to.parents:
        raise InputError("keys.place", "that folder is the project's own", where=str(to), remedy="give a folder on another medium")
    held = project.keys.held(check_role(role))
    if not held:
        raise InputError("keys.missing", f"no private {role} key is here", where=str(project.keys_dir), remedy="see jetfleet keys list")
    other = KeyFolder(to)
    written = []
    for public in held:
        path = other.path(role, public) if other.has(role, public) else project.keys.copy_to(other, role, public, passphrase)
        if not _holds(path, public, passphrase):
            raise InputError("keys.exists", "a file of that name is there and cannot be read as this key", where=str(path),
                             remedy="give an empty folder, or the passphrase of the file that is there")
        written.append(path)
    if not keep:
        _note(project, dict.fromkeys(held, str(to)))
        for public in held:
            project.keys.remove(role, public)
    return tuple(written)


def _holds(path: Path, public: str, passphrase: bytes | None) -> bool:
    """Whether what lies there is that key, as it is read back."""
    try:
        return public_hex(signer_from(path, passphrase)) == public
    except InputError:
        return False


def findings(project: Project, now: float) -> tuple[Finding, ...]:
    """What is wrong with the keys, or not as it should be on a machine that serves a fleet."""
    return (*_file_findings(project), *online(project), *_expiry_findings(project, now))


def online(project: Project) -> Iterator[Finding]:
    """Keys that should not lie on the machine that runs `serve`."""
    if project.keys.held("root"):
        yield Finding("keys.online-root", "warn", "the root key is on this machine: whoever takes it over owns the fleet for good",
                      "jetfleet keys offline root --to DIR, on a medium that is not plugged in")
    if project.keys.held("targets") and project.keys.held("timestamp"):
        yield Finding("keys.online-targets", "warn", "the key that vouches for models lies beside those of the control machine",
                      "jetfleet keys split --serve DIR makes a folder for the control machine")
    if (project.dir / "ca" / "ca.key").exists() and project.keys.held("timestamp"):
        yield Finding("keys.online-ca", "warn", "the key of the certificate authority is on this machine",
                      "keep the folder ca elsewhere, and bring it for jetfleet broker cert")


def _file_findings(project: Project) -> Iterator[Finding]:
    for path in sorted(project.keys_dir.glob("*.pem")):
        if path.stat().st_mode & 0o077:
            yield Finding("keys.mode", "fail", f"{path.name[:24]}... can be read by others", f"chmod 600 {path}")
    for row in key_table(project):
        if row.use == "unused":
            yield Finding("keys.unused", "warn", f"the {row.role} key {row.public[:16]} is named by no metadata",
                          f"it is left from an interrupted rotation: jetfleet keys rotate {row.role}")
    root = project.repository.load().root.signed
    if root.roles["root"].threshold == 1:
        yield Finding("keys.threshold-one", "warn", "one root key decides alone: if it is stolen, nothing takes the fleet back",
                      "draft a root of 2 of 3 keys: jetfleet keys root-draft --add root=KEY --threshold root=2")


def _expiry_findings(project: Project, now: float) -> Iterator[Finding]:
    current = project.repository.load()
    for role in TUF_ROLES:
        left = getattr(current, role).signed.expires.timestamp() - now
        early = ROOT_WARNING_S if role == "root" else LIFETIME[role].total_seconds() / 4
        remedy = {"root": "jetfleet keys root-draft", "targets": "publish again at the builder"}.get(role, "start jetfleet serve")
        if left <= 0:
            yield Finding("keys.expired", "fail", f"the {role} metadata has expired: boards accept nothing new", remedy)
        elif left < early:
            yield Finding("keys.expires-soon", "warn", f"the {role} metadata expires in {left / 86_400:.0f} days", remedy)


def split(project: Project, folder: Path) -> Path:
    """Make a project folder for the control machine: everything but root, targets and the certificate authority.

    The keys of `SERVE_ROLES` move there, so that two machines never sign two different timestamps.

    Raises:
        InputError: `project.not-empty`, `serve.running`, `keys.missing`. StorageError: `store.write`.
    """
    from jetfleet_host.serve import only_server

    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        raise InputError("project.not-empty", f"{folder} is not an empty folder", where=str(folder),
                         remedy="give a new folder; what an interrupted split left there may be removed as long as all keys are still here")
    current = project.repository.load()
    absent = [role for role in SERVE_ROLES if not set(_named(current, role)) & set(project.keys.held(role))]
    if absent:
        raise InputError("keys.missing", f"the private {absent[0]} key is not here", where=str(project.keys_dir),
                         remedy="was the project split before? Work where the key is")
    with only_server(project.dir), project.repository.locked():
        try:
            _copy_public(project, folder)
        except OSError as error:
            raise StorageError("store.write", f"cannot copy the project: {error.strerror or error}", where=str(error.filename or folder),
                               remedy="check free space and permissions, remove the folder and try again") from None
        other = KeyFolder(folder / "keys")
        moved = [(role, public) for role in SERVE_ROLES for public in project.keys.held(role)]
        for role, public in moved:
            project.keys.copy_to(other, role, public)
        sealing = CropKeys(project.keys_dir).files()
        for path in sealing.values():
            write_file(other.folder / path.name, path.read_bytes(), mode=0o600)
        write_file(folder / "jetfleet.toml", (project.dir / "jetfleet.toml").read_bytes())  # last: only now it is a project
        _note(project, {public: str(folder) for _, public in moved})
        for role, public in moved:
            project.keys.remove(role, public)
        for path in sealing.values():
            path.unlink(missing_ok=True)
    return folder


def _copy_public(project: Project, folder: Path) -> None:
    skipped = shutil.ignore_patterns(".*", HANDOVER)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("repo", "blobs", "device", "broker"):
        if (project.dir / name).is_dir():
            copy = _link_or_copy if name == "blobs" else shutil.copy2
            shutil.copytree(project.dir / name, folder / name, ignore=skipped, copy_function=copy)
            sync_folder(folder / name)
    for path in project.dir.glob("jetfleet.db*"):
        shutil.copy2(path, folder / path.name)


def _link_or_copy(source: str, target: str) -> str:
    """Blobs never change, so two names for one file are as good as two files."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _named(current: Metadatas, role: str) -> list[str]:
    if role in TUF_ROLES:
        return role_keys(current.root, role)
    return list(getattr(current.keys, role))


def _places(project: Project) -> dict[str, str]:
    try:
        return msgspec.json.decode((project.keys_dir / ELSEWHERE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}


def _note(project: Project, places: dict[str, str]) -> None:
    write_file(project.keys_dir / ELSEWHERE, msgspec.json.format(msgspec.json.encode({**_places(project), **places})), mode=0o600)
