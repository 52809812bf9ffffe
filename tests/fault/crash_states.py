"""Every state that a power cut may leave on the disk, worked out from what a life asked of the disk and in which order.

A file system keeps what was synced and owes nothing else. So after a cut, for each file, the writes since its last fsync are there, or not,
or torn at a sector (512 B) or a page (4096 B), with zeros where data never came; and of the creations, renames, links and removals since
their folder's last fsync any part is there. `PowerCut` replays a recorded life up to a change and gives all those states, each once.
The idea is that of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018).
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Union

from disk_taps import Op

MAX_SUBSETS = 6  # of so many waiting changes of names all subsets are tried: 64
SAMPLES = 24  # of more, prefixes, all but one, and so many at random
TEARS = (512, 4096)

State = dict[str, Union[bytes, None]]
"""Content by path; None is a folder."""


class Recorder:
    """A tap's `after`: the changes in their order, with what they wrote."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.ops: list[Op] = []

    def __call__(self, op: Op) -> None:
        if op.kind == "sync":  # what a file holds when it was synced counts, however it got there
            op = op._replace(data=(self._root / op.path).read_bytes())
        self.ops.append(op)


class NameChange(NamedTuple):
    """A change of a folder's entries that is not durable yet; `inode` None is a folder."""

    kind: str
    path: str
    other: str
    inode: int | None


class File:
    """One inode: what the disk certainly has, and the changes it may have."""

    def __init__(self) -> None:
        self.durable = b""
        self.waiting: list[Op] = []

    def contents(self) -> list[bytes]:
        """What may be found in the file after a cut, each once."""
        if not self.waiting:
            return [self.durable]
        whole = _written(self.durable, self.waiting, None)
        found = [self.durable, whole, _written(self.durable, self.waiting, 0)]
        sizes = sum(len(op.data) for op in self.waiting)
        for tear in TEARS:
            for kept in {tear, sizes // 2 // tear * tear}:
                if 0 < kept < sizes:
                    found += [_written(self.durable, self.waiting, kept), whole[:kept]]
        return list(dict.fromkeys(found))


def _written(content: bytes, ops: list[Op], limit: int | None) -> bytes:
    """`content` after `ops`, of whose data only the first `limit` bytes reached the disk; sizes did."""
    data = bytearray(content)
    left = limit
    for op in ops:
        if op.kind in ("resize", "reserve"):
            del data[op.size if op.kind == "resize" else len(data):]
            data.extend(bytes(op.size - len(data)))
            continue
        arrived = op.data if left is None else op.data[:left]
        left = None if left is None else left - len(arrived)
        data.extend(bytes(max(op.offset + len(op.data) - len(data), 0)))
        data[op.offset:op.offset + len(arrived)] = arrived
    return bytes(data)


class PowerCut:
    """The disk of a life that is replayed change by change; `states` are those that a cut now may leave."""

    def __init__(self) -> None:
        self._files: list[File] = []
        self._names: dict[str, int | None] = {}
        self._durable: dict[str, int | None] = {}
        self._waiting: list[NameChange] = []

    def apply(self, op: Op) -> None:
        """The next change of the life."""
        if op.kind in ("mkdir", "create"):
            self._name(NameChange(op.kind, op.path, op.path, None if op.kind == "mkdir" else self._new_file()))
        elif op.kind in ("rename", "link"):
            self._name(NameChange(op.kind, op.path, op.other, self._names[op.path]))
        elif op.kind == "unlink":
            self._name(NameChange(op.kind, op.path, op.path, None))
        elif op.kind == "sync folder":
            self._sync_folder(op.path)
        elif op.kind == "sync":
            file = self._file(op.path)
            file.durable, file.waiting = op.data, []
        elif op.kind in ("write", "resize", "reserve"):
            self._file(op.path).waiting.append(op)

    def _new_file(self) -> int:
        self._files.append(File())
        return len(self._files) - 1

    def _file(self, path: str) -> File:
        if path not in self._names:  # opened past the tap
            self._name(NameChange("create", path, path, self._new_file()))
        inode = self._names[path]
        assert inode is not None
        return self._files[inode]

    def _name(self, change: NameChange) -> None:
        _rename(self._names, change)
        self._waiting.append(change)

    def _sync_folder(self, folder: str) -> None:
        for change in self._waiting:
            if _folder(change.other) == folder:
                _rename(self._durable, change)
        self._waiting = [change for change in self._waiting if _folder(change.other) != folder]

    def states(self) -> Iterator[State]:
        """Each state once."""
        seen: set[bytes] = set()
        for kept in _subsets(len(self._waiting)):
            names = dict(self._durable)
            for index in kept:
                _rename(names, self._waiting[index])
            for state in self._fillings(_reachable(names)):
                mark = digest(state)
                if mark not in seen:
                    seen.add(mark)
                    yield state

    def _fillings(self, names: dict[str, int | None]) -> Iterator[State]:
        """The contents that these files may have: all combinations of two unsynced ones; of more, one varies at a time."""
        inodes = sorted({inode for inode in names.values() if inode is not None})
        options = {inode: self._files[inode].contents() for inode in inodes}
        open_ = [inode for inode in inodes if len(options[inode]) > 1]
        if len(open_) <= 2:
            choices = [dict(zip(open_, picked, strict=True)) for picked in itertools.product(*(options[inode] for inode in open_))]
        else:
            choices = [{**{other: options[other][fixed] for other in open_}, inode: content}
                       for fixed in (0, 1) for inode in open_ for content in options[inode]]
        for choice in choices:
            yield {path: None if inode is None else choice.get(inode, options[inode][0]) for path, inode in names.items()}


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _rename(names: dict[str, int | None], change: NameChange) -> None:
    if change.kind == "unlink":
        names.pop(change.path, None)
        return
    if change.kind == "rename":
        names.pop(change.path, None)
    names[change.other] = change.inode


def _reachable(names: dict[str, int | None]) -> dict[str, int | None]:
    """Without what lies in folders that were lost."""
    return {path: inode for path, inode in names.items()
            if all(names.get(parent, 0) is None for parent in itertools.takewhile(lambda p: p != ".", _parents(path)))}


def _parents(path: str) -> Iterator[str]:
    while path != ".":
        path = _folder(path)
        yield path


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    everything = tuple(range(count))
    if count <= MAX_SUBSETS:
        for size in range(count + 1):
            yield from itertools.combinations(everything, size)
        return
    yield from (everything[:end] for end in range(count + 1))
    yield from (everything[:gone] + everything[gone + 1:] for gone in everything)
    draw = random.Random(count)
    yield from (tuple(index for index in everything if draw.random() < 0.5) for _ in range(SAMPLES))


def digest(state: State) -> bytes:
    """A state's identity."""
    mark = hashlib.sha256()
    for path in sorted(state):
        content = state[path]
        mark.update(f"{path}\0{-1 if content is None else len(content)}\0".encode() + (content or b""))
    return mark.digest()


def materialise(state: State, folder: Path) -> None:
    """Write a state into an empty folder."""
    for path in sorted(state):
        content = state[path]
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
            (folder / path).chmod(0o600)
