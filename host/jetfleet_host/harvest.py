"""The hard-example set on disk, and its export as a data folder that `jetfleet build --data` takes.

    harvest/<2 hex>/<digest>.jpg     one picture by its SHA-256, mode 0600; what is known of it is a row of the database
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_contract.crops import jpeg_size
from jetfleet_contract.errors import InputError, JetfleetError
from jetfleet_contract.predictions import Detection
from jetfleet_contract.topics import check_blob

from .durable import write_file
from .store.models import HardExample

LABELS = "labels.json"
_LEAST_SIDE = 2.0


class HarvestFiles:
    """See the module. Names are checked before they become paths."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str) -> Path:
        return self._folder / check_blob(digest)[:2] / f"{digest}.jpg"

    def put(self, digest: str, jpeg: bytes) -> None:
        """Keep a picture. StorageError `store.write`."""
        path = self.path(digest)
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, jpeg, mode=0o600)

    def remove(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.path(digest).unlink(missing_ok=True)


@dataclass(frozen=True)
class Exported:
    """What an export wrote; `skipped` by reason."""

    folder: str
    images: int
    labels: int
    skipped: dict[str, int]


def export(files: HarvestFiles, rows: Sequence[HardExample], out: Path, least_score: float) -> Exported:
    """Write pictures and ``labels.json`` into a new or empty folder. What the host's model said with at least `least_score` are the labels;
    pictures that it has not answered are left out, for an empty list would say that there is nothing to see.

    Raises:
        InputError: `harvest.out`, `harvest.mixed` (two kinds of labels do not go into one data folder), `harvest.empty`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("harvest.out", f"{out} is not an empty folder", where=str(out), remedy="give a new folder")
    whole = {row.task == "classify" for row in rows if row.answered}
    if len(whole) > 1:
        raise InputError("harvest.mixed", "labels of whole pictures and of places in them do not go into one data folder",
                         remedy="export one app: --app NAME")
    table: dict[str, Any] = {}
    skipped: dict[str, int] = {}
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:  # the newest first: the newest word on one picture counts
        name = f"{row.digest[:32]}.jpg"
        if name in table:
            continue
        entry, why = _entry(files, row, least_score)
        if why:
            skipped[why] = skipped.get(why, 0) + 1
            continue
        write_file(out / name, files.path(row.digest).read_bytes(), mode=0o600)
        table[name] = entry
    if not table:
        raise InputError("harvest.empty", "no example that was answered fits", where=str(out),
                         remedy="jetfleet harvest stats shows what there is; boards give some once a policy allows the purpose harvest")
    write_file(out / LABELS, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode(), mode=0o600)
    return Exported(str(out), len(table), sum(1 if isinstance(entry, str) else len(entry) for entry in table.values()), skipped)


def _entry(files: HarvestFiles, row: HardExample, least_score: float) -> tuple[Any, str]:
    """The labels of one picture, or why it is left out."""
    if not row.answered:
        return None, "not answered"
    try:
        size = jpeg_size(files.path(row.digest).read_bytes())
    except (OSError, JetfleetError):
        return None, "picture is gone"
    said = msgspec.json.decode(row.said, type=tuple[Detection, ...])
    if row.task == "classify":
        best = max((found for found in said if found.box is None), key=lambda found: found.score, default=None)
        return (best.label, "") if best is not None and best.score >= least_score else (None, "no clear label")
    return [entry for found in said if found.score >= least_score and (entry := _placed(found, row, size)) is not None], ""


def _placed(found: Detection, row: HardExample, size: tuple[int, int]) -> dict[str, object] | None:
    """A detection in the picture's own pixels; None when the picture does not show its middle."""
    if found.box is None:
        return None
    across, down = size[0] / (row.x1 - row.x0), size[1] / (row.y1 - row.y0)

    def x(value: float) -> float:
        return min(max((value - row.x0) * across, 0.0), float(size[0]))

    def y(value: float) -> float:
        return min(max((value - row.y0) * down, 0.0), float(size[1]))

    left, top, right, bottom = found.box
    if not (row.x0 <= (left + right) / 2 < row.x1 and row.y0 <= (top + bottom) / 2 < row.y1):
        return None
    box = [round(x(left), 2), round(y(top), 2), round(x(right), 2), round(y(bottom), 2)]
    if box[2] - box[0] < _LEAST_SIDE or box[3] - box[1] < _LEAST_SIDE:
        return None
    if found.quad:
        quad = [round(y(value) if index % 2 else x(value), 2) for index, value in enumerate(found.quad)]
        return {"label": found.label, "quad": quad}
    return {"label": found.label, "box": box}
