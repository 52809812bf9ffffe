"""Keeps the board's kernels as new as the signed metadata says: the manifest, then the cubins of this board's SM, each fetched as any
blob is.

They lie in ``STATE/kernels``, laid out as in the wheel. The manifest is written last, so a power cut leaves the old set, or a set whose
file does not match and is passed over until the next start mends it. A pipeline loads what it finds when it starts. A set may be older than
this agent and lack a kernel: it is kept, and whoever needs that kernel passes it over.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from jetfleet_agent.cubin_files import check_bytes, read_checked, read_manifest
from jetfleet_agent.durable import need_folder, write_file
from jetfleet_contract.cubins import MAX_CUBIN_BYTES
from jetfleet_contract.errors import IncompatibleError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.kernel_sets import INTERFACE, KernelsTarget, cubins_for
from jetfleet_contract.kernels import MANIFEST, MAX_MANIFEST_BYTES, CubinFile, read_kernel_set
from jetfleet_contract.messages import Instant

from .delegated import Reading, Wanting

log = logging.getLogger(__name__)

AGAIN_S = 60.0
SETTLED_S = 3600.0


class Vouching(Protocol):
    """What is used of a TrustStore."""

    def kernels(self, interface: int) -> KernelsTarget | None: ...


class SignedKernels:
    """See the module. Used by the control thread only.

    Args:
        folder: ``STATE/kernels``.
        sm: of this board's GPU; 0: it has none, and no kernels are fetched.
    """

    def __init__(self, folder: Path, sm: int, trust: Vouching, store: Reading, fetcher: Wanting, clock: Callable[[], Instant]) -> None:
        self._folder = folder
        self._sm = sm
        self._trust = trust
        self._store = store
        self._fetcher = fetcher
        self._clock = clock
        self._target: KernelsTarget | None = None
        self._manifest = b""
        self._missing: dict[str, tuple[CubinFile, ...]] = {}  # files by blob: two compilers may make the same bytes
        self._refused = ""
        self._again_at = 0.0

    def follow(self) -> None:
        """New metadata, or the broker is back: see whether something is to be fetched."""
        self._again_at = 0.0

    def tick(self) -> float:
        """Ask for what is missing; seconds until the next call is wanted. Wanting twice is fine: others may have cancelled the fetch."""
        now = self._clock().mono
        if now >= self._again_at:
            self._again_at = now + (AGAIN_S if self._sm and self._look() else SETTLED_S)
        return self._again_at - now

    def _look(self) -> bool:
        """Whether something is on its way."""
        target = self._trust.kernels(INTERFACE)
        if target is None:
            self._withdraw()
            return False
        if target.manifest == self._refused or (self._target is None and self._is_here(target)):
            return False
        if self._target is None or self._target.manifest != target.manifest:
            self._target, self._manifest, self._missing = target, b"", {}
        for blob in tuple(self._missing) or (target.manifest,):
            self._fetcher.want(blob, target.every()[blob])
        return True

    def _is_here(self, target: KernelsTarget) -> bool:
        try:
            if hashlib.sha256((self._folder / MANIFEST).read_bytes()).hexdigest() != target.manifest:
                return False
            found = read_manifest(self._folder)
            if found is None:
                return False
            for cubin in cubins_for(found, self._sm):
                read_checked(self._folder, cubin, frozenset(found.kernels))
        except (JetfleetError, OSError):
            return False
        return True

    def _withdraw(self) -> None:
        """The host vouches for none any more: the wheel's serve again."""
        self._target, self._refused = None, ""
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            path.unlink(missing_ok=True)
            log.info("signed kernels withdrawn: %s is gone", path.name)

    def blob_done(self, blob: str) -> None:
        """A blob came: is it of the set?

        Raises:
            UntrustedError: `kernels.unsigned`, `kernels.digest`. MalformedError, IncompatibleError: of the manifest and the cubins; the set
                is then passed over until the host signs another. StorageError: `store.write`: `tick` tries again.
        """
        target = self._target
        if target is None or (blob != target.manifest and blob not in self._missing):
            return
        try:
            if blob == target.manifest:
                self._take_manifest(target)
            else:
                self._take_cubin(target, blob)
        except (MalformedError, UntrustedError, IncompatibleError):
            self._target, self._refused = None, target.manifest
            raise

    def _take_manifest(self, target: KernelsTarget) -> None:
        self._manifest = self._store.read(target.manifest, MAX_MANIFEST_BYTES)
        wanted: dict[str, tuple[CubinFile, ...]] = {}
        for cubin in cubins_for(read_kernel_set(self._manifest), self._sm):
            blob = cubin.digest.removeprefix("sha256:")
            if blob not in target.blobs:
                raise UntrustedError("kernels.unsigned", f"{cubin.file} of the signed manifest is not in its signed target")
            wanted[blob] = (*wanted.get(blob, ()), cubin)
        need_folder(self._folder)
        self._missing = wanted
        for blob in tuple(wanted):
            self._fetcher.want(blob, target.blobs[blob])

    def _take_cubin(self, target: KernelsTarget, blob: str) -> None:
        data, kernels = self._store.read(blob, MAX_CUBIN_BYTES), frozenset(read_kernel_set(self._manifest).kernels)
        for cubin in self._missing[blob]:
            check_bytes(data, cubin, kernels)
            write_file(self._folder / cubin.file, data)
        del self._missing[blob]
        if not self._missing:
            self._complete(target)

    def _complete(self, target: KernelsTarget) -> None:
        write_file(self._folder / MANIFEST, self._manifest)
        kept = {MANIFEST, *(cubin.file for cubin in cubins_for(read_kernel_set(self._manifest), self._sm))}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)
        self._target = None
        log.info("kernels %s are here for sm_%d; the next start of a pipeline loads them", target.manifest[:16], self._sm)

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        """It cannot be had now; `tick` asks again."""
        target = self._target
        if target is not None and (blob == target.manifest or blob in self._missing):
            log.warning("kernels cannot be had: %s [%s]", error.what, error.code)
