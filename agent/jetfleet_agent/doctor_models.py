"""The doctor's look at the models on the board: are their files what their names say, and what memory do they need at their peak?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from jetfleet_contract.slot_records import AppSlots, Slot

from .checks import Check
from .supervisor.measurements import ChoiceRecord

READ_S = 5.0


def models(states: Sequence[AppSlots], blobs: Path, *, read_s: float = READ_S) -> Check:
    """Every weight file and manifest in use, hashed again, for `read_s` at most; nothing is changed, so it may be asked beside a running
    agent."""
    wanted = sorted({blob for state in states for slot in _slots(state) for blob in (slot.bundle, slot.weights, *slot.blobs) if blob})
    deadline = time.monotonic() + read_s
    bad, read = [], 0
    for blob in wanted:
        if time.monotonic() > deadline:
            break
        read += 1
        if not _is_itself(blobs / blob, blob):
            bad.append(blob[:12])
    if bad:
        return Check("models", "failed", f"{len(bad)} of {len(wanted)} files are damaged or missing: {', '.join(bad[:4])}",
                     "restart the agent: it fetches them again; if it recurs, the disk is failing (dmesg, flash wear)")
    if read < len(wanted):
        return Check("models", "ok", f"{read} of {len(wanted)} files read, all intact")
    return Check("models", "ok", f"{len(wanted)} files, all intact" if wanted else "none here yet")


def needed_mb(states: Sequence[AppSlots], records: Sequence[ChoiceRecord]) -> float:
    """Peak memory of the champions together, as this board measured it; those it did not measure count nothing."""
    measured = {(record.name, record.version, name): one.peak_rss_mb for record in records for name, one in record.measured.items()}
    champions = [state.champion for state in states if state.champion is not None]
    return sum(measured.get((slot.name, slot.version, slot.candidate.name), 0.0) for slot in champions if slot.candidate)


def _slots(state: AppSlots) -> list[Slot]:
    return [slot for slot in (state.champion, state.challenger) if slot is not None]


def _is_itself(path: Path, blob: str) -> bool:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError:
        return False
    return digest.hexdigest() == blob
