"""Taps every change that this process makes below one folder: to kill before it, to fail it, to tear it, or to write it down.

Python's own `os` calls are replaced while the tap is open, so what is tapped is the code as it ships, with no port made for tests.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

KINDS = ("mkdir", "create", "reserve", "resize", "write", "sync", "rename", "link", "unlink", "sync folder")


class Op(NamedTuple):
    """One change. `path` is relative to the folder; `other` is a rename's or link's new name; `size` a new length."""

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.other or self.path}"


class DiskTap:
    """A context manager. `before` sees each change that is about to be made: it may raise OSError, end the process, or return how many
    bytes of a write the disk takes (a short write). `after` sees each change that was made. `reads`: files that are opened to be read too.
    """

    def __init__(self, root: Path, before: Callable[[Op], int | None] = lambda _op: None,
                 after: Callable[[Op], None] = lambda _op: None, *, reads: bool = False) -> None:
        self._root = os.path.realpath(root)
        self._reads = reads
        self._io_open = io.open
        self._before = before
        self._after = after
        self._real: dict[str, Any] = {}

    def __enter__(self) -> DiskTap:
        for name in ("open", "write", "pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "rename", "replace", "link", "unlink",
                     "mkdir"):
            self._real[name] = getattr(os, name)
            setattr(os, name, getattr(self, f"_{name}"))
        io.open = self._file  # type: ignore[assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        io.open = self._io_open

    # --- where ------------------------------------------------------------------------------------------------

    def _inside(self, path: Any) -> str | None:
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  pathlib itself is being tapped
        return os.path.relpath(full, self._root) if full.startswith(self._root + os.sep) or full == self._root else None

    def _of(self, handle: int) -> str | None:
        try:
            return self._inside(os.readlink(f"/proc/self/fd/{handle}").removesuffix(" (deleted)"))  # noqa: PTH115
        except OSError:
            return None

    def _done(self, op: Op | None, work: Callable[[], Any]) -> Any:
        if op is None:
            return work()
        self._before(op)
        outcome = work()
        self._after(op)
        return outcome

    # --- the calls --------------------------------------------------------------------------------------------

    def _file(self, path: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        """Python's own files: their writes go through the tap too."""
        inside = self._of(path) if isinstance(path, int) else self._inside(path)
        if inside is None or "b" not in mode or not set(mode) & set("wxa+"):
            reads = inside is not None and self._reads and not isinstance(path, int) and os.path.lexists(path)
            return self._done(Op("read", inside or "") if reads else None, lambda: self._io_open(path, mode, buffering, *rest, **more))
        there = isinstance(path, int) or os.path.lexists(path)
        op = Op("create", inside) if not there else Op("resize", inside) if "w" in mode and not isinstance(path, int) else None
        raw = self._done(op, lambda: _TappedFile(self, path, mode.replace("b", "")))
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        inside = self._inside(path) if dir_fd is None else None
        op = None
        if inside is not None and flags & os.O_CREAT and not os.path.lexists(path):
            op = Op("create", inside)
        elif inside is not None and flags & os.O_TRUNC and os.path.getsize(path):  # noqa: PTH202
            op = Op("resize", inside)
        handle: int = self._done(op, lambda: self._real["open"](path, flags, mode, dir_fd=dir_fd))
        return handle

    def _write(self, handle: int, data: Any) -> int:
        return self._put(handle, data, os.lseek(handle, 0, os.SEEK_CUR) if self._of(handle) else 0,
                         lambda part: self._real["write"](handle, part))

    def _pwrite(self, handle: int, data: Any, offset: int) -> int:
        return self._put(handle, data, offset, lambda part: self._real["pwrite"](handle, part, offset))

    def _put(self, handle: int, data: Any, offset: int, work: Callable[[Any], int]) -> int:
        inside = self._of(handle)
        if inside is None:
            return work(data)
        op = Op("write", inside, offset=offset, data=bytes(data))
        taken = self._before(op)
        done = work(data if taken is None else bytes(data)[:taken])
        self._after(op._replace(data=op.data[:done]))
        return done

    def _ftruncate(self, handle: int, length: int) -> None:
        inside = self._of(handle)
        self._done(Op("resize", inside, size=length) if inside else None, lambda: self._real["ftruncate"](handle, length))

    def _posix_fallocate(self, handle: int, offset: int, length: int) -> None:
        inside = self._of(handle)
        grows = inside is not None and os.fstat(handle).st_size < offset + length
        self._done(Op("reserve", inside or "", size=offset + length) if grows else None,
                   lambda: self._real["posix_fallocate"](handle, offset, length))

    def _fsync(self, handle: int) -> None:
        self._synced(handle, "fsync")

    def _fdatasync(self, handle: int) -> None:
        self._synced(handle, "fdatasync")

    def _synced(self, handle: int, name: str) -> None:
        inside = self._of(handle)
        kind = "sync folder" if inside is not None and os.path.isdir(os.path.join(self._root, inside)) else "sync"  # noqa: PTH112, PTH118
        self._done(Op(kind, inside) if inside is not None else None, lambda: self._real[name](handle))

    def _rename(self, old: Any, new: Any) -> None:
        self._named("rename", old, new, self._real["rename"])

    def _replace(self, old: Any, new: Any) -> None:
        self._named("rename", old, new, self._real["replace"])

    def _link(self, old: Any, new: Any) -> None:
        self._named("link", old, new, self._real["link"])

    def _named(self, kind: str, old: Any, new: Any, real: Callable[[Any, Any], None]) -> None:
        inside, other = self._inside(old), self._inside(new)
        self._done(Op(kind, inside, other) if inside is not None and other is not None else None, lambda: real(old, new))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        inside = self._inside(path) if dir_fd is None else None
        there = inside is not None and os.path.lexists(path)
        self._done(Op("unlink", inside or "") if there else None, lambda: self._real["unlink"](path, dir_fd=dir_fd))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        inside = self._inside(path) if dir_fd is None else None
        new = inside is not None and not os.path.lexists(path)
        self._done(Op("mkdir", inside or "") if new else None, lambda: self._real["mkdir"](path, mode, dir_fd=dir_fd))


class _TappedFile(io.FileIO):
    """An unbuffered file whose changes a tap sees."""

    def __init__(self, tap: DiskTap, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._tap = tap

    def write(self, data: Any) -> int:
        return self._tap._write(self.fileno(), data)

    def truncate(self, size: int | None = None) -> int:
        length = self.tell() if size is None else size
        self._tap._ftruncate(self.fileno(), length)
        return length


class Fault:
    """Makes the changes `first` .. `first + width - 1` fail in one way; counts all. Use it as a tap's `before`.

    `how`: a name of errno (ENOSPC, EIO, EROFS, EDQUOT), "short" (a write takes half, then the next one fails with EIO) or
    "slow" (every write takes at most seven bytes, none fails).
    """

    def __init__(self, first: int, how: str, width: int = 1) -> None:
        self._range = range(first, first + width)
        self._how = how
        self._torn = False
        self.count = 0
        self.struck: list[Op] = []

    def __call__(self, op: Op) -> int | None:
        number, self.count = self.count, self.count + 1
        if self._torn and op.kind == "write":
            self._torn = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if number not in self._range:
            return None
        if self._how == "slow":
            return min(7, len(op.data)) if op.kind == "write" else None
        self.struck.append(op)
        if self._how == "short" and op.kind == "write" and len(op.data) > 1:
            self._torn = True
            return len(op.data) // 2
        number = errno.EIO if self._how == "short" else getattr(errno, self._how)
        raise OSError(number, os.strerror(number))


def forget(folder: Path) -> None:
    """Empty a folder, whatever is in it."""
    for entry in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
