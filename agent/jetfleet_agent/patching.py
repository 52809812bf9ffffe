"""Applies a delta: a program of its own that reads a base blob and a delta and writes the target, piece by piece.

    python -m jetfleet_agent.patching BASE DELTA TARGET [--threads N] [--memory-mb N]

The supervisor starts it as a throw-away process, so that a hostile delta, a decompression bomb or a crash inside a library costs one
attempt and nothing else: its address space is limited before the first byte is read, each piece is at most 4 MiB of the target, and no size
is believed before it was compared. The base is hashed first and the target while it is written; nothing is renamed here.

It ends with 0, or with 3 and one line of JSON on standard output: {"code", "what"}.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import resource
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jetfleet_contract.delta_format import Copy, Data, Factors, Header, Record, Stream, Tensor, read_header, read_records
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError

from .patch_tensors import restored, unpacked_factors

if TYPE_CHECKING:
    from .patch_tensors import Matrix

READ_BYTES = 1 << 20
FAILED = 3


def main() -> None:
    """Parse arguments, apply, tell how it went."""
    parser = argparse.ArgumentParser(prog="jetfleet_agent.patching", description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("delta", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--memory-mb", type=int, default=1024)
    arguments = parser.parse_args()
    limit = arguments.memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        patch(arguments.base, arguments.delta, arguments.target, arguments.threads)
    except JetfleetError as error:
        print(json.dumps({"code": error.code, "what": error.what}))
        sys.exit(FAILED)
    except MemoryError:
        print(json.dumps({"code": "delta.memory", "what": f"the delta needs more than {arguments.memory_mb} MB of memory"}))
        sys.exit(FAILED)


def patch(base: Path, delta: Path, target: Path, threads: int) -> None:
    """Make `target` from `base` and `delta`; an existing file is written over from its beginning and cut to size.

    Raises:
        MalformedError: `delta.malformed`. UntrustedError: `delta.base-damaged`, `delta.wrong-result`.
        StorageError: `delta.base-missing`, `store.full`, `store.io`.
    """
    try:
        with delta.open("rb") as source, _open_base(base) as old, _open_target(target) as new:
            header = read_header(source.read)
            _check_base(old, header)
            digest = hashlib.sha256()
            for piece in _pieces(read_records(header, source.read), old.fileno(), threads):
                digest.update(piece)
                new.write(piece)
            new.truncate()
    except OSError as error:
        code = "store.full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "store.io"
        raise StorageError(code, f"the delta cannot be applied: {error.strerror}", where=str(target)) from None
    if digest.hexdigest() != header.target:
        raise UntrustedError("delta.wrong-result", f"the delta makes {digest.hexdigest()[:16]}... and not {header.target[:16]}...")


def _open_base(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise StorageError("delta.base-missing", f"the base {path.name[:16]} of the delta is not in the store") from None


def _open_target(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "wb")


def _check_base(base: BinaryIO, header: Header) -> None:
    digest = hashlib.sha256()
    while block := base.read(READ_BYTES):
        digest.update(block)
    if digest.hexdigest() != header.base:
        raise UntrustedError("delta.base-damaged", f"the base {header.base[:16]}... on disk is not what its name says")


def _pieces(records: Iterator[Record], base: int, threads: int) -> Iterator[bytes]:
    """The target's pieces in order, a few of them made at the same time."""
    pending: deque[Future[bytes]] = deque()
    factors = None
    with ThreadPoolExecutor(threads) as workers:
        for record in records:
            if isinstance(record, Copy):
                while pending:
                    yield pending.popleft().result()
                yield from _copied(base, record)
                continue
            if isinstance(record, Factors):
                factors = unpacked_factors(record, _unpacked(record.rows))
                continue
            pending.append(workers.submit(_made, base, record, factors))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _copied(base: int, record: Copy) -> Iterator[bytes]:
    at, end = record.offset, record.offset + record.length
    while at < end:
        yield _base_bytes(base, at, min(READ_BYTES, end - at))
        at += READ_BYTES


def _base_bytes(base: int, offset: int, length: int) -> bytes:
    data = os.pread(base, length, offset)
    if len(data) != length:
        raise UntrustedError("delta.base-damaged", "the base on disk is shorter than the delta needs")
    return data


def _made(base: int, record: Data | Tensor, factors: Matrix | None) -> bytes:
    if isinstance(record, Data):
        window = _base_bytes(base, record.window, record.window_length) if record.window_length else b""
        return _unpacked(Stream(record.length, record.packed), window)
    parameters = _unpacked(record.parameters) if record.parameters is not None else b""
    base_bytes = _base_bytes(base, record.offset, record.length)
    return restored(record, base_bytes, parameters, factors, [_unpacked(stream) for stream in record.streams])


def _unpacked(stream: Stream, window: bytes = b"") -> bytes:
    """The bytes of one zstd frame, which has to say itself that it holds exactly `stream.length` of them."""
    import zstandard

    if not stream.length:
        return b""
    try:
        if zstandard.get_frame_parameters(stream.packed).content_size != stream.length:
            raise MalformedError("delta.malformed", "the delta cannot be used: a frame is of another size than its record")
        known = zstandard.ZstdCompressionDict(window, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if window else None
        data = zstandard.ZstdDecompressor(dict_data=known).decompress(stream.packed, max_output_size=stream.length)
    except zstandard.ZstdError as error:
        raise MalformedError("delta.malformed", f"the delta cannot be used: {str(error)[:200]}") from None
    if len(data) != stream.length:
        raise MalformedError("delta.malformed", "the delta cannot be used: a frame gave less than it said")
    return data


if __name__ == "__main__":
    main()
