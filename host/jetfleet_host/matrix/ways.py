"""The candidates of a bundle on a target: what is known of each one's accuracy, latency here, floor there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from jetfleet_contract.boards import BoardFile, allowed_precisions, withheld_precisions
from jetfleet_contract.bundle import EvaluationRow
from jetfleet_contract.errors import InputError
from jetfleet_contract.policy import PRECISIONS_OF
from jetfleet_contract.roofline import Floor, floor, modes_with_peak
from jetfleet_host.bundles import OpenBundle
from jetfleet_host.compress.checkpoints import library_versions
from jetfleet_host.compress.scoring import BACKENDS
from jetfleet_host.compress.timing import Timing
from jetfleet_host.network_work import work_of

from .cells import Provenance, Way
from .machine import ThisMachine
from .methods import Method

# TensorRT runs on no machine that builds, so another runtime's answers stand for its accuracy, in this order.
_STAND_INS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Measured:
    """A file on a runtime in a precision: what one timing is of."""

    digest: str
    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.digest}@{self.backend}:{self.precision}"


def measured_ways(bundle: OpenBundle, method: Method, boards: Iterable[BoardFile], machine: ThisMachine) -> list[Measured]:
    """What to time here for some targets that this machine is: accepted candidates that one of them may run."""
    digests = {variant.name: variant.digest for variant in bundle.spec.variants}
    return [Measured(digests[row.variant], row.backend, row.precision) for row in method.rows(bundle.evaluation.rows)
            if row.variant in digests and any(not _withheld(row.backend, row.precision, board, machine.flags) for board in boards)]


def ways_of(bundle: OpenBundle, method: Method, board: BoardFile, machine: ThisMachine, timings: Mapping[Measured, Timing],
            threads: int, taken: float) -> list[Way]:
    """Every candidate of the method on the board, with all that is known of it.

    Args:
        timings: of this machine, by what was timed. taken: when, seconds since 1970.
    """
    here = machine.is_a(board)
    found = []
    for row in method.rows(bundle.evaluation.rows):
        if row.backend in BACKENDS and board.rule(row.backend) is not None:
            way = _judged(bundle, row, row.backend, board, machine.flags if here else None)
            found.append(_timed(way, row, timings, machine, threads, taken) if here else _elsewhere(way, board))
    found += _tensorrt_ways(bundle, method, board)
    return found


def _tensorrt_ways(bundle: OpenBundle, method: Method, board: BoardFile) -> list[Way]:
    rule = board.rule("tensorrt")
    if rule is None:
        return []
    stand_ins: dict[tuple[str, str], EvaluationRow] = {}
    for backend in reversed(_STAND_INS):
        stand_ins.update({(row.variant, row.precision): row for row in method.rows(bundle.evaluation.rows) if row.backend == backend})
    kinds = {variant.name: variant.precision for variant in bundle.spec.variants}
    found = []
    for (variant, precision), row in sorted(stand_ins.items()):
        if precision not in PRECISIONS_OF.get((kinds.get(variant, variant), "tensorrt"), ()):
            continue
        way = _judged(bundle, row, "tensorrt", board, None)
        found.append(_with_floor(bundle, variant, precision, way, board) if way.verdict == "accepted" else way)
    return found


def _judged(bundle: OpenBundle, row: EvaluationRow, backend: str, board: BoardFile, flags: frozenset[str] | None) -> Way:
    """The candidate with the evaluation's word, and the board file's on what the board runs at all."""
    digest = next((variant.digest for variant in bundle.spec.variants if variant.name == row.variant), "")
    ran = row.samples > 0
    on = f"{row.backend} on {bundle.evaluation.machine}"
    note = "" if row.origin == "measured" else ", rounding simulated"
    stands = "" if backend == row.backend else f", standing in for {backend}"
    way = Way(f"{row.variant}@{backend}:{row.precision}", digest, row.size, row.accuracy if ran else None, row.drop if ran else None,
              row.agreement if ran else None, f"{on}{note}{stands}", row.verdict, row.reason)
    withheld = _withheld(backend, row.precision, board, flags)
    return msgspec.structs.replace(way, verdict="refused", reason=withheld) if withheld else way


def _withheld(backend: str, precision: str, board: BoardFile, flags: frozenset[str] | None) -> str:
    """Why the board does not run that; "" when it does. `flags` None: the board's own CPU is not here to be asked."""
    rule = board.rule(backend)
    if rule is None:
        return f"{board.board} has no {backend}"
    allowed: Sequence[str] = rule.precisions if flags is None else allowed_precisions(rule, flags)
    if precision in allowed:
        return ""
    return (withheld_precisions(rule, flags).get(precision, "") if flags is not None else "") or \
        f"{backend} does not run {precision} on {board.board}"


def _timed(way: Way, row: EvaluationRow, timings: Mapping[Measured, Timing], machine: ThisMachine, threads: int, taken: float) -> Way:
    timing = timings.get(Measured(way.digest, row.backend, row.precision))
    if way.verdict != "accepted" or timing is None:
        return way
    if timing.error or not timing.samples:
        return msgspec.structs.replace(way, verdict="refused", reason=f"does not run here: {timing.error or 'no round was timed'}")
    if timing.ran_in != row.precision:
        return msgspec.structs.replace(way, verdict="refused", reason=f"asked for {row.precision}, the runtime ran it in {timing.ran_in}")
    clocks = {"cpu": machine.mhz} if machine.mhz else {}
    provenance = Provenance(machine.cpu, machine.isa, "", clocks, row.backend, timing.provider, timing.ran_in, threads,
                            len(timing.samples), library_versions(), taken)
    return msgspec.structs.replace(way, p50_ms=round(timing.quantile(0.5), 3), p95_ms=round(timing.quantile(0.95), 3),
                                   peak_mb=round(timing.peak_rss_mb, 1), provenance=provenance)


def _elsewhere(way: Way, board: BoardFile) -> Way:
    """A CPU runtime on a board that this machine is not: nothing can be said of its latency."""
    if way.verdict != "accepted":
        return way
    return msgspec.structs.replace(way, reason=f"not measured: no {board.board} is here, and no record of one was given")


def _with_floor(bundle: OpenBundle, variant: str, precision: str, way: Way, board: BoardFile) -> Way:
    """The least floor over the board's power modes, with the mode that it is of."""
    try:
        work = work_of(bundle.blob_path(bundle.spec.variant(variant).digest))
    except InputError as error:
        return msgspec.structs.replace(way, reason=f"no floor: {error.what}")
    floors: list[tuple[Floor, str]] = [(least, mode.name) for mode in modes_with_peak(board)
                                       if (least := floor(work, board, mode, precision)) is not None]
    if not floors:
        return msgspec.structs.replace(way, reason=f"no floor: the board file of {board.board} knows no peak for {precision}")
    least, mode = min(floors, key=lambda pair: pair[0].ms)
    provenance = Provenance(f"{board.board}, computed from its board file", power_mode=mode, backend="tensorrt", ran_in=precision)
    return msgspec.structs.replace(way, floor_ms=float(f"{least.ms:.4g}"), provenance=provenance,
                                   reason=f"{way.reason}; floor bound by {least.bound}, {way.accuracy_on.rpartition(', ')[2]}")
