"""Commands: keys."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_contract.errors import InputError
from jetfleet_host.commands import builders
from jetfleet_host.commands.passphrases import passphrase_from

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root

    from jetfleet_host.ceremony import Standing

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_ROLE = typer.Argument(..., help="root, targets, snapshot, timestamp, deployment or command.")
_TO = typer.Option(..., "--to", help="Folder for the key files, best on a medium that is kept elsewhere.")
_ENCRYPT = typer.Option(False, "--encrypt", help="Ask for a passphrase that protects the files.")
_PASSPHRASE = typer.Option(None, "--passphrase-file", help="File whose first line is the passphrase.")
_DRAFT = typer.Argument(..., metavar="DRAFT", help="Draft of the next root, made by `keys root-draft`.")
_DRAFTS = typer.Argument(..., metavar="DRAFT...", help="The signed draft, or its signed copies.")
_KEY = typer.Option(..., "--key", help="The holder's private key file.")
_AGAINST = typer.Option(None, "--root", help="root.json that is in force, to show what changes; default: the one of --dir, if there.")
_OUT = typer.Option(Path("next-root.json"), "--out", "-o", help="File for the draft.")
_ADD = typer.Option([], "--add", help="ROLE=PUBLICKEY that the next root shall name; may be given more than once.")
_REMOVE = typer.Option([], "--remove", help="ROLE=PUBLICKEY that it shall name no longer.")
_THRESHOLD = typer.Option([], "--threshold", help="ROLE=N: how many keys have to sign.")
_SERVE = typer.Option(..., "--serve", help="Folder to make for the control machine.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    keys = typer.Typer(name="keys", help="The project's signing keys: who holds them, and how they change.", no_args_is_help=True)
    for name, command in (("list", list_keys), ("check", check), ("rotate", rotate), ("new", new), ("offline", offline), ("export", export),
                          ("split", split), ("root-draft", root_draft), ("sign", sign), ("root-commit", root_commit)):
        keys.command(name)(command)
    builders.add_commands(keys)
    app.add_typer(keys)


def list_keys(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List the keys: role, public key, how many have to sign, when what they signed expires, and where the private half is.

    Example: jetfleet keys list --dir fleet
    """
    from jetfleet_host.custody import key_table
    from jetfleet_host.project import Project

    rows = [asdict(row) for row in key_table(Project.load(folder))]
    lines = [f"{'role':<11} {'public key':<64} {'use':<8} {'sign':<7} {'version':>7} {'expires in':>10}  private half"]
    lines += [f"{row['role']:<11} {row['public']:<64} {row['use']:<8} {row['threshold']} of {row['keys']:<2} {row['version']:>7} "
              f"{_left(row['expires']):>10}  {'here' if row['held'] else row['place']}" for row in rows]
    _print(as_json, rows, lines)


def check(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Say what is not as it should be: keys that others can read, root or targets keys on the control machine, what expires soon.

    Exit code 1 when something fails.

    Example: jetfleet keys check --dir fleet
    """
    from jetfleet_host.custody import findings
    from jetfleet_host.project import Project

    found = findings(Project.load(folder), time.time())
    lines = [line for f in found for line in (f"{f.level:<5} {f.what} [{f.code}]", f"      try: {f.remedy}")]
    _print(as_json, [asdict(f) for f in found], lines or ["Keys, thresholds and expiries are as they should be."])
    raise typer.Exit(1 if any(f.level == "fail" for f in found) else 0)


def rotate(role: str = _ROLE, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Replace the keys of a role. Boards learn of it with the next metadata; the old private keys are removed.

    Needs the root's keys here (for deployment and command: the targets key). Where they are kept apart, begin a ceremony: keys root-draft.

    Example: jetfleet keys rotate timestamp --dir fleet
    """
    from jetfleet_host.keys import check_role
    from jetfleet_host.project import Project

    public = Project.load(folder).rotate(check_role(role))
    _print(as_json, {"role": role, "public": public}, [f"The {role} key is now {public}.",
                                                       "A running `jetfleet serve` sends the new metadata to the boards."])


def new(role: str = _ROLE, to: Path = _TO, encrypt: bool = _ENCRYPT, passphrase_file: Path | None = _PASSPHRASE,
        as_json: bool = _JSON) -> None:
    """Make a key on a holder's own machine. It counts once a root names its public half. Needs no project.

    Example: jetfleet keys new root --to /media/alice --encrypt
    """
    from jetfleet_host.keys import make_key

    public, path = make_key(to, role, passphrase_from(passphrase_file, ask=encrypt, confirm=True))
    _print(as_json, {"role": role, "public": public, "file": str(path)}, [f"{path}", f"Public half: {public}"])


def offline(role: str = _ROLE, to: Path = _TO, folder: Path = _DIR, encrypt: bool = _ENCRYPT, passphrase_file: Path | None = _PASSPHRASE,
            as_json: bool = _JSON) -> None:
    """Move a role's private keys out of the project. `serve` and `publish` work without root's; bring them back for a rotation.

    Example: jetfleet keys offline root --to /media/safe --encrypt --dir fleet
    """
    _take_out(role, to, folder, passphrase_from(passphrase_file, ask=encrypt, confirm=True), keep=False, as_json=as_json)


def export(role: str = _ROLE, to: Path = _TO, folder: Path = _DIR, encrypt: bool = _ENCRYPT, passphrase_file: Path | None = _PASSPHRASE,
           as_json: bool = _JSON) -> None:
    """Copy a role's private keys to another folder, for the builder or for a backup.

    Example: jetfleet keys export targets --to /media/builder --dir fleet
    """
    _take_out(role, to, folder, passphrase_from(passphrase_file, ask=encrypt, confirm=True), keep=True, as_json=as_json)


def _take_out(role: str, to: Path, folder: Path, passphrase: bytes | None, *, keep: bool, as_json: bool) -> None:
    from jetfleet_host.custody import take_out
    from jetfleet_host.project import Project

    written = take_out(Project.load(folder), role, to, keep=keep, passphrase=passphrase)
    _print(as_json, [str(path) for path in written], [f"{'Copied to' if keep else 'Moved to'} {path}" for path in written])


def split(serve: Path = _SERVE, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Make the folder for the control machine: metadata, blobs and only the keys of timestamp, snapshot, deployments and commands.

    They move there; this folder stays the builder's: `publish` here signs targets, and `jetfleet accept` there publishes them.

    Example: jetfleet keys split --serve /media/control/fleet --dir fleet
    """
    from jetfleet_host.custody import split as make_folder
    from jetfleet_host.project import Project

    made = make_folder(Project.load(folder), serve)
    _print(as_json, {"serve": str(made)}, [f"{made} is ready for the control machine: jetfleet serve --dir {made}",
                                           f"Publish here, then there: jetfleet accept {folder}"])


def root_draft(
    add: list[str] = _ADD,
    remove: list[str] = _REMOVE,
    threshold: list[str] = _THRESHOLD,
    days: int = typer.Option(0, "--days", help="Until the next root expires; default: five years."),
    out: Path = _OUT,
    folder: Path = _DIR,
    as_json: bool = _JSON,
) -> None:
    """Draft the next root: other keys, other thresholds, or only a later expiry. Its holders sign it with `keys sign`.

    Examples:

        jetfleet keys root-draft --add root=5e1f... --add root=77ab... --threshold root=2 --dir fleet

        jetfleet keys root-draft --remove root=OLD --add root=NEW --out next-root.json
    """
    from jetfleet_host.ceremony import Wish, draft, standing
    from jetfleet_host.durable import write_file
    from jetfleet_host.project import Project

    project = Project.load(folder)
    wish = Wish(tuple(map(_pair, add)), tuple(map(_pair, remove)), {role: _number(text) for role, text in map(_pair, threshold)})
    data = draft(project, Wish(wish.add, wish.remove, wish.thresholds, days) if days else wish, time.time())
    write_file(out, data)
    stands = standing(data, project.repository.load().root)
    _print(as_json, {"draft": str(out), **asdict(stands)}, [
        *_standing_lines(stands), f"Draft: {out}. Each holder: jetfleet keys sign {out} --key FILE"])


def sign(
    draft: Path = _DRAFT,
    key: Path = _KEY,
    against: Path | None = _AGAINST,
    folder: Path = _DIR,
    passphrase_file: Path | None = _PASSPHRASE,
    yes: bool = typer.Option(False, "--yes", "-y", help="Sign without asking."),
    as_json: bool = _JSON,
) -> None:
    """Show what a draft changes, ask, and sign it in place with a holder's key. Works on any machine; a project is not needed.

    Example: jetfleet keys sign next-root.json --key /media/alice/root.5e1f....pem --root root.json
    """
    from jetfleet_host.ceremony import read_file, standing
    from jetfleet_host.ceremony import sign as sign_draft

    current = _root_in_force(against, folder)
    stands = standing(read_file(draft), current)
    if not as_json:
        typer.echo("\n".join(_standing_lines(stands)))
    if not yes:
        typer.confirm("Sign this?", abort=True, err=True)
    encrypted = b"ENCRYPTED" in _head(key)
    public = sign_draft(draft, key, current, passphrase_from(passphrase_file, ask=encrypted))
    stands = standing(read_file(draft), current)
    _print(as_json, {"signed_by": public, **asdict(stands)}, [f"Signed with {public}.", *_count_lines(stands)])


def root_commit(drafts: list[Path] = _DRAFTS, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Publish the next root, once enough holders of the old and of the new one have signed it.

    Example: jetfleet keys root-commit next-root.json --dir fleet
    """
    from jetfleet_host.ceremony import commit, read_file
    from jetfleet_host.project import Project

    project = Project.load(folder)
    version = commit(project, [read_file(path) for path in drafts])
    _print(as_json, {"version": version, "root": str(project.root_file)}, [
        f"Root {version} is in force. New boards pin {project.root_file}; the others follow by themselves."])


def _root_in_force(path: Path | None, folder: Path) -> Metadata[Root] | None:
    """The root to compare a draft with: of the file, else of the project in `folder`, else none."""
    from jetfleet_host.ceremony import read_draft, read_file
    from jetfleet_host.project import CONFIG, Project

    if path is not None:
        return read_draft(read_file(path))
    return Project.load(folder).repository.load().root if (folder / CONFIG).is_file() else None


def _standing_lines(stands: Standing) -> list[str]:
    return [f"Root {stands.version}, until {stands.expires}:", *(f"  {change}" for change in stands.changes), *_count_lines(stands)]


def _count_lines(stands: Standing) -> list[str]:
    names = {"old": "of the root in force", "new": "of the next root"}
    lines = [f"  {have} of {need} signatures {names[which]}" for which, (have, need) in stands.signed.items()]
    return [*lines, "Enough have signed: jetfleet keys root-commit"] if stands.complete else lines


def _pair(text: str) -> tuple[str, str]:
    role, separator, value = text.partition("=")
    if not separator or not value:
        raise InputError("keys.pair", f"{text[:80]!r} is no ROLE=VALUE", where="keys root-draft", remedy="for instance root=PUBLICKEY")
    return role, value


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise InputError("keys.threshold", f"{text[:40]!r} is no number of keys", where="--threshold", remedy="for instance root=2")
    return int(text)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(200)
    except OSError:
        return b""  # signing says what is wrong with it


def _left(expires: float) -> str:
    days = (expires - time.time()) / 86_400
    return f"{days:.0f} days" if days > 0 else "EXPIRED"


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
