"""The device's wheel with its cubins inside: built from a checkout, then read back and checked, file by file.

The cubins go to ``agent/jetfleet_agent/cubins``, where the device's pyproject.toml names them as artifacts. Hatch writes wheels with fixed
dates and in a fixed order, so the same checkout and the same compilers give the same bytes.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from jetfleet_contract.bundle import digest_of
from jetfleet_contract.cubins import MAX_CUBIN_BYTES
from jetfleet_contract.errors import InputError, MalformedError, RuntimeFailure, StorageError, UntrustedError
from jetfleet_contract.kernel_sets import WHEEL_FOLDER
from jetfleet_contract.kernels import MANIFEST, MAX_MANIFEST_BYTES, KernelSet, read_kernel_set
from jetfleet_host.kernels.building import Compiler, build
from jetfleet_host.kernels.signed import current_folder
from jetfleet_host.kernels.targets import Target

PACKAGE = "jetfleet_agent"
_INSIDE = f"{PACKAGE}/{WHEEL_FOLDER}"
_BUILD_S = 600.0


class DeviceWheel(msgspec.Struct, frozen=True):
    """A wheel that was read back. Sizes are in bytes; `cubin_bytes` is what its cubins take inside, compressed."""

    path: str
    digest: str
    size: int
    cubin_bytes: int
    kernels: KernelSet


def checkout_agent() -> Path:
    """``agent`` of the checkout that this runs from. InputError `kernels.checkout` for an installed host."""
    folder = Path(__file__).resolve().parents[3] / "agent"
    if not (folder / "pyproject.toml").is_file():
        raise InputError("kernels.checkout", "the device's wheel is built from a checkout, and this jetfleet was installed without one",
                         where="--agent", remedy="clone the repository and give --agent REPOSITORY/agent")
    return folder


def build_wheel(agent: Path, out: Path, targets: Iterable[Target], compiler: Callable[[int], Compiler],
                told: Callable[[str], None]) -> DeviceWheel:
    """Bring the cubins up to date, build the wheel into `out`, and check what is in it.

    Raises:
        InputError: `kernels.checkout` when `agent` is no folder of the device's sources, and as `building.build`.
        RuntimeFailure: `kernels.wheel` with the builder's last line. UntrustedError, MalformedError: as `read_wheel`.
        StorageError: `store.write`.
    """
    if not (agent / "pyproject.toml").is_file() or not (agent / PACKAGE).is_dir():
        raise InputError("kernels.checkout", f"{agent} does not hold the device's sources", where="--agent",
                         remedy="give the folder `agent` of a checkout")
    cubins = agent / PACKAGE / WHEEL_FOLDER
    build(cubins, targets, compiler, told)
    expected = current_folder(cubins)
    told("building the wheel")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".wheel-") as work:
            made = _hatch(agent, Path(work))
            wheel = read_wheel(made)
            if wheel.kernels != expected:
                raise UntrustedError("kernels.wheel", "the wheel does not hold the cubins that were built", where=str(cubins))
            path = made.replace(out / made.name)
    except OSError as error:
        raise StorageError("store.write", f"cannot write to {out}: {error.strerror or error}", where="--out") from None
    return msgspec.structs.replace(wheel, path=str(path))


def read_wheel(path: Path) -> DeviceWheel:
    """The cubins of a device's wheel, each checked against its manifest.

    Raises:
        InputError: `kernels.wheel` when it is no wheel, or was built without cubins.
        UntrustedError: `kernels.digest` for a cubin that is missing or not the one that was built. MalformedError: of the manifest.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            rows = {row.filename: row for row in archive.infolist()}
            if f"{_INSIDE}/{MANIFEST}" not in rows:
                raise InputError("kernels.wheel", f"{path.name} was built without cubins", where=str(path),
                                 remedy="jetfleet kernels wheel --out DIR")
            found = read_kernel_set(_member(archive, rows[f"{_INSIDE}/{MANIFEST}"], MAX_MANIFEST_BYTES))
            inside = 0
            for cubin in found.cubins:
                row = rows.get(f"{_INSIDE}/{cubin.file}")
                if row is None or digest_of(_member(archive, row, MAX_CUBIN_BYTES)) != cubin.digest:
                    raise UntrustedError("kernels.digest", f"{cubin.file} in the wheel is not the cubin that was built", where=str(path))
                inside += row.compress_size
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError("kernels.wheel", f"{path} cannot be read as a wheel: {error}", where=str(path)) from None
    data = path.read_bytes()
    return DeviceWheel(str(path), digest_of(data), len(data), inside, found)


def _member(archive: zipfile.ZipFile, row: zipfile.ZipInfo, limit: int) -> bytes:
    if row.file_size > limit:
        raise MalformedError("kernels.wheel", f"{row.filename} has {row.file_size} bytes, over the limit of {limit}")
    return archive.read(row)


def _hatch(agent: Path, out: Path) -> Path:
    """Run the build backend: the installed one, else the one that pip fetches."""
    if importlib.util.find_spec("hatchling") is not None:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out.resolve())]
    else:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out.resolve()), "."]
    try:
        done = subprocess.run(command, cwd=agent, capture_output=True, text=True, check=False, timeout=_BUILD_S)
    except subprocess.TimeoutExpired:
        raise RuntimeFailure("kernels.wheel", f"the build did not end within {_BUILD_S:.0f} s") from None
    made = next(out.glob("*.whl"), None)
    if done.returncode or made is None:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeFailure("kernels.wheel", f"the wheel is not built: {last[:300]}", where=str(agent))
    return made
