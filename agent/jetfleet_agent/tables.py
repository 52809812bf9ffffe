"""Plain-text tables for the agent's commands. Only text in, text out."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence

from jetfleet_contract.messages import Capability
from jetfleet_contract.policy import Choice, ChoiceRow

from .bench import BenchRow
from .doctor import Check
from .status import Status
from .supervisor.audit import Departure

WIDTH = 100


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> str:
    """Left-aligned columns; the last one may be as long as it likes."""
    cells = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(indent + line for line in lines)


def capability_text(capability: Capability) -> str:
    """The board as `probe` prints it."""
    simulated = f"   (simulated: board file {capability.board} put over this {capability.arch} machine)" if capability.simulated else ""
    memory = f"{capability.memory_mb} MB" if capability.memory_mb else "unknown"
    rows = [(b.name, b.version or "-", " ".join(b.precisions) or "-", b.missing) for b in capability.backends]
    return "\n".join([
        f"board    {capability.board}{simulated}",
        f"class    {capability.device_class}",
        f"cpu      {capability.cpu or 'unknown'}, {capability.cores} cores, {capability.arch}",
        f"memory   {memory}",
        *textwrap.wrap("isa      " + (" ".join(capability.isa) or "unknown"), WIDTH, subsequent_indent=" " * 9),
        "",
        columns(("backend", "version", "precisions", "why not"), rows),
    ])


def choice_text(title: str, choice: Choice) -> str:
    """The choice table: one row a candidate, best first, each with its reason."""
    rows = [(("-> " if row.verdict == "chosen" else "   ") + row.candidate.name, row.verdict, _ms(row), _points(row), row.reason)
            for row in choice.rows]
    verdict = f"chosen: {choice.chosen.name}" if choice.chosen else "nothing can run here; the reasons are in the table"
    return "\n".join([title, columns(("   candidate", "verdict", "p50 ms", "drop", "reason"), rows), verdict])


def bench_text(title: str, rows: Sequence[BenchRow]) -> str:
    """The bench table, fastest first."""
    cells = [_bench_cells(row) for row in rows]
    heads = ("candidate", "p50 ms", "p99 ms", "load ms", "peak MB", "agreement", "runs in", "builder says", "why not")
    return "\n".join([title, columns(heads, cells)])


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


def _bench_cells(row: BenchRow) -> tuple[str, ...]:
    if row.error:
        return (row.candidate.name, "-", "-", "-", "-", "-", "-", row.builder, row.error)
    agreement = f"{row.agreement:.4f}" if row.agreement >= 0 else "-"
    return (row.candidate.name, f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.activate_ms:.0f}", f"{row.peak_rss_mb:.0f}", agreement,
            row.runs_in, row.builder, "")


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
