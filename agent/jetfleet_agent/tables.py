"""Plain-text tables for the agent's commands. Only text in, text out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from jetfleet_contract.messages import Capability
from jetfleet_contract.policy import Choice, ChoiceRow

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


def _ms(row: ChoiceRow) -> str:
    if not row.p50_ms:
        return "-"
    return f"{row.p50_ms:.2f}" + ("" if row.origin == "measured" else "*")


def _points(row: ChoiceRow) -> str:
    return f"{row.drop:.2f}" if row.accuracy else "-"
