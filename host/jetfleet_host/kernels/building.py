"""A folder of cubins: what is missing or made by other means is compiled, each is checked by its ELF headers, then the manifest is written.

Same source, same compilers, same bytes. A folder with a manifest holds what the manifest says, or `read_folder` names what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_contract.bundle import digest_of
from jetfleet_contract.cubins import MAX_CUBIN_BYTES, check_cubin
from jetfleet_contract.errors import InputError, JetfleetError, StorageError, UntrustedError
from jetfleet_contract.kernel_sets import INTERFACE
from jetfleet_contract.kernels import MANIFEST, NAMES, SOURCES, CubinFile, KernelSet, read_kernel_set
from jetfleet_contract.messages import encode
from jetfleet_host.durable import write_file
from jetfleet_host.kernels import nvrtc, toolchains
from jetfleet_host.kernels.targets import TOOLCHAINS, Target

UNIT = "jetfleet.cu"  # what the compiler calls all sources together; its messages name the file itself


class Compiler(Protocol):
    """What makes a cubin of a source for an SM."""

    version: str

    def compile(self, source: str, name: str, sm: int) -> bytes: ...


class Built(msgspec.Struct, frozen=True):
    """One cubin of a build. `fresh`: compiled now; else it was there and is the same."""

    cubin: CubinFile
    fresh: bool


def source() -> str:
    """The whole text that is compiled: every file of the contract's table, one after the other."""
    return "".join(f'#line 1 "{name}"\n{source_of(name)}' for name in SOURCES)


def source_of(name: str) -> str:
    """One file, and a line for each of its variants."""
    text = resources.files(__package__).joinpath(name).read_text()
    return "\n".join((text, *SOURCES[name], ""))


def source_digest() -> str:
    """SHA-256 of `source`, as manifests name it."""
    return "sha256:" + hashlib.sha256(source().encode()).hexdigest()


def open_compiler(cuda: int, cache: Path, fetch: bool, told: Callable[[str], None]) -> Compiler:
    """The compiler of that CUDA major, fetched when `fetch` allows it.

    Raises:
        IncompatibleError: `kernels.toolchain` when it is missing, `kernels.nvrtc`.
        TransportError, StorageError: as `toolchains.install` and `toolchains.find`.
    """
    toolchain = TOOLCHAINS[cuda]
    libraries = toolchains.find(toolchain, cache)
    if libraries is None:
        if not fetch:
            raise toolchains.missing(toolchain, cache)
        told(f"fetching {toolchain.requirement} ({toolchain.megabytes} MB)")
        libraries = toolchains.install(toolchain, cache)
    return nvrtc.Nvrtc(libraries, toolchain.version)


def build(out: Path, targets: Iterable[Target], compiler: Callable[[int], Compiler], told: Callable[[str], None]) -> list[Built]:
    """Bring `out` up to date for `targets`; what it holds for others and is of the same source stays, older cubins go.

    Raises:
        InputError: `kernels.out` when `out` is no folder or holds something else.
        RuntimeFailure, IncompatibleError, StorageError: of the compiler and the disk; the folder's manifest is then still the old one.
    """
    _usable(out)
    text = source()
    digest = source_digest()
    kept = _still_good(out, digest)
    done: list[Built] = []
    compilers: dict[int, Compiler] = {}
    for target in targets:
        old = kept.get(target.file)
        if old and old.nvrtc == TOOLCHAINS[target.cuda].version:
            done.append(Built(old, fresh=False))
            continue
        if target.cuda not in compilers:
            compilers[target.cuda] = compiler(target.cuda)
        chosen = compilers[target.cuda]
        told(f"sm_{target.sm}, NVRTC {chosen.version}")
        data = chosen.compile(text, UNIT, target.sm)
        check_cubin(data, target.sm, NAMES)
        write_file(out / target.file, data)
        done.append(Built(CubinFile(target.file, target.sm, target.cuda, chosen.version, digest_of(data), len(data)), fresh=True))
    cubins = {**kept, **{built.cubin.file: built.cubin for built in done}}
    manifest = KernelSet(digest, nvrtc.OPTIONS, tuple(sorted(NAMES)), tuple(cubins[name] for name in sorted(cubins)), INTERFACE)
    data = encode(manifest)
    if not (out / MANIFEST).is_file() or (out / MANIFEST).read_bytes() != data:
        write_file(out / MANIFEST, data)
    for path in out.glob("*.cubin"):
        if path.name not in cubins:
            path.unlink()
    return done


def read_folder(folder: Path) -> KernelSet:
    """A folder's manifest, after every cubin was checked: digest, SM, kernels.

    Raises:
        InputError: `kernels.folder` when there is no manifest.
        UntrustedError: `kernels.digest` when a cubin is not the one that was built.
        StorageError: `kernels.read`; MalformedError, IncompatibleError: as `read_kernel_set` and `check_cubin`.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError("kernels.folder", f"{folder} holds no {MANIFEST}", remedy=f"jetfleet kernels build --out {folder}")
    found = read_kernel_set(_read(folder / MANIFEST))
    for cubin in found.cubins:
        _checked(folder, cubin, frozenset(found.kernels))
    return found


def _checked(folder: Path, cubin: CubinFile, kernels: frozenset[str]) -> None:
    path = folder / cubin.file
    data = _read(path)
    if len(data) != cubin.size or digest_of(data) != cubin.digest:
        raise UntrustedError("kernels.digest", f"{cubin.file} is not the cubin that was built", where=str(path),
                             remedy=f"jetfleet kernels build --out {folder}")
    check_cubin(data, cubin.sm, kernels)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_CUBIN_BYTES + 1)
    except OSError as error:
        raise StorageError("kernels.read", f"cannot read {path.name}: {error.strerror or error}", where=str(path),
                           remedy="build the folder again: jetfleet kernels build") from None


def _usable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("kernels.out", f"{out} is no folder", where="--out", remedy="give a new folder")
    foreign = [] if not out.is_dir() else [path.name for path in out.iterdir() if path.name != MANIFEST and path.suffix != ".cubin"
                                           and not path.name.startswith(".")]
    if foreign:
        raise InputError("kernels.out", f"{out} holds other things, {min(foreign)} for one", where="--out",
                         remedy="give a folder for the cubins alone")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("store.write", f"cannot make {out}: {error.strerror or error}", where=str(out)) from None


def _still_good(out: Path, digest: str) -> dict[str, CubinFile]:
    """The cubins of `out` that are whole and of this source; a folder that cannot be read has none."""
    try:
        found = read_kernel_set(_read(out / MANIFEST))
    except JetfleetError:
        return {}
    if (found.source, found.options, found.interface) != (digest, nvrtc.OPTIONS, INTERFACE):
        return {}
    good = {}
    for cubin in found.cubins:
        try:
            _checked(out, cubin, NAMES)
        except JetfleetError:
            continue
        good[cubin.file] = cubin
    return good
