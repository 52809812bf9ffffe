"""Plain-text tables for the agent's commands. Only text in, text out."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence

from jetfleet_contract.engine_use import Judged
from jetfleet_contract.messages import Capability, GpuInfo
from jetfleet_contract.policy import Candidate, Choice, ChoiceRow

from .bench import BenchRow
from .checks import Check
from .status import Status
from .supervisor.audit import Departure

WIDTH = 100


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> str:
    """Left-aligned columns; the last one may be as long as it likes."""
    cells = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(indent + line for line in lines)


def capability_text(capability: Capability, kernels: str = "") -> str:
    """The board as `probe` prints it. `kernels`: what serves its GPU."""
    simulated = f"   (simulated: board file {capability.board} put over this {capability.arch} machine)" if capability.simulated else ""
    memory = f"{capability.memory_mb} MB" if capability.memory_mb else "unknown"
    rows = [(b.name, b.version or "-", " ".join(b.precisions) or "-", b.missing) for b in capability.backends]
    return "\n".join([
        f"board    {capability.board}{simulated}",
        f"class    {capability.device_class}",
        f"cpu      {capability.cpu or 'unknown'}, {capability.cores} cores, {capability.arch}",
        f"memory   {memory}",
        *([f"module   {capability.module}, L4T {capability.system or 'unknown'}"] if capability.module else []),
        *([f"gpu      {gpu_text(capability.gpu)}"] if capability.gpu is not None else []),
        *([f"kernels  {kernels}"] if kernels else []),
        *textwrap.wrap("isa      " + (" ".join(capability.isa) or "unknown"), WIDTH, subsequent_indent=" " * 9),
        "",
        columns(("backend", "version", "precisions", "why not"), rows),
    ])


def gpu_text(gpu: GpuInfo) -> str:
    """One line of a GPU."""
    dla = f", {gpu.dla_cores} DLA cores" if gpu.dla_cores else ""
    memory = "the host's memory" if gpu.integrated else "its own memory"
    return f"{gpu.name}, sm_{gpu.sm}, {gpu.sm_count} multiprocessors, {memory}{dla}, driver for CUDA {gpu.driver or 'unknown'}"


def choice_text(title: str, choice: Choice, under: str = "", lean: Candidate | None = None,
                engines: Sequence[Judged] = ()) -> str:
    """The choice table: one row a candidate, best first, each with its reason. `under`: what it was measured under, in words; `lean`: what
    runs instead while the board is hot; `engines`: what the board does about each engine of the model."""
    rows = [(("-> " if row.verdict == "chosen" else "   ") + row.candidate.name, row.verdict, _ms(row), _points(row), row.reason)
            for row in choice.rows]
    verdict = f"chosen: {choice.chosen.name}" if choice.chosen else "nothing can run here; the reasons are in the table"
    settings = [f"settings: {choice.tuning.tuning.text} ({choice.tuning.reason})"] if choice.chosen else []
    measured = [(one.tuning.text, _rounds(one.period_ms), _rounds(one.cpu_ms), one.error) for one in choice.tuning.figures]
    table = [columns(("settings", "ms a round", "CPU ms a round", "why not"), measured, indent="   ")] if measured else []
    conditions = [f"measured under: {under}"] if under else []
    candidates = columns(("   candidate", "verdict", "p50 ms", "drop", "reason"), rows)
    cheaper = [f"while the board is hot: {lean.name}, which takes clearly less CPU time (only with a governor)"] if lean is not None else []
    work = _gpu_work([(row.candidate.name, row.gpu_work) for row in choice.rows])
    return "\n".join([title, *conditions, candidates, verdict, *cheaper, *settings, *table, *work, *engine_lines(engines)])


def engine_lines(engines: Sequence[Judged]) -> list[str]:
    """A table of engines, each with what the board does about it and why; nothing without any."""
    acts = {"run": "used", "fetch": "being fetched", "ask": "none yet, asked for", "compile": "compiled here", "leave": "not used"}
    rows = [(row.key[:12], f"{row.variant}@{row.backend}:{row.precision}", row.made_for, acts[row.act],
             f"{row.detail} [{row.code}]" if row.code else row.detail or "-") for row in engines]
    return [columns(("engine", "of", "made for", "here", "why"), rows)] if rows else []


def bench_text(title: str, rows: Sequence[BenchRow]) -> str:
    """The bench tables, fastest first: the session alone, a frame's whole work beside it, what is known of each, what did not run."""
    ran, failed = [row for row in rows if not row.error], [row for row in rows if row.error]
    parts = [title]
    if ran:
        heads = ("candidate", "p50", "p90", "p95", "p99", "max", "per second", "runs in", "settings")
        known = ("candidate", "load ms", "peak MB", "agreement", "builder says", "why these settings")
        parts += ["", f"session alone, ms over {ran[0].runs} frames",
                  columns(heads, [_session(r) for r in ran]),
                  "", "a frame's whole work, ms",
                  columns(("candidate", "pre", "decode", "p50", "p95", "p99", "per second", "floor", "overhead"), [_work(r) for r in ran]),
                  "", columns(known, [_facts(r) for r in ran]), *_gpu_work([(r.candidate.name, r.gpu_work) for r in ran])]
    if failed:
        parts += ["", columns(("did not run", "builder says", "why not"), [(r.candidate.name, r.builder, r.error) for r in failed])]
    return "\n".join(parts)


def checks_text(checks: Sequence[Check]) -> str:
    """The doctor's findings; what is bad carries its remedy below."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict.upper():8} {check.name}: {check.finding}")
        if check.remedy:
            lines.append(f"         try: {check.remedy}")
    return "\n".join(lines)


def status_text(status: Status) -> str:
    """The board's state and one line an app."""
    running = f"running (process {status.process})" if status.running else "not running"
    rows = [(a.app, f"{a.name} {a.version}".strip() or "-", a.candidate or "-", a.phase or "-", a.reason or "-",
             status.previous.get(a.app, "-")) for a in status.apps]
    head = f"{status.device}: agent {running}, session {status.session}, deployment {status.seq}"
    if not rows:
        return head + "\nno app was deployed here yet"
    return "\n".join([head, columns(("app", "model", "runs as", "phase", "reason", "before"), rows)])


def _session(row: BenchRow) -> tuple[str, ...]:
    total = sum(row.layers.values())
    share = f" ({row.layers.get(row.runs_in, 0)} of {total} layers)" if total else ""
    ran = f"{row.runs_in}{share}, {row.provider}"
    one = row.session
    figures = [f"{value:.2f}" for value in (one.p50, one.p90, one.p95, one.p99, one.most)]
    return (row.candidate.name, *figures, f"{one.per_second:.1f}", ran, row.tuning.tuning.text)


def _work(row: BenchRow) -> tuple[str, ...]:
    figures = [f"{value:.2f}" for value in (row.pre_ms, row.decode_ms, row.work.p50, row.work.p95, row.work.p99)]
    return (row.candidate.name, *figures, f"{row.work.per_second:.1f}", f"{row.floor_ms:.2f}", f"{row.overhead:.3f}")


def _facts(row: BenchRow) -> tuple[str, ...]:
    agreement = f"{row.agreement:.4f}" if row.agreement >= 0 else "-"
    return (row.candidate.name, f"{row.activate_ms:.0f}", f"{row.peak_rss_mb:.0f}", agreement, row.builder, row.tuning.reason)


def _gpu_work(rows: Sequence[tuple[str, str]]) -> list[str]:
    """A table of what a GPU's runtime does of a frame's work, and why not all of it; nothing where no such runtime ran."""
    told = [row for row in rows if row[1]]
    return ["", columns(("on a GPU", "where the rest of a frame's work is done"), told)] if told else []


def _rounds(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values) or "-"


def _ms(row: ChoiceRow) -> str:
    if not row.p50_ms:
        return "-"
    return f"{row.p50_ms:.2f}" + ("" if row.origin == "measured" else "*")


def _points(row: ChoiceRow) -> str:
    return f"{row.drop:.2f}" if row.accuracy else "-"


def audit_text(lines: Sequence[Departure]) -> str:
    """What left the board, oldest first."""
    if not lines:
        return "nothing that shows a picture has left this board"
    rows = [(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.at)), line.app, line.what, line.purpose or "nothing",
             str(line.bytes) if line.bytes else "-", line.sha256[:16] or "-", line.receiver[:16] or "-") for line in lines]
    return columns(("when", "app", "what", "purpose", "bytes", "sha256", "receiver"), rows)
