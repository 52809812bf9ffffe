"""One delta: tried in every way that fits, checked by the device's own program, the least one kept, and the reason written down."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jetfleet_contract.delta_format import MAX_FILE, WIDTHS, Header, Record, write_header, write_record
from jetfleet_contract.deltas import WORTH, Method
from jetfleet_contract.errors import RuntimeFailure

from .matching import Base, Bytes, byte_records
from .regions import Region, tensor_regions
from .tensors import tensor_records

PATCHING = "jetfleet_agent.patching"
PATCH_TIMEOUT_S = 600.0
_LEAST_TENSOR = 256
_METHODS: tuple[Method, ...] = ("tensor", "patch", "chunks")


@dataclass(frozen=True)
class Attempt:
    """What one method came to: `size` in bytes, `seconds` of making it."""

    method: Method
    size: int
    seconds: float


@dataclass(frozen=True)
class Made:
    """One (base, target) pair: what was tried, and what became of it. `chosen` is empty when the whole file is the least."""

    base: str
    target: str
    full: int
    attempts: tuple[Attempt, ...]
    chosen: Method | None
    size: int
    reason: str
    apply_s: float = 0.0


@dataclass(frozen=True)
class _File:
    blob: str
    data: Bytes
    regions: tuple[Region, ...]


def make_delta(base: Path, target: Path, out: Path, methods: Sequence[Method] = _METHODS) -> Made:
    """Make the least delta from `base` to `target` (each named by its blob id) and write it to `out`, unless none is worth it.

    Raises:
        RuntimeFailure: `delta.check` when the device's program does not make the target of it.
    """
    old, new = _opened(base), _opened(target)
    attempts, least, chosen = [], b"", None
    for method in methods if max(len(old.data), len(new.data)) <= MAX_FILE and len(old.data) else ():
        begun = time.perf_counter()
        records = _records(method, old, new)
        if records is None:
            continue
        header = write_header(Header(old.blob, len(old.data), new.blob, len(new.data), method))
        body = b"".join([header, *(write_record(record) for record in records)])
        attempts.append(Attempt(method, len(body), time.perf_counter() - begun))
        if chosen is None or len(body) < len(least):
            least, chosen = body, method
    if chosen is None or len(least) > WORTH * len(new.data):
        best = f"the least delta has {len(least) / max(1, len(new.data)):.0%} of it" if chosen else "nothing to start from"
        return Made(old.blob, new.blob, len(new.data), tuple(attempts), None, len(new.data), f"in full: {best}")
    out.write_bytes(least)
    took = _checked(base, out, new.blob)
    return Made(old.blob, new.blob, len(new.data), tuple(attempts), chosen, len(least), _reason(attempts, chosen), took)


def _reason(attempts: Sequence[Attempt], chosen: Method) -> str:
    others = ", ".join(f"{a.method} {a.size:,}" for a in attempts if a.method != chosen)
    return f"least of {len(attempts) + 1} ways" + (f" ({others})" if others else "")


def _opened(path: Path) -> _File:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    data = np.frombuffer(mapped, np.uint8)
    return _File(hashlib.sha256(mapped).hexdigest(), data, tensor_regions(memoryview(mapped)))


def _records(method: Method, old: _File, new: _File) -> list[Record] | None:
    if method == "tensor":
        return _tensor_way(old, new)
    return byte_records(new.data, 0, len(new.data), Base.of(old.data), near=0, refer=method == "patch")


# --- tensors ---------------------------------------------------------------------------------------------------


def _tensor_way(old: _File, new: _File) -> list[Record] | None:
    """Predicted tensors, and whatever lies between them as bytes. None when there is nothing to predict."""
    pairs = dict(_pairs(old, new))
    if not pairs:
        return None
    rest = _rest(old, pairs)
    records: list[Record] = []
    at = near = 0
    for index, origin in sorted(pairs.items()):
        region = new.regions[index]
        records += byte_records(new.data, at, region.offset, rest, near=near, refer=True)
        records += tensor_records(new.data, region, old.data, origin)
        at, near = region.offset + region.length, origin.offset + origin.length
    return records + byte_records(new.data, at, len(new.data), rest, near=near, refer=True)


def _rest(old: _File, pairs: dict[int, Region]) -> Base:
    """The base, its chunks sought only when something large is left that no tensor predicts."""
    predicted = sum(region.length for region in pairs.values())
    return Base(old.data) if predicted > 0.9 * len(old.data) else Base.of(old.data)


def _pairs(old: _File, new: _File) -> Iterator[tuple[int, Region]]:
    """Each tensor of the target with the one of the base that it comes from: the same name; else the same content under another
    name; else, in order, the same type and shape (exporters number what has no name)."""
    wanted = {index: region for index, region in enumerate(new.regions) if region.length >= _LEAST_TENSOR}
    free = {region.name: region for region in old.regions if region.length >= _LEAST_TENSOR}
    for key in (_by_name, _by_content(old, new), _by_shape):
        groups: dict[object, list[str]] = {}
        for name, region in free.items():
            groups.setdefault(key(region, False), []).append(name)
        for index, region in list(wanted.items()):
            names = groups.get(key(region, True))
            if names:
                yield index, free.pop(names.pop(0))
                del wanted[index]


_Key = Callable[[Region, bool], object]


def _by_name(region: Region, _of_target: bool) -> object:
    return region.name, region.kind, region.dims


def _by_shape(region: Region, _of_target: bool) -> object:
    return region.kind, region.dims


def _by_content(old: _File, new: _File) -> _Key:
    def key(region: Region, of_target: bool) -> object:
        data = (new if of_target else old).data
        return region.kind, hashlib.blake2b(data[region.offset:region.offset + region.length].tobytes(), digest_size=16).digest()

    return key


def shared_share(old: Path, new: Path) -> float:
    """Which part of `new`'s bytes are tensors that `old` has too, by name, type and shape: 0..1. Tells cheaply whether to try."""
    a, b = _regions_of(old), _regions_of(new)
    known = {(region.name, region.kind, region.dims) for region in a}
    size = new.stat().st_size
    return sum(r.count * WIDTHS[r.kind] for r in b if (r.name, r.kind, r.dims) in known) / size if size else 0.0


def _regions_of(path: Path) -> tuple[Region, ...]:
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return ()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return tensor_regions(view)


# --- the proof -------------------------------------------------------------------------------------------------


def _checked(base: Path, delta: Path, target: str) -> float:
    """Apply with the program that the boards run, and compare; seconds that it took.

    Raises:
        RuntimeFailure: `delta.check`.
    """
    with tempfile.TemporaryDirectory(prefix="jetfleet-delta-", dir=delta.parent) as folder:
        made = Path(folder) / "target"
        command = [sys.executable, "-m", PATCHING, str(base), str(delta), str(made)]
        begun = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        done = subprocess.run(command, capture_output=True, timeout=PATCH_TIMEOUT_S, check=False, env=environment)
        took = time.perf_counter() - begun
        if done.returncode != 0 or hashlib.sha256(made.read_bytes()).hexdigest() != target:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()[-300:]
            raise RuntimeFailure("delta.check", f"the delta to {target[:16]}... does not make it: {said}", where=str(delta),
                                 remedy="publish with --no-deltas, and report this")
    return took
