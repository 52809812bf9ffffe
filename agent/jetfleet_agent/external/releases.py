"""Releases on disk, and the symlink that says which one is current.

``releases/BUNDLE`` holds ``model.onnx`` (or ``model.plan``: the chosen weights), ``labels.txt``, ``config.json`` and ``release.json``;
BUNDLE is the first 16 hex digits of the bundle's digest. ``current`` and ``previous`` are relative symlinks, replaced by rename, so that
a reader always finds one whole release.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from jetfleet_agent.durable import make_folder, sync_folder, write_file
from jetfleet_agent.ipc import Model
from jetfleet_contract.errors import MalformedError, StorageError
from jetfleet_contract.messages import AppConfig

_DIGITS = 16
_PREPARED = ".prepared"


class Releases:
    """The folder of one app. All errors are StorageError `external.folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._releases = folder / "releases"

    @property
    def current(self) -> str:
        """The release that ``current`` names; empty when there is none."""
        return _named(self._folder / "current")

    @property
    def previous(self) -> str:
        """The one before."""
        return _named(self._folder / "previous")

    def path(self, release: str) -> Path:
        return self._releases / release

    def lay_out(self, model: Model, config: AppConfig) -> str:
        """Make the model's release folder, whole, if it is not there; its settings are written anew. Returns the release's name."""
        release = name_of(model.bundle)
        folder = self.path(release)
        try:
            if not folder.is_dir():
                self._make(folder, model)
            write_file(folder / "config.json", msgspec.json.encode(config))
        except OSError as error:
            raise _failed(folder, error) from None
        return release

    def _make(self, folder: Path, model: Model) -> None:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        weights = Path(model.path)
        target = partial / ("model.plan" if model.candidate.backend == "tensorrt" and weights.suffix == ".plan" else "model.onnx")
        try:
            os.link(weights, target)  # no second copy where both lie on one disk
        except OSError:
            shutil.copyfile(weights, target)
        write_file(partial / "labels.txt", "".join(f"{label}\n" for label in model.spec.task.labels).encode())
        write_file(partial / "release.json", msgspec.json.encode({
            "bundle": model.bundle, "name": model.spec.name, "version": model.version, "candidate": model.candidate.name,
            "task": model.spec.task}))
        partial.rename(folder)
        sync_folder(folder.parent)

    def is_prepared(self, release: str) -> bool:
        """Whether `mark_prepared` was said of it: preparing may take minutes, and is not repeated for a mere restart."""
        return (self.path(release) / _PREPARED).exists()

    def mark_prepared(self, release: str) -> None:
        write_file(self.path(release) / _PREPARED, b"")

    def switch(self, release: str) -> None:
        """Point ``current`` at it, and ``previous`` at what was current. Nothing changes when it is already."""
        before = self.current
        if before == release:
            return
        try:
            if before:
                self._point("previous", before)
            self._point("current", release)
        except OSError as error:
            raise _failed(self._folder, error) from None

    def _point(self, name: str, release: str) -> None:
        fresh = self._folder / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("releases") / release)
        fresh.replace(self._folder / name)
        sync_folder(self._folder)

    def prune(self) -> None:
        """Drop releases that are neither current nor previous; what cannot be dropped now is tried at the next switch."""
        kept = {self.current, self.previous}
        for folder in self._releases.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def name_of(bundle: str) -> str:
    """A release's name; MalformedError `external.bundle` unless `bundle` is a digest in hex."""
    if len(bundle) != 64 or bundle.strip("0123456789abcdef"):
        raise MalformedError("external.bundle", f"{bundle[:80]!r} is no bundle digest")
    return bundle[:_DIGITS]


def _named(link: Path) -> str:
    try:
        return link.readlink().name
    except OSError:
        return ""


def _failed(folder: Path, error: OSError) -> StorageError:
    return StorageError("external.folder", f"cannot lay out a release in {folder}: {error.strerror or error}", where=str(folder),
                        remedy="check that the folder of [external.APP] is on a disk with space and belongs to the agent's user")
