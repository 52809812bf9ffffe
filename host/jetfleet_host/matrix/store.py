"""The matrix on disk: finished cells, each a file that is there whole or not at all, so that a killed run goes on where it was.

    F/matrix.json           the header
    F/cells/<key>.json      one cell; its key is the digest of all that it depends on
    F/bundles/<key>/        what a method made of a model; F/cache/ finished stages of builds
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from jetfleet_contract.errors import InputError, MalformedError, StorageError
from jetfleet_contract.messages import decode, encode
from jetfleet_host.durable import sweep_partials, write_file

from .cells import Axis, Cell, Header, Matrix

HEADER = "matrix.json"
MAX_CELL_BYTES = 4 << 20


def is_matrix(folder: Path) -> bool:
    """True for a folder that `MatrixStore` wrote."""
    return (folder / HEADER).is_file()


class MatrixStore:
    """See the module. StorageError `matrix.store`, `store.write` when the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundles, self.cache, self._cells = folder / "bundles", folder / "cache", folder / "cells"

    def begin(self, header: Header) -> Header:
        """Make the folder, or go on in it: axes of an earlier run on the same data stay, and new ones come behind.

        Raises:
            InputError: `matrix.other` when the folder holds something else, or a matrix of other data, models or settings.
        """
        if self.folder.exists() and not is_matrix(self.folder) and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError("matrix.other", f"{self.folder} holds something that is no matrix", where=str(self.folder),
                             remedy="give another --out")
        if is_matrix(self.folder):
            header = _joined(load_header(self.folder), header, self.folder)
        try:
            for folder in (self.bundles, self.cache, self._cells):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError("matrix.store", f"cannot make {self.folder}: {error.strerror}", where=str(self.folder),
                               remedy="give a writable folder with --out") from None
        sweep_partials(self._cells)
        write_file(self.folder / HEADER, encode(header))
        return header

    def keep(self, cell: Cell) -> None:
        write_file(self._cells / f"{cell.key}.json", encode(cell))

    def find(self, key: str) -> Cell | None:
        """The cell kept under that key; None when there is none, or its file is damaged: it is made again."""
        try:
            cell = decode((self._cells / f"{key}.json").read_bytes(), Cell, limit=MAX_CELL_BYTES)
        except (OSError, MalformedError):
            return None
        return cell if cell.key == key else None

    def matrix(self) -> Matrix:
        """What is known by now; of an axis that was filled twice with other settings the newest cell.

        Raises:
            InputError: `matrix.none`; MalformedError when the header is damaged.
        """
        header = load_header(self.folder)
        newest: dict[Axis, tuple[int, Cell]] = {}
        for path in sorted(self._cells.glob("[0-9a-f]*.json")):
            cell = self.find(path.stem)
            if cell is None:
                continue
            written = path.stat().st_mtime_ns
            if cell.axis not in newest or newest[cell.axis][0] < written:
                newest[cell.axis] = (written, cell)
        order = [Axis(model, target, method) for model in header.models for target in header.targets for method in header.methods]
        return Matrix(header, tuple(newest[axis][1] for axis in order if axis in newest))


def load_header(folder: Path) -> Header:
    """Raises InputError `matrix.none`; MalformedError `message.*` when it is damaged."""
    try:
        data = (folder / HEADER).read_bytes()
    except OSError:
        raise InputError("matrix.none", f"there is no matrix in {folder}", where=str(folder),
                         remedy="make one: jetfleet matrix --models ... --out FOLDER") from None
    return decode(data, Header, limit=MAX_CELL_BYTES)


def _joined(old: Header, new: Header, folder: Path) -> Header:
    differs = [name for name in ("data", "max_drop", "threads") if getattr(old, name) != getattr(new, name)]
    differs += [f"model {name}" for name, digest in new.digests.items() if old.digests.get(name, digest) != digest]
    if differs:
        raise InputError("matrix.other", f"{folder} holds a matrix with other {', '.join(differs)}: its cells would not compare",
                         where=str(folder), remedy="give another --out")

    def merged(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*first, *second)))

    return msgspec.structs.replace(new, models=merged(old.models, new.models), targets=merged(old.targets, new.targets),
                                   methods=merged(old.methods, new.methods), digests={**old.digests, **new.digests})
