"""A board's own measurement of a bundle as one file: `jetfleet-agent bench --record` writes it, `jetfleet matrix --record` reads it.

It names the weights by digest, so that a figure can never be shown for another file than the one that ran.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from .conditions import Conditions
from .messages import Message
from .policy import Candidate

MAX_RECORD_BYTES = 1 << 20
Ms = Annotated[float, Meta(ge=0.0)]


class BenchFigures(Message, frozen=True):
    """One candidate: the session alone at batch 1, in ms. `asked`: the execution provider or device that was asked for ("": the runtime's
    own); `provider` and `ran_in` are what it really used. `energy_mj`: millijoules of one session, None where the board does not tell."""

    candidate: Candidate
    digest: str
    p50_ms: Ms = 0.0
    p95_ms: Ms = 0.0
    p99_ms: Ms = 0.0
    runs: int = 0
    asked: str = ""
    provider: str = ""
    ran_in: str = ""
    peak_mb: Ms = 0.0
    agreement: float = -1.0
    energy_mj: float | None = None
    error: str = ""


class BenchRecord(Message, frozen=True):
    """One run of the bench. `simulated`: a board file was put over another machine; `taken`: seconds since 1970; `threads` 0: the
    runtime's own number."""

    device_class: str
    board: str
    arch: str
    cpu: str
    isa: tuple[str, ...]
    cores: int
    conditions: Conditions
    software: dict[str, str]
    model: str
    version: str
    taken: float
    rows: Annotated[tuple[BenchFigures, ...], Meta(max_length=256)]
    threads: int = 0
    simulated: bool = False


def why_unusable(record: BenchRecord, row: BenchFigures) -> str:
    """Why this row may not stand as a measurement of its candidate on its board; "" when it may."""
    if record.simulated:
        return f"the record is of a {record.cpu or record.arch} machine that played {record.board}"
    if row.error:
        return f"the board could not run it: {row.error}"
    if row.runs < 1 or row.p50_ms <= 0:
        return "the record holds no timed run of it"
    if row.ran_in != row.candidate.precision:
        return f"the runtime fell back: asked for {row.candidate.precision}, it ran in {row.ran_in or 'something it does not tell'}"
    if row.asked and row.asked not in row.provider:
        return f"the runtime fell back: asked for {row.asked}, it ran on {row.provider or 'something it does not tell'}"
    if row.candidate.backend.startswith("tensorrt") and (not row.provider or row.provider.upper().startswith("CPU")):
        return f"the runtime fell back: {row.candidate.backend} ran on {row.provider or 'something it does not tell'}"
    return ""
