"""Signed messages: deployments and commands to boards, and what boards sign to us.

Which key signs is named by the targets metadata, so a rotated key is used from the next message on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from jetfleet_contract.crops import Answer
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import Command, Deployment, Envelope, decode
from jetfleet_contract.trust import check_deployment, seal, unseal
from jetfleet_contract.uploads import Verdict

if TYPE_CHECKING:
    from jetfleet_host.project import Project

T = TypeVar("T", bound=msgspec.Struct)


def sign_deployment(project: Project, deployment: Deployment) -> bytes:
    """The envelope (JSON) of a deployment. InputError `keys.missing`, `keys.mode`, `keys.bad`; MalformedError as `check_deployment`."""
    return _sign(project, "deployment", check_deployment(deployment), project.repository.load().keys.deployment)


def sign_command(project: Project, command: Command) -> bytes:
    """The envelope (JSON) of a command. InputError as `sign_deployment`."""
    return _sign(project, "command", command, project.repository.load().keys.command)


def sign_verdict(project: Project, verdict: Verdict) -> bytes:
    """The envelope (JSON) of the host's word on an upload, by the command key. InputError as `sign_deployment`."""
    return _sign(project, "command", verdict, project.repository.load().keys.command, kind="verdict")


def sign_answer(project: Project, answer: Answer) -> bytes:
    """The envelope (JSON) of what the host's model says of a crop, by the command key. InputError as `sign_deployment`."""
    return _sign(project, "command", answer, project.repository.load().keys.command, kind="answer")


def resigned(project: Project, envelopes: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Stored deployments, (device, envelope), as they should be retained now: unchanged, or signed by the current key after a rotation.

    The body and its number stay as they are, so a board that has accepted it sees nothing new.
    """
    keys = project.repository.load().keys.deployment
    return [(device, envelope if _is_by(envelope, keys) else _again(project, envelope)) for device, envelope in envelopes]


def _is_by(envelope: bytes, keys: tuple[str, ...]) -> bool:
    return any(signature.keyid in keys for signature in decode(envelope, Envelope).signatures)


def _again(project: Project, envelope: bytes) -> bytes:
    return sign_deployment(project, decode(bytes(decode(envelope, Envelope).signed), Deployment))


def _sign(project: Project, role: str, message: msgspec.Struct, keys: tuple[str, ...], kind: str = "") -> bytes:
    """`kind` is what the signature says that the message is: the role's own name where it is left out."""
    held = [key for key in keys if project.keys.has(role, key)] or list(keys)
    if not held:
        raise InputError("keys.missing", f"the metadata names no {role} key", where=str(project.repo_dir),
                         remedy=f"make one: jetfleet keys rotate {role} --dir {project.dir}")
    signer = project.keys.signer(role, held[0])
    return seal(kind or role, message, held[0], lambda data: bytes.fromhex(signer.sign(data).signature))


def verify_device(data: bytes, key: str, kind: str, message: type[T]) -> T:
    """Open what a board signed as `kind` (`birth`, `report`, `telemetry` ...) with its pinned key (hex).

    Raises:
        MalformedError, UntrustedError: as `jetfleet_contract.trust.unseal`.
    """
    return unseal(data, kind, message, (key,), verify_ed25519)


def verify_ed25519(key: str, signature: bytes, data: bytes) -> bool:
    """True when `signature` over `data` is by the public key `key` (64 hex digits)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
