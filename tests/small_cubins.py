"""Small CUDA ELF files, and folders of them as `kernels build` makes them, without a compiler."""

from __future__ import annotations

import struct
from pathlib import Path

from jetfleet_contract.bundle import digest_of
from jetfleet_contract.kernel_sets import INTERFACE
from jetfleet_contract.kernels import MANIFEST, NAMES, CubinFile, KernelSet
from jetfleet_contract.messages import encode


def elf(flags: int = 0x570557, abi: int = 7, machine: int = 190, kernels: tuple[str, ...] = ("jf_one", "jf_two"), code: int = 256) -> bytes:
    """A small CUDA ELF as ptxas lays it out: names, symbols, one section of code a kernel, then the table of sections."""
    names, symbols, rows = b"\0.strtab\0.symtab\0", b"\0" * 24, []
    at, body = 64, b""
    for kernel in kernels:
        rows.append((len(names), 1, at + len(body), code, 0))
        body += b"\x18\x79" * (code // 2)
        symbols += struct.pack("<IBBHQQ", len(names) + 6, 0x12, 16, len(rows), 0, code)
        names += f".text.{kernel}\0".encode()
    tables = [(1, 3, at + len(body), len(names), 0), (9, 2, at + len(body) + len(names), len(symbols), 1)]
    every = [(0, 0, 0, 0, 0), *tables, *rows]
    body += names + symbols
    table = b"".join(struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, 0, 1, 0) for name, kind, offset, size, link in every)
    ident = b"\x7fELF\x02\x01\x01\x33" + bytes([abi]) + b"\0" * 7
    return struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, 0, 0, at + len(body), flags, 64, 56, 0, 64, len(every), 1) + body + table


def cubin(sm: int, kernels: frozenset[str] = NAMES, code: int = 256) -> bytes:
    """A cubin of the old ABI with these kernels in it."""
    return elf(0x500500 | sm, 7, kernels=tuple(sorted(kernels)), code=code)


def fill(folder: Path, rows: tuple[tuple[int, int], ...], *, interface: int = INTERFACE, source: str = "sha256:" + "5" * 64,
         code: int = 256) -> KernelSet:
    """A folder of cubins for these (SM, CUDA), with its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for sm, cuda in rows:
        data = cubin(sm, code=code)
        name = f"jetfleet.sm_{sm}.cu{cuda}.cubin"
        (folder / name).write_bytes(data)
        files.append(CubinFile(name, sm, cuda, f"{cuda}.0.1", digest_of(data), len(data)))
    found = KernelSet(source, ("--std=c++14",), tuple(sorted(NAMES)), tuple(files), interface)
    (folder / MANIFEST).write_bytes(encode(found))
    return found
