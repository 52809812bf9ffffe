"""The board's durable memory: one small record an app and one for the board, each replaced atomically.

A record is ``jfj1 SHA256-OF-BODY`` and a newline, then JSON. Writing: temporary file, fsync, the current record kept as
``.prev``, rename, fsync of the folder, and reading it back. A record that does not match its digest is not believed: then
``.prev`` speaks, and without one the safe default (see `slot_records.restore`). Nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_agent.durable import make_folder, sync_folder, write_all
from jetfleet_contract.errors import MalformedError, StorageError
from jetfleet_contract.messages import Deployment, Message, encode
from jetfleet_contract.slot_records import AppSlots, restore
from jetfleet_contract.topics import check_name

log = logging.getLogger(__name__)

_MAGIC = b"jfj1 "
MAX_RECORD_BYTES = 1 << 20


class BoardRecord(Message, frozen=True):
    """What the whole board remembers: its session counter, and the last deployment and command that it accepted."""

    session: int = 0
    seq: int = 0
    digest: str = ""
    deployment: Deployment | None = None
    command_seq: int = 0


class Disk(Protocol):
    """The few file operations that durability is made of; tests put a faulty one here."""

    def read(self, path: Path) -> bytes | None: ...
    def put(self, path: Path, data: bytes) -> None: ...
    def move(self, old: Path, new: Path) -> None: ...
    def link(self, old: Path, new: Path) -> None: ...
    def remove(self, path: Path) -> None: ...
    def names(self, folder: Path) -> list[str]: ...


class RealDisk:
    """The file system. Every call that returns has reached the medium; failures are OSError."""

    def read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                return file.read(MAX_RECORD_BYTES + 1)
        except FileNotFoundError:
            return None

    def put(self, path: Path, data: bytes) -> None:
        """Write and fsync a new file, readable by its owner only."""
        make_folder(path.parent, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def move(self, old: Path, new: Path) -> None:
        """Rename and fsync the folder."""
        old.replace(new)
        sync_folder(new.parent)

    def link(self, old: Path, new: Path) -> None:
        """`new` becomes another name of `old`, when there is an `old`."""
        with contextlib.suppress(FileNotFoundError):
            new.unlink(missing_ok=True)
            os.link(old, new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            sync_folder(path.parent)

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
        except FileNotFoundError:
            return []


class Journal:
    """See the module.

    Args:
        folder: below the agent's state folder; made when missing.
    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or RealDisk()

    def board(self, lost_session: int = 0) -> BoardRecord:
        """The board's record, or a new one.

        Args:
            lost_session: where the session counter goes on when there was a record that cannot be read: the host refuses the
                birth of an older session, so it must be higher than any before; wall-clock seconds are.
        """
        records = (_decoded(body) for body in self._bodies("board"))
        found = next((record for record in records if record is not None), None)
        if found is not None:
            return found
        return BoardRecord(session=lost_session if "board.json" in self._names() else 0)

    def save_board(self, record: BoardRecord) -> None:
        """Raises: StorageError `journal.full` or `journal.write`; the record before then still stands."""
        self._save("board", encode(record))

    def apps(self) -> tuple[str, ...]:
        """The apps that have a record."""
        records = [name.removesuffix(".prev") for name in self._names()]  # a ".new" that a kill left behind is no record
        names = {name[len("app-"):-len(".json")] for name in records if name.startswith("app-") and name.endswith(".json")}
        return tuple(sorted(name for name in names if _is_name(name)))

    def app(self, name: str) -> AppSlots:
        """The app's state; the safe default when it cannot be read."""
        return restore(name, next(iter(self._bodies(f"app-{check_name('app', name)}")), None))

    def save_app(self, state: AppSlots) -> None:
        """Raises: StorageError `journal.full` or `journal.write`; the record before then still stands."""
        self._save(f"app-{check_name('app', state.app)}", encode(state))

    # --- records ------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        try:
            return self._disk.names(self._folder)
        except OSError as error:
            log.warning("the journal's folder cannot be listed: %s", error)
            return []

    def _bodies(self, name: str) -> list[bytes]:
        """The bodies that match their digest, newest first."""
        path = self._folder / f"{name}.json"
        found = (self._believed(candidate) for candidate in (path, path.with_suffix(".json.prev")))
        return [body for body in found if body is not None]

    def _believed(self, path: Path) -> bytes | None:
        try:
            data = self._disk.read(path)
        except OSError as error:
            log.warning("%s cannot be read: %s", path.name, error)
            return None
        if data is None:
            return None
        head, _, body = data.partition(b"\n")
        if head != _MAGIC + hashlib.sha256(body).hexdigest().encode():
            log.warning("%s does not match its digest and is not believed", path.name)
            return None
        return body

    def _save(self, name: str, body: bytes) -> None:
        path = self._folder / f"{name}.json"
        data = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        fresh = path.with_suffix(".json.new")
        try:
            self._disk.put(fresh, data)
            if self._disk.read(fresh) != data:
                raise StorageError("journal.write", f"{name} was written but reads back differently", where=str(path),
                                   remedy="the medium is failing: replace it")
            if self._believed(path) is not None:  # a broken record must not push out the good one before it
                self._disk.link(path, path.with_suffix(".json.prev"))
            self._disk.move(fresh, path)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StorageError("journal.full" if full else "journal.write", f"{name} cannot be stored: {error.strerror or error}",
                               where=str(path), remedy="free some space on it" if full else "check the medium and its mount") from None


def _is_name(name: str) -> bool:
    try:
        check_name("app", name)
    except MalformedError:
        return False
    return True


def _decoded(body: bytes) -> BoardRecord | None:
    try:
        return msgspec.json.decode(body, type=BoardRecord)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        log.warning("the board's record cannot be read: %s", error)
        return None
