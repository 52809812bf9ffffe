"""What lies beside an engine in a folder, and whether both are whole."""

from __future__ import annotations

from pathlib import Path

import msgspec

from jetfleet_contract.engines import Passport, check_passport, key_of
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import Message, decode, encode
from jetfleet_host.bundles import digest_file
from jetfleet_host.durable import write_file

RECORD = ".json"
MAX_RECORD_BYTES = 1 << 20


class Record(Message, frozen=True):
    """What lies beside an engine, as JSON: its passport, and the digest and size of the file."""

    key: str
    passport: Passport
    digest: str
    size: int


class Built(msgspec.Struct, frozen=True):
    """An engine in the folder. `fresh`: built now; else it was there and is whole."""

    record: Record
    path: Path
    fresh: bool


def check_engine(path: Path, digest: str, size: int, magic: bytes = b"") -> None:
    """The file is the very engine that is meant, and begins with `magic`.

    Raises:
        MalformedError: `engine.truncated`, `engine.magic`, `engine.flipped`.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(magic))
        there = path.stat().st_size
    except OSError as error:
        raise MalformedError("engine.truncated", f"the engine cannot be read: {error.strerror}", where=str(path)) from None
    if there != size:
        raise MalformedError("engine.truncated", f"the engine has {there} bytes, it was built with {size}", where=str(path),
                             remedy="build it again")
    if start != magic:
        raise MalformedError("engine.magic", "the file is no engine of that runtime", where=str(path), remedy="build it again")
    if digest_file(path) != digest:
        raise MalformedError("engine.flipped", "the engine's content is not what was built", where=str(path), remedy="build it again")


def read_record(record_path: Path, path: Path, magic: bytes = b"") -> Record | None:
    """The record of a whole engine, whose key is what its passport says; None when anything of it is missing or damaged."""
    try:
        record = decode(record_path.read_bytes(), Record, limit=MAX_RECORD_BYTES)
        check_engine(path, record.digest, record.size, magic)
        return record if record.key == key_of(check_passport(record.passport)) else None
    except (OSError, MalformedError):
        return None


def renewed(kept: Record, passport: Passport, record_path: Path) -> Record:
    """The same engine for whom it is wanted now: another bundle may hold the same weights."""
    record = msgspec.structs.replace(kept, passport=passport)
    if record != kept:
        write_file(record_path, encode(record))
    return record
