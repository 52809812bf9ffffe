"""Decisions that are plain arithmetic: which candidate a board runs, and when to try again.

Choice of variant, in this order: what the board supports, the accuracy bound of the signed evaluation, the memory
budget, then a measurement on the board itself. Every candidate keeps its row and its reason, so that `explain` can
print the whole table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Literal

import msgspec

from .bundle import Evaluation, EvaluationRow, ModelSpec, Variant
from .engine_use import Judged
from .messages import AppState, Capability, Message
from .tuning import CLEARLY_LESS_CPU, ECO_SLOWEST, TuningChoice

# Execution precisions of a weight file on a backend, in the order a board should try them.
PRECISIONS_OF = {
    ("fp32", "onnxruntime"): ("fp32",),
    ("fp32", "openvino"): ("bf16", "fp32"),
    ("fp32", "tensorrt"): ("fp32",),
    ("fp32", "tensorrt-rtx"): ("fp32",),
    ("fp16", "onnxruntime"): ("fp16",),
    ("fp16", "openvino"): ("fp16",),
    ("fp16", "tensorrt"): ("fp16",),
    ("fp16", "tensorrt-rtx"): ("fp16",),
    ("int8", "onnxruntime"): ("int8",),
    ("int8", "openvino"): ("int8",),
    ("int8", "tensorrt"): ("int8",),
    ("int8", "tensorrt-rtx"): ("int8",),
    ("uint8", "onnxruntime"): ("int8",),
    ("uint8", "openvino"): ("int8",),
}


# CPU flags of instructions that multiply bytes and add the products up in 32 bits.
WIDE_SUMS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# A candidate that the builder, on the same architecture, saw this much slower than its fastest is not measured here: no
# difference between two machines of one architecture that we have seen comes near it.
SHORTLIST_RATIO = 2.5
# Two medians nearer than this are within the noise of one run: they are measured again, in turns.
TIE_RATIO = 1.10
MAX_CONTENDERS = 3
CPU_BACKENDS = frozenset({"onnxruntime", "openvino"})


class Candidate(Message, frozen=True):
    """One way to run a model on a board. Its name, `variant@backend:precision`, is what telemetry is keyed by."""

    variant: str
    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.variant}@{self.backend}:{self.precision}"


class Measurement(Message, frozen=True):
    """What the board measured of one candidate: session ms and peak memory; `error` when it could not run.

    `best_ms` is the fastest single run: what the candidate could do if nothing disturbed it. `empty_rss_mb` is the process before it
    loaded the model (0: not known). `cpu_ms` is the CPU time of one session, all threads together (0: not known). `gpu_work` is
    the evaluation's.
    """

    p50_ms: float = 0.0
    p99_ms: float = 0.0
    peak_rss_mb: float = 0.0
    error: str = ""
    best_ms: float = 0.0
    empty_rss_mb: float = 0.0
    cpu_ms: float = 0.0
    gpu_work: str = ""


class ChoiceRow(Message, frozen=True):
    """A candidate with the board's verdict: chosen, eligible (slower), or refused with the reason. `gpu_work`: as it was measured."""

    candidate: Candidate
    verdict: Literal["chosen", "eligible", "refused"]
    reason: str
    accuracy: float = 0.0
    drop: float = 0.0
    p50_ms: float = 0.0
    origin: Literal["measured", "builder", "none"] = "none"
    gpu_work: str = ""


class Choice(Message, frozen=True):
    """The table behind a board's choice; `chosen` is None when nothing can run. `tuning` is how its runtime is set up here."""

    rows: tuple[ChoiceRow, ...]
    chosen: Candidate | None = None
    tuning: TuningChoice = TuningChoice()


class Explanation(Message, frozen=True):
    """The answer to the command `explain`: per app what it runs, the table behind the last choice made since the agent's start, and in
    `engines` how it gets its compiled engine, or why it has none. `judged`: every engine of the apps' bundles that was judged."""

    apps: dict[str, AppState]
    choices: dict[str, Choice]
    engines: dict[str, str] = {}
    judged: tuple[Judged, ...] = ()


def candidates(spec: ModelSpec) -> tuple[Candidate, ...]:
    """Every (variant, backend, precision) that the bundle could run as, in the bundle's order."""
    return tuple(
        Candidate(variant.name, backend, precision)
        for variant in spec.variants
        for backend in ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
        for precision in PRECISIONS_OF.get((variant.precision, backend), ())
    )


def worth_measuring(spec: ModelSpec, evaluation: Evaluation, capability: Capability, *, memory_mb: float = 0.0) -> tuple[Candidate, ...]:
    """The candidates that pass every check that needs no measurement: what a board downloads and measures."""
    table = choose(spec, evaluation, capability, {}, memory_mb=memory_mb)
    return tuple(row.candidate for row in table.rows if row.verdict != "refused")


def choose(
    spec: ModelSpec,
    evaluation: Evaluation,
    capability: Capability,
    measured: dict[str, Measurement],
    *,
    memory_mb: float = 0.0,
    skipped: Mapping[str, str] | None = None,
) -> Choice:
    """Choose the fastest candidate that the board supports and the evaluation accepts.

    Args:
        measured: by candidate name; a candidate without one is ranked behind all measured ones, by the builder's
            figure.
        skipped: by candidate name, why it was left out (`slower_at_builder`); a measurement overrides it.
        memory_mb: budget for one model's process; 0 means none.

    Returns:
        The whole table, best first, refused rows last.
    """
    left_out = skipped or {}
    rows = [_leave_out(_judge(candidate, spec, evaluation, capability, measured.get(candidate.name), memory_mb),
                       "" if candidate.name in measured else left_out.get(candidate.name, ""))
            for candidate in candidates(spec)]
    eligible = sorted((row for row in rows if row.verdict == "eligible"), key=_rank)
    refused = [row for row in rows if row.verdict == "refused"]
    if not eligible:
        return Choice(tuple(refused), None)
    best, rest = eligible[0], eligible[1:]
    chosen = msgspec.structs.replace(best, verdict="chosen", reason=_why_chosen(best, rest))
    slower = [msgspec.structs.replace(row, reason=_why_slower(row, best)) for row in rest]
    return Choice((chosen, *slower, *refused), best.candidate)


def slower_at_builder(spec: ModelSpec, evaluation: Evaluation, capability: Capability, *, memory_mb: float = 0.0,
                      max_ratio: float = SHORTLIST_RATIO) -> dict[str, str]:
    """The candidates that need no measurement here because the builder saw them far slower than its fastest.

    Only figures that the builder measured on the board's own architecture count (`Evaluation.software["arch"]`): what
    int8 costs on x86 says nothing about Arm. A candidate that the builder could not measure is never left out.

    Returns:
        The reason by candidate name.
    """
    if evaluation.software.get("arch", "") != capability.arch:
        return {}
    figures: dict[str, float] = {}
    for candidate in worth_measuring(spec, evaluation, capability, memory_mb=memory_mb):
        row = _evaluation_row(evaluation, candidate, spec.variant(candidate.variant))
        if row is not None and row.origin == "measured" and row.latency_p50_ms > 0:
            figures[candidate.name] = row.latency_p50_ms
    fastest = min(figures.values(), default=0.0)
    return {name: f"not measured here: the builder saw {ms:.2f} ms, {ms / fastest:.1f}x its fastest"
            for name, ms in figures.items() if ms > max_ratio * fastest}


def slower_before(version: str, measured: Mapping[str, Measurement], *, max_ratio: float = SHORTLIST_RATIO) -> dict[str, str]:
    """The candidates that need no measurement because this board saw another version of the same model in them.

    Args:
        version: that other version; the caller vouches that its files are the same but for their values.
        measured: what this board measured of it, by candidate name.

    Returns:
        The reason by candidate name, for those whose best single run was far slower than the fastest one's median.
    """
    ran = {name: one for name, one in measured.items() if not one.error and one.p50_ms > 0}
    fastest = min((one.p50_ms for one in ran.values()), default=0.0)
    return {name: f"not measured again: version {version} took {one.best_ms:.2f} ms at best here, {one.best_ms / fastest:.1f}x its fastest"
            for name, one in ran.items() if one.best_ms > max_ratio * fastest}


def contenders(choice: Choice, measured: Mapping[str, Measurement], *, within: float = TIE_RATIO,
               most: int = MAX_CONTENDERS) -> tuple[Candidate, ...]:
    """The measured candidates that could still be the fastest: their best run is within that ratio of the leader's median.

    A median that was disturbed by other load says little, the best run says what is possible. On a quiet machine the two
    are nearly the same, and only real ties are left.

    Returns:
        The leader and its rivals, the most promising first; empty when nobody comes near.
    """
    rows = [row for row in choice.rows if row.origin == "measured" and row.verdict != "refused"]
    if len(rows) < 2:
        return ()

    def potential(row: ChoiceRow) -> float:
        return measured[row.candidate.name].best_ms or row.p50_ms

    rivals = sorted((row for row in rows[1:] if potential(row) <= within * rows[0].p50_ms), key=potential)
    return tuple(row.candidate for row in (rows[0], *rivals[:most - 1])) if rivals else ()


def leaner(choice: Choice, measured: Mapping[str, Measurement]) -> Candidate | None:
    """The candidate to run while the board is short of cooling: accepted, measured here, and clearly cheaper than the chosen one.

    Cheaper is less CPU time, against the chosen one's most frugal measured setting; it may take up to `ECO_SLOWEST` times as long as
    the chosen one, which is the fastest. Only between runtimes of the CPU: CPU time says nothing of what a GPU draws.
    """
    used = measured.get(choice.chosen.name) if choice.chosen is not None else None
    if choice.chosen is None or used is None or choice.chosen.backend not in CPU_BACKENDS or not used.cpu_ms:
        return None
    bound = CLEARLY_LESS_CPU * used.cpu_ms * _least_share(choice.tuning)
    rivals = [(measured[row.candidate.name].cpu_ms, row.candidate) for row in choice.rows
              if row.verdict == "eligible" and row.origin == "measured" and row.candidate.backend in CPU_BACKENDS
              and row.p50_ms <= ECO_SLOWEST * used.p50_ms and row.candidate.name in measured]
    return min(((cpu, one) for cpu, one in rivals if 0 < cpu <= bound), key=lambda pair: pair[0], default=(0.0, None))[1]


def _least_share(tuning: TuningChoice) -> float:
    """CPU time of the most frugal setting, as a share of the defaults', with which candidates are measured."""
    ran = [one for one in tuning.figures if not one.error and one.cpu_ms]
    if len(ran) < 2 or not statistics.median(ran[0].cpu_ms):
        return 1.0
    return min(1.0, min(statistics.median(one.cpu_ms) for one in ran) / statistics.median(ran[0].cpu_ms))


def _leave_out(row: ChoiceRow, reason: str) -> ChoiceRow:
    if not reason or row.verdict == "refused":
        return row
    return ChoiceRow(row.candidate, "refused", reason, row.accuracy, row.drop, row.p50_ms, row.origin)


def _rank(row: ChoiceRow) -> tuple[int, float, float]:
    # An int8 file with a smaller drop wins a tie; a candidate nobody measured comes after those somebody did.
    return ({"measured": 0, "builder": 1, "none": 2}[row.origin], row.p50_ms, row.drop)


def _judge(
    candidate: Candidate,
    spec: ModelSpec,
    evaluation: Evaluation,
    capability: Capability,
    measurement: Measurement | None,
    memory_mb: float,
) -> ChoiceRow:
    variant = spec.variant(candidate.variant)
    row = _evaluation_row(evaluation, candidate, variant)
    accuracy, drop = (row.accuracy, row.drop) if row else (0.0, 0.0)

    def refused(reason: str) -> ChoiceRow:
        return ChoiceRow(candidate, "refused", reason, accuracy, drop)

    unsupported = why_unsupported(candidate, capability)
    if unsupported:
        return refused(unsupported)
    if _saturates(candidate, spec, capability):
        return refused("this CPU adds products of bytes in 16 bits, which full-range weights saturate; the 7-bit file is for it")
    if row is None:
        return refused("the bundle's evaluation has no row for it")
    if row.verdict != "accepted":
        return refused(f"builder: {row.reason}")
    if measurement and measurement.error:
        return refused(f"does not run here: {measurement.error}")
    if measurement and memory_mb and measurement.peak_rss_mb > memory_mb:
        return refused(f"needs {measurement.peak_rss_mb:.0f} MB, the budget is {memory_mb:.0f} MB")
    if measurement:
        return ChoiceRow(candidate, "eligible", "", accuracy, drop, measurement.p50_ms, "measured", measurement.gpu_work)
    if row.latency_p50_ms > 0:
        return ChoiceRow(candidate, "eligible", "", accuracy, drop, row.latency_p50_ms, "builder")
    return ChoiceRow(candidate, "eligible", "", accuracy, drop)


def why_unsupported(candidate: Candidate, capability: Capability) -> str:
    """Why the board cannot run the candidate at all; empty when it can."""
    backend = next((b for b in capability.backends if b.name == candidate.backend), None)
    if backend is None:
        return f"board {capability.board} has no {candidate.backend}"
    if backend.missing:
        return f"{candidate.backend}: {backend.missing}"
    if candidate.precision not in backend.precisions:
        return f"{candidate.backend} does not run {candidate.precision} on {capability.board}"
    return ""


def _saturates(candidate: Candidate, spec: ModelSpec, capability: Capability) -> bool:
    """True for ONNX Runtime's full-range unsigned file on an x86 CPU without VNNI and AMX, when the bundle has the narrow one.

    Without, the builder's figures may not hold here: its CPU sums in 32 bits."""
    if candidate.backend != "onnxruntime" or spec.variant(candidate.variant).layout != "qdq-uint8" or capability.arch != "x86_64":
        return False
    narrow = any(variant.layout == "qdq-uint8-narrow" for variant in spec.variants)
    return narrow and bool(capability.isa) and not WIDE_SUMS & set(capability.isa)


def _evaluation_row(evaluation: Evaluation, candidate: Candidate, variant: Variant) -> EvaluationRow | None:
    """The row that speaks for the candidate: its own, else the worst one of the same variant.

    TensorRT cannot be measured by the builder; the accuracy of the same weights in the same precision elsewhere is
    the best signed bound there is, and the board's own trial decides the rest.
    """
    same = [row for row in evaluation.rows if row.variant == variant.name]
    exact = next((r for r in same if r.backend == candidate.backend and r.precision == candidate.precision), None)
    if exact:
        return exact
    if not candidate.backend.startswith("tensorrt") or not same:
        return None
    worst = max(same, key=lambda row: row.drop)
    return msgspec.structs.replace(worst, backend=candidate.backend, precision=candidate.precision, latency_p50_ms=0.0, latency_p99_ms=0.0,
                                   origin="simulated")


def _why_chosen(best: ChoiceRow, rest: list[ChoiceRow]) -> str:
    source = {"measured": "measured here", "builder": "by the builder's figure", "none": "not measured"}[best.origin]
    if not rest:
        return f"the only candidate that fits: {best.p50_ms:.2f} ms {source}, drop {best.drop:.2f} points"
    return f"fastest of {len(rest) + 1} that fit: {best.p50_ms:.2f} ms {source}, drop {best.drop:.2f} points"


def _why_slower(row: ChoiceRow, best: ChoiceRow) -> str:
    if row.origin == "none" or not best.p50_ms:
        return "fits, not measured"
    return f"fits, {row.p50_ms:.2f} ms is {row.p50_ms / best.p50_ms:.2f}x the chosen"


def backoff(attempt: int, unit: float, *, base_s: float = 1.0, cap_s: float = 60.0) -> float:
    """Seconds to wait before try `attempt` (0 first): full jitter, uniform in [base, min(cap, base * 2**attempt)].

    Args:
        unit: a random number in 0..1, the caller's.
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt, 32))
    return base_s + unit * max(ceiling - base_s, 0.0)


def patience(outage_s: float) -> float:
    """The longest wait between two tries of a camera that has been away for so long, seconds: an eighth of it, from 0.75 to 30.

    A camera that blinked is seen again at once, and one that is gone for the night costs two connections a minute.
    """
    return min(30.0, max(0.75, outage_s / 8.0))


def decorrelated(previous_s: float, unit: float, *, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Seconds to wait before the next try: decorrelated jitter, uniform in [base, 3 * previous], never over the cap.

    Two cameras behind one switch that came back together drift apart with every try, and no count of tries is kept. Formula:
    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Args:
        previous_s: what this function gave last; 0 for the first try.
        unit: a random number in 0..1, the caller's.
    """
    ceiling = max(base_s, 3.0 * max(previous_s, 0.0))
    return min(cap_s, base_s + unit * (ceiling - base_s))
