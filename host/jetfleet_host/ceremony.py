"""Signing ceremonies: the next root is drafted, signed by its holders wherever they keep their keys, and published.

A draft is TUF root metadata without signatures (specification 1.0), so any TUF tool can look at it and sign it too. Holders may sign
one file in turn, or copies of it that `commit` brings together. What counts is decided by TUF's rule: the threshold of the
root that is in force, and the threshold of the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.topics import check_blob
from jetfleet_host.durable import write_file
from jetfleet_host.keys import TUF_ROLES, signer_from
from jetfleet_host.repository import LIFETIME, check_threshold, role_keys

if TYPE_CHECKING:
    from tuf.api.metadata import Key, Metadata, Root

    from jetfleet_host.project import Project

MAX_DRAFT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Wish:
    """What the next root shall be. Empty means: as it is.

    `add` and `remove` are (role, public key in hex); `thresholds` by role; `days` until the next root expires.
    """

    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[tuple[str, str], ...] = ()
    thresholds: Mapping[str, int] | None = None
    days: int = LIFETIME["root"].days


@dataclass(frozen=True)
class Standing:
    """How far a draft is: by root ("old", "new") how many of the keys that have to sign have signed.

    `changes` says in sentences what the draft changes against the root in force, or all that it says where that is not known.
    """

    version: int
    expires: str
    changes: tuple[str, ...]
    signed: Mapping[str, tuple[int, int]]
    complete: bool


def draft(project: Project, wish: Wish, now: float) -> bytes:
    """The next root, unsigned.

    Raises:
        InputError: `keys.role`, `keys.threshold`, `keys.unknown` (removing what is not there), `keys.bad`, `keys.expiry`.
    """
    from tuf.api.metadata import Metadata

    if not 1 <= wish.days <= 20 * 365:
        raise InputError("keys.expiry", f"{wish.days} days are not within 1..{20 * 365}", where="--days", remedy="a root lasts some years")
    current = project.repository.load().root
    root = Metadata.from_bytes(current.to_bytes()).signed
    for role, public in wish.remove:
        _remove(current, root, _role(role), public)
    for role, public in wish.add:
        root.add_key(key_of(public), _role(role))
    for role, threshold in (wish.thresholds or {}).items():
        root.roles[_role(role)].threshold = threshold
    for role in TUF_ROLES:
        check_threshold(len(root.roles[role].keyids), root.roles[role].threshold)
    root.version += 1
    root.expires = datetime.fromtimestamp(now, timezone.utc).replace(microsecond=0) + timedelta(days=wish.days)
    return Metadata(root).to_bytes()


def standing(data: bytes, current: Metadata[Root] | None) -> Standing:
    """Look at a draft, beside the root in force where that is known. Raises as `read_draft`."""
    found = read_draft(data)
    named = {"new": found} if current is None else {"old": current, "new": found}
    signed = {name: _count(root, found) for name, root in named.items()}
    changes = _changes(current, found) if current is not None else _sentences(found)
    done = current is not None and found.signed.version == current.signed.version + 1
    return Standing(found.signed.version, found.signed.expires.strftime("%Y-%m-%d"), tuple(changes), signed,
                    done and all(have >= need for have, need in signed.values()))


def sign(path: Path, key: Path, current: Metadata[Root] | None, passphrase: bytes | None = None) -> str:
    """Sign a draft in place with a holder's key; the public half in hex. The file is replaced whole or not at all.

    Raises:
        InputError: `keys.stranger` (the key is none of the root's), `keys.*`. As `read_draft`.
    """
    found = read_draft(read_file(path))
    signer = signer_from(key, passphrase)
    public: str = signer.public_key.keyval["public"]
    known = set(role_keys(found, "root")) | (set(role_keys(current, "root")) if current else set())
    if public not in known and current is not None:
        raise InputError("keys.stranger", f"the key {public[:16]} is neither of the old root nor of the new one", where=str(key),
                         remedy="give the key that the draft, or the root in force, names")
    found.sign(signer, append=True)
    write_file(path, found.to_bytes())
    return public


def commit(project: Project, drafts: Sequence[bytes]) -> int:
    """Publish the next root from one signed draft, or several copies of it; gives its version. Again is fine, also after a kill.

    Raises:
        UntrustedError: `trust.signature` (a threshold is not met), `trust.rollback` (not the next version), `trust.mix` (two drafts).
        InputError: `keys.*`: keys that have to sign the other roles anew are not here. As `read_draft`; StorageError.
    """
    merged = _merged(drafts)
    with project.repository.locked():
        current = project.repository.load().root
        expected = current.signed.version + 1
        if merged.signed_bytes == current.signed_bytes:
            project.pin_newest_root()
            return current.signed.version
        if merged.signed.version != expected:
            raise UntrustedError("trust.rollback", f"the draft is root {merged.signed.version}, the next one is {expected}",
                                 remedy="draft it again: jetfleet keys root-draft")
        _check_threshold_of(current, merged, "in force")
        _check_threshold_of(merged, merged, "to come")
        project.repository.accept_root(merged, role_keys(current, "targets") != role_keys(merged, "targets"))
    project.pin_newest_root()
    return int(expected)


def read_draft(data: bytes) -> Metadata[Root]:
    """Decode root metadata, signed or not. MalformedError `trust.malformed`, `message.large`."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    if len(data) > MAX_DRAFT_BYTES:
        raise MalformedError("message.large", f"a draft of {len(data)} bytes is over the limit of {MAX_DRAFT_BYTES}")
    try:
        found: Metadata[Root] = Metadata.from_bytes(data)
    except (RepositoryError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedError("trust.malformed", f"this is no root metadata: {str(error)[:200]}") from None
    if not isinstance(found.signed, Root):
        raise MalformedError("trust.malformed", f"this is {found.signed.type} metadata, not a root")
    return found


def read_file(path: Path) -> bytes:
    """A draft's bytes. InputError `keys.draft`."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_DRAFT_BYTES + 1)
    except OSError as error:
        raise InputError("keys.draft", f"the draft cannot be read: {error.strerror}", where=str(path), remedy="give its path") from None


def _merged(drafts: Sequence[bytes]) -> Metadata[Root]:
    found = [read_draft(data) for data in drafts]
    for other in found[1:]:
        if other.signed_bytes != found[0].signed_bytes:
            raise UntrustedError("trust.mix", "the files are drafts of different roots", remedy="give copies of one draft")
        found[0].signatures.update(other.signatures)
    return found[0]


def _check_threshold_of(root: Metadata[Root], draft_: Metadata[Root], which: str) -> None:
    from tuf.api.exceptions import UnsignedMetadataError

    try:
        root.signed.verify_delegate("root", draft_.signed_bytes, draft_.signatures)
    except UnsignedMetadataError:
        have, need = _count(root, draft_)
        raise UntrustedError("trust.signature", f"{have} of the {need} keys that the root {which} asks for have signed",
                             remedy="have the other holders sign it: jetfleet keys sign DRAFT --key FILE") from None


def _count(root: Metadata[Root], draft_: Metadata[Root]) -> tuple[int, int]:
    result = root.signed.get_verification_result("root", draft_.signed_bytes, draft_.signatures)
    return len(result.signed), root.signed.roles["root"].threshold


def _changes(old: Metadata[Root], new: Metadata[Root]) -> Iterable[str]:
    """What differs, a sentence each."""
    for role in TUF_ROLES:
        before, after = role_keys(old, role), role_keys(new, role)
        yield from (f"{role}: key {public} is added" for public in after if public not in before)
        yield from (f"{role}: key {public} is removed" for public in before if public not in after)
        thresholds = old.signed.roles[role].threshold, new.signed.roles[role].threshold
        if thresholds[0] != thresholds[1]:
            yield f"{role}: {thresholds[0]} signature(s) were asked for, {thresholds[1]} will be"
    yield f"expires {new.signed.expires:%Y-%m-%d}, before {old.signed.expires:%Y-%m-%d}"


def _sentences(root: Metadata[Root]) -> Iterable[str]:
    for role in TUF_ROLES:
        yield f"{role}: {root.signed.roles[role].threshold} of {', '.join(role_keys(root, role))}"


def _remove(current: Metadata[Root], root: Root, role: str, public: str) -> None:
    for keyid in list(root.roles[role].keyids):
        if current.signed.keys[keyid].keyval["public"] == public:
            root.revoke_key(keyid, role)
            return
    raise InputError("keys.unknown", f"{public[:16]!r} is no {role} key", where="--remove", remedy="see jetfleet keys list")


def key_of(public: str) -> Key:
    """An Ed25519 public key (64 hex digits) as TUF metadata names it. InputError `keys.bad`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.signer import SSlibKey

    made: Key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(_checked(public))))
    return made


def _checked(public: str) -> str:
    try:
        return check_blob(public)
    except JetfleetError:
        raise InputError("keys.bad", f"{public[:80]!r} is no Ed25519 public key",
                         remedy="64 hex digits, as jetfleet keys list shows") from None


def _role(role: str) -> str:
    if role not in TUF_ROLES:
        raise InputError("keys.role", f"the root names no keys of {role[:40]!r}", remedy=f"use one of {', '.join(TUF_ROLES)}")
    return role
