"""What a cell of the matrix says: figures, each with where it came from. A floor never stands where a measurement would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from jetfleet_contract.messages import Message

from .pareto import front

Origin = Literal["measured", "floor", "empty"]


class Provenance(Message, frozen=True):
    """On what a latency was measured, or for what it was computed. `provider` and `ran_in` are what the runtime really used; `clocks` are
    MHz by name where the device told them; `taken` is seconds since 1970."""

    device: str = ""
    isa: tuple[str, ...] = ()
    power_mode: str = ""
    clocks: dict[str, float] = {}
    backend: str = ""
    provider: str = ""
    ran_in: str = ""
    threads: int = 0
    runs: int = 0
    software: dict[str, str] = {}
    taken: float = 0.0


class Way(Message, frozen=True):
    """One candidate of the method's bundle on the target: what its accuracy is, and its latency where somebody knows one.

    `accuracy`, `agreement`: 0..1; `drop` in points against fp32 on ONNX Runtime; `size` bytes of the file; latencies in ms of the session
    at batch 1; `peak_mb` of the whole process; `energy_mj` millijoules of one session. None: nobody knows.
    """

    candidate: str
    digest: str
    size: int
    accuracy: float | None = None
    drop: float | None = None
    agreement: float | None = None
    accuracy_on: str = ""
    verdict: Literal["accepted", "refused"] = "refused"
    reason: str = ""
    p50_ms: float | None = None
    p95_ms: float | None = None
    floor_ms: float | None = None
    peak_mb: float | None = None
    energy_mj: float | None = None
    provenance: Provenance = Provenance()

    @property
    def ms(self) -> float:
        """What candidates of one cell are ranked by: measured before computed before nothing."""
        return self.p50_ms if self.p50_ms is not None else float("inf")


class Axis(Message, frozen=True):
    """Where a cell lies."""

    model: str
    target: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.model} / {self.target} / {self.method}"


class Cell(Message, frozen=True):
    """One cell. `way` is the fastest accepted candidate (None in an empty cell), `others` the rest with their reasons; `reason` says why a
    cell is empty, or what is to be known of a full one. `failed`: the next run tries it again."""

    axis: Axis
    key: str
    metric: str
    samples: int
    origin: Origin
    reason: str = ""
    failed: bool = False
    way: Way | None = None
    others: tuple[Way, ...] = ()
    bundle: str = ""

    @property
    def done(self) -> bool:
        """Nothing that this machine could add is missing."""
        return not self.failed and self.origin != "empty"


class Header(Message, frozen=True):
    """What the matrix is of: its axes in order, digests of models and data, and how it was filled. `max_drop` in points."""

    models: tuple[str, ...]
    targets: tuple[str, ...]
    methods: tuple[str, ...]
    data: str
    max_drop: float
    threads: int
    digests: dict[str, str] = {}


class Matrix(Message, frozen=True):
    """A header and the cells that are known, in the header's order."""

    header: Header
    cells: tuple[Cell, ...]


def cell_of(axis: Axis, key: str, metric: str, samples: int, ways: Iterable[Way], bundle: str) -> Cell:
    """The cell that these candidates make: the fastest accepted one that was measured, else the least floor, else empty and why."""
    every = list(ways)
    accepted = [way for way in every if way.verdict == "accepted"]
    measured = sorted((way for way in accepted if way.p50_ms is not None), key=lambda way: (way.ms, way.candidate))
    computed = sorted((way for way in accepted if way.floor_ms is not None), key=lambda way: (way.floor_ms or 0.0, way.candidate))
    best = next(iter(measured or computed), None)
    others = tuple(way for way in every if way is not best)
    if best is None:
        return Cell(axis, key, metric, samples, "empty", _why_empty(every), others=others, bundle=bundle)
    origin: Origin = "measured" if measured else "floor"
    return Cell(axis, key, metric, samples, origin, best.reason, way=best, others=others, bundle=bundle)


def _why_empty(ways: Sequence[Way]) -> str:
    if not ways:
        return "the method made nothing that this target runs"
    refused = [way for way in ways if way.verdict == "refused"]
    told = refused if len(refused) == len(ways) else [way for way in ways if way.verdict == "accepted"]
    by_reason: dict[str, list[str]] = {}
    for way in told:
        by_reason.setdefault(way.reason, []).append(way.candidate)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def failed_cell(axis: Axis, key: str, reason: str) -> Cell:
    """A cell whose build or measurement ended in an error: the matrix goes on without it."""
    return Cell(axis, key, "", 0, "empty", reason, failed=True)


def pareto(cells: Sequence[Cell]) -> frozenset[Axis]:
    """The cells that no other of the same model and target dominates in latency and accuracy; measured and computed latencies are never
    compared with each other."""
    found: set[Axis] = set()
    groups: dict[tuple[str, str, str], list[tuple[Axis, tuple[float, float]]]] = {}
    for cell in cells:
        if cell.way is None or cell.way.accuracy is None:
            continue
        ms = cell.way.p50_ms if cell.origin == "measured" else cell.way.floor_ms
        if ms is not None:
            groups.setdefault((cell.axis.model, cell.axis.target, cell.origin), []).append((cell.axis, (ms, cell.way.accuracy)))
    for group in groups.values():
        found.update(group[index][0] for index in front([point for _, point in group]))
    return frozenset(found)
