"""Measurements that a board of the fleet made itself: read, checked, and found by the digest of the weights that ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jetfleet_contract.bench_records import MAX_RECORD_BYTES, BenchFigures, BenchRecord, why_unusable
from jetfleet_contract.boards import BoardFile
from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.messages import decode

from .cells import Provenance, Way


def load_record(path: Path) -> BenchRecord:
    """Read a file that ``jetfleet-agent bench --record`` or ``jetfleet device bench --record`` wrote. InputError `matrix.record`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_RECORD_BYTES + 1)
        return decode(data, BenchRecord, limit=MAX_RECORD_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
    except MalformedError as error:
        reason = error.what
    raise InputError("matrix.record", f"the record {path.name} cannot be used: {reason}", where=str(path),
                     remedy="make it on the board: jetfleet-agent bench --bundle DIR --record FILE; or: jetfleet device bench")


@dataclass(frozen=True)
class Records:
    """All records of a run."""

    records: tuple[BenchRecord, ...] = ()

    def measured(self, way: Way, board: BoardFile) -> Way:
        """The candidate with what a board of that class measured of it, the newest usable row; a row that must not count says why in the
        way's reason, and changes nothing else."""
        found = sorted(self._rows(way, board), key=lambda pair: -pair[0].taken)
        usable = next(((record, row) for record, row in found if not why_unusable(record, row)), None)
        if usable is None:
            reasons = dict.fromkeys(f"record refused: {why_unusable(record, row)}" for record, row in found)
            return msgspec.structs.replace(way, reason="; ".join((*reasons, way.reason))) if reasons else way
        record, row = usable
        told = record.conditions
        clocks = {name: float(mhz) for name, mhz in (("cpu", told.cpu_mhz), ("gpu", told.gpu_mhz)) if mhz}
        software = {**record.software, **({"l4t": told.system} if told.system else {})}
        provenance = Provenance(f"{record.board}, {record.cpu}" if record.cpu else record.board, record.isa, told.mode, clocks,
                                row.candidate.backend, row.provider, row.ran_in, record.threads, row.runs, software, record.taken)
        return msgspec.structs.replace(way, p50_ms=round(row.p50_ms, 3), p95_ms=round(row.p95_ms, 3), peak_mb=round(row.peak_mb, 1),
                                       energy_mj=row.energy_mj, floor_ms=None, provenance=provenance)

    def _rows(self, way: Way, board: BoardFile) -> Iterable[tuple[BenchRecord, BenchFigures]]:
        for record in self.records:
            if board.board not in (record.board, record.device_class) and board.device_class != record.device_class:
                continue
            for row in record.rows:
                if row.digest == way.digest and row.candidate.name == way.candidate:
                    yield record, row
