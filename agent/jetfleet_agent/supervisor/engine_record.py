"""What a board remembers of engines over restarts: which it built, which failed here, which its models use, and a build under way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from jetfleet_agent.durable import need_folder, write_file
from jetfleet_contract.engine_doubt import Doubt
from jetfleet_contract.engine_use import Judged
from jetfleet_contract.engines import Passport
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import Message, decode, encode

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RECORD_BYTES = 1 << 20
MAX_ENTRIES = 256
JUDGED = "judged.json"


class BuildUnderWay(Message, frozen=True):
    """A command to build that was obeyed and has no outcome yet."""

    command: int
    passport: Passport


class EngineRecord(Message, frozen=True):
    """`own`: blob by key of what this board built. `bad`: code by blob. `used`: manifest of the bundle by blob: it goes when that goes.
    `doubts`: by app and blob, after an app's process ended with it."""

    own: dict[str, str] = {}
    bad: dict[str, str] = {}
    used: dict[str, str] = {}
    building: BuildUnderWay | None = None
    doubts: dict[str, Doubt] = {}


class EngineMemory:
    """The record and its file. Raises StorageError `store.write` where it says so; a file that cannot be read counts as none."""

    def __init__(self, folder: Path) -> None:
        need_folder(folder)
        self._path = folder / "record.json"
        self._judged: tuple[Judged, ...] = ()
        self.now = self._load()

    def _load(self) -> EngineRecord:
        try:
            return decode(self._path.read_bytes(), EngineRecord, limit=MAX_RECORD_BYTES)
        except FileNotFoundError:
            return EngineRecord()
        except (OSError, MalformedError) as error:
            log.warning("what was known of engines cannot be read: %s", error)
            return EngineRecord()

    def built(self, key: str, blob: str, bundle: str) -> None:
        """This board built it for that bundle. StorageError."""
        now = self.now
        self._save(msgspec.structs.replace(now, own=_bounded(now.own, key, blob), used=_bounded(now.used, blob, bundle)))

    def uses(self, blob: str, bundle: str) -> None:
        """A model of that bundle uses it, or will once it is here. StorageError."""
        if self.now.used.get(blob) != bundle:
            self._save(msgspec.structs.replace(self.now, used=_bounded(self.now.used, blob, bundle)))

    def failed(self, blob: str, code: str) -> None:
        """It is not used here any more. StorageError."""
        self._save(msgspec.structs.replace(self.now, bad=_bounded(self.now.bad, blob, code)))

    def doubts(self, name: str, doubt: Doubt | None) -> None:
        """What is thought of an engine in an app from now on; None: nothing. StorageError."""
        if self.now.doubts.get(name) == doubt:
            return
        others = {other: one for other, one in self.now.doubts.items() if other != name}
        self._save(msgspec.structs.replace(self.now, doubts=_bounded(others, name, doubt) if doubt is not None else others))

    def building(self, under_way: BuildUnderWay | None) -> None:
        """A build began, or it has come to its end, one or the other. StorageError."""
        if self.now.building != under_way:
            self._save(msgspec.structs.replace(self.now, building=under_way))

    def explain(self, rows: tuple[Judged, ...]) -> None:
        """What the board does about each engine now, for who asks beside a running agent. StorageError."""
        if rows != self._judged:
            write_file(self._path.with_name(JUDGED), msgspec.json.encode(rows[:MAX_ENTRIES]))
            self._judged = rows

    def _save(self, record: EngineRecord) -> None:
        write_file(self._path, encode(record))
        self.now = record


def read_judged(folder: Path) -> tuple[Judged, ...]:
    """What the board last did about each engine, as `EngineMemory.explain` left it; empty when it cannot be read."""
    try:
        with (folder / JUDGED).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=tuple[Judged, ...])
    except (OSError, msgspec.MsgspecError):
        return ()


def _bounded(entries: dict[str, T], key: str, value: T) -> dict[str, T]:
    """With that entry as the newest, and the oldest gone past the bound."""
    kept = {name: one for name, one in entries.items() if name != key}
    kept[key] = value
    return dict(list(kept.items())[-MAX_ENTRIES:])
