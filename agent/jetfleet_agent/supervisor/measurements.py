"""Measurements, settings and choices of this board, kept over restarts.

A measurement, and the settings that won for a candidate, are keyed by everything that they depend on: weights, runtime and
version, execution precision, threads, CPU, and the board's conditions (power mode, clocks). A file that cannot be read is no
measurement; it is made again. Errors are not kept: a time-out under load must not condemn a candidate for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from jetfleet_agent.durable import write_file
from jetfleet_contract.bundle import ModelSpec
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import BackendInfo, Capability, Message, decode, encode
from jetfleet_contract.policy import Candidate, Choice, Measurement
from jetfleet_contract.tuning import TuningChoice

MAX_RECORD_BYTES = 1 << 20
MAX_CHOICES = 64
SAME_SIZE = 0.02  # retrained weights keep the file's size; another network does not


class ChoiceRecord(Message, frozen=True):
    """One choice as `explain` prints it: for which model, when (seconds since 1970), and what the board could do then.

    `sizes` are the variants' files in bytes, `measured` what was measured here by candidate name, under these `conditions` (None in
    records of before they were noted).
    """

    name: str
    version: str
    at: float
    capability: Capability
    choice: Choice
    sizes: dict[str, int] = {}
    measured: dict[str, Measurement] = {}
    conditions: Conditions | None = None


class MeasurementStore:
    """Durable records below one folder: `measurements/` and `choices/`."""

    def __init__(self, folder: Path) -> None:
        self._measurements = folder / "measurements"
        self._choices = folder / "choices"

    def measurement(self, key: str) -> Measurement | None:
        """The kept measurement of that key, or None."""
        try:
            data = (self._measurements / f"{key}.json").read_bytes()
            return decode(data, Measurement, limit=MAX_RECORD_BYTES)
        except (OSError, MalformedError):
            return None

    def keep(self, key: str, measurement: Measurement) -> None:
        """Keep a measurement durably, or StorageError `store.write`."""
        self._measurements.mkdir(parents=True, exist_ok=True)
        write_file(self._measurements / f"{key}.json", encode(measurement))

    def tuning(self, key: str) -> TuningChoice | None:
        """The kept settings of that key, or None."""
        try:
            return decode((self._measurements / f"{key}.tuning.json").read_bytes(), TuningChoice, limit=MAX_RECORD_BYTES)
        except (OSError, MalformedError):
            return None

    def keep_tuning(self, key: str, tuning: TuningChoice) -> None:
        """Keep settings durably, or StorageError `store.write`."""
        self._measurements.mkdir(parents=True, exist_ok=True)
        write_file(self._measurements / f"{key}.tuning.json", encode(tuning))

    def keep_choice(self, record: ChoiceRecord) -> None:
        """Keep the last choice for that model and version, or StorageError `store.write`; the oldest go when there are many."""
        self._choices.mkdir(parents=True, exist_ok=True)
        write_file(self._choices / f"{_digest(record.name, record.version)}.json", encode(record))
        for old in sorted(self._choices.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)[MAX_CHOICES:]:
            old.unlink(missing_ok=True)

    def choice(self, name: str, version: str) -> ChoiceRecord | None:
        """The last choice for that model and version."""
        try:
            return decode((self._choices / f"{_digest(name, version)}.json").read_bytes(), ChoiceRecord, limit=MAX_RECORD_BYTES)
        except (OSError, MalformedError):
            return None

    def other_version(self, spec: ModelSpec, capability: Capability, conditions: Conditions) -> ChoiceRecord | None:
        """The latest choice here, under these conditions, for another version of that model whose files are alike: same variants, nearly
        the same sizes."""
        sizes = {variant.name: variant.size for variant in spec.variants}
        return next((record for record in self.choices() if record.name == spec.name and record.version != spec.version
                     and record.capability == capability and record.conditions == conditions and record.choice.chosen
                     and _alike(record.sizes, sizes)), None)

    def choices(self) -> tuple[ChoiceRecord, ...]:
        """All kept choices, the latest first."""
        found = []
        for path in sorted(self._choices.glob("*.json")):
            with contextlib.suppress(OSError, MalformedError):
                found.append(decode(path.read_bytes(), ChoiceRecord, limit=MAX_RECORD_BYTES))
        return tuple(sorted(found, key=lambda record: record.at, reverse=True))


def _alike(old: dict[str, int], new: dict[str, int]) -> bool:
    return old.keys() == new.keys() and all(abs(new[name] - size) <= SAME_SIZE * size for name, size in old.items())


def measurement_key(digest: str, candidate: Candidate, backend: BackendInfo, capability: Capability, threads: int,
                    conditions: Conditions) -> str:
    """64 hex digits that name a measurement's circumstances.

    Args:
        digest: of the weight file.
        threads: CPU threads given to the runtime; 0: its own choice.
    """
    return _digest(digest, candidate.backend, candidate.precision, backend.version, capability.cpu, capability.arch,
                   str(capability.cores), str(threads), conditions.text)


def _digest(*parts: str) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

