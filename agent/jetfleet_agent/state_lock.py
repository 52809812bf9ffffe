"""One agent a state folder: an advisory lock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from jetfleet_contract.errors import StorageError

NAME = "agent.lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; makes the folder (mode 0700) when it is not there.

    Raises:
        StorageError: `state.locked` naming the other agent's process, `state.unwritable`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / NAME).open("a+")
    except OSError as error:
        raise StorageError("state.unwritable", f"the state folder {folder} cannot be written: {error.strerror}",
                           remedy="chown it to the agent's user, or set state_dir in the config") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError("state.locked", f"another agent (process {holder(folder) or 'unknown'}) uses {folder}",
                               remedy="stop it, or give this one its own state_dir") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def holder(folder: Path) -> str:
    """The process id that was last written to the lock file; empty without one."""
    try:
        text = (folder / NAME).read_text()[:32].strip()
    except OSError:
        return ""
    return text if text.isdigit() else ""


def is_held(folder: Path) -> bool:
    """True while an agent runs on that folder."""
    try:
        with (folder / NAME).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
