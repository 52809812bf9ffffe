"""Reading a cubin: which GPU it is for and which kernels it holds, from its own ELF headers, without any CUDA tool.

A cubin is a little-endian ELF64 file of machine 190. `e_flags` holds the GPU's number SM (87 for compute capability 8.7): in its low
byte up to CUDA 12 (ABI version up to 7), in bits 8 to 15 from CUDA 13 on (ABI version 8, in CUDA 12.9 already for SM 100 and newer).
Every kernel NAME is a global function symbol with its code in the section ``.text.NAME``. On SM 70 and newer an instruction has 16 bytes.
"""

from __future__ import annotations

import struct

import msgspec

from .errors import IncompatibleError, MalformedError

MAX_CUBIN_BYTES = 64 << 20
MAX_SECTIONS = 8192
MAX_SYMBOLS = 65_536
INSTRUCTION_BYTES = 16
_CUDA = 190
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2
_PROGRAM_BITS = 1
_GLOBAL_FUNCTION = 0x12


class Cubin(msgspec.Struct, frozen=True):
    """What a cubin says of itself. `kernels`: bytes of code by kernel name, padding included."""

    sm: int
    abi: int
    kernels: dict[str, int]

    def instructions(self, kernel: str) -> int:
        """How many machine instructions the kernel has, the padding at its end included; SM 70 and newer."""
        return self.kernels[kernel] // INSTRUCTION_BYTES


class _Section(msgspec.Struct, frozen=True):
    name: int
    kind: int
    offset: int
    size: int
    link: int


def read_cubin(data: bytes) -> Cubin:
    """What `data` is.

    Raises:
        MalformedError: `cubin.size`, `cubin.foreign` (no CUDA ELF), `cubin.truncated` (a table or a kernel's code lies outside of the
            file), `cubin.broken` (a count, name or index that cannot be).
    """
    if len(data) > MAX_CUBIN_BYTES:
        raise MalformedError("cubin.size", f"a cubin of {len(data)} bytes; at most {MAX_CUBIN_BYTES} are read")
    if len(data) < _HEADER.size:
        raise MalformedError("cubin.truncated", f"{len(data)} bytes are too few for an ELF header")
    header = _HEADER.unpack_from(data)
    ident, _, machine, _, _, programs_at, sections_at, flags, _, program_size, programs, entry_size, count, names_at = header
    if ident[:4] != b"\x7fELF" or ident[4:6] != b"\x02\x01" or machine != _CUDA:
        raise MalformedError("cubin.foreign", "this is no CUDA ELF file: a cubin is a little-endian ELF64 file of machine 190")
    if programs_at + programs * program_size > len(data):
        raise MalformedError("cubin.truncated", "the table of program headers lies outside of the file")
    abi = ident[8]
    sections = _sections(data, sections_at, entry_size, count)
    if names_at >= len(sections):
        raise MalformedError("cubin.broken", f"the section of names has number {names_at} of {len(sections)}")
    names = _bytes(data, sections[names_at])
    code = {}
    for section in sections:
        name = _name(names, section.name)
        if section.kind == _PROGRAM_BITS and name.startswith(".text."):
            _bytes(data, section)
            code[name.removeprefix(".text.")] = section.size
    functions = set()
    for section in sections:
        if section.kind == _SYMBOL_TABLE:
            functions |= _functions(data, section, sections)
    return Cubin(flags >> 8 & 0xFF if abi >= 8 else flags & 0xFF, abi, {name: code[name] for name in sorted(code) if name in functions})


def check_cubin(data: bytes, sm: int, kernels: frozenset[str]) -> Cubin:
    """`read_cubin`, and it is for that SM and holds all of `kernels`.

    Raises:
        MalformedError: as `read_cubin`.
        IncompatibleError: `cubin.sm`, `cubin.kernels`.
    """
    found = read_cubin(data)
    if found.sm != sm:
        raise IncompatibleError("cubin.sm", f"the cubin is for sm_{found.sm}, not for sm_{sm}",
                                remedy=f"build one for sm_{sm}: jetfleet kernels build --sm {sm}")
    missing = sorted(kernels - found.kernels.keys())
    if missing:
        raise IncompatibleError("cubin.kernels", f"the cubin lacks {len(missing)} of {len(kernels)} kernels, {missing[0]} among them",
                                remedy="build the cubins again, with this version: jetfleet kernels build")
    return found


def _sections(data: bytes, at: int, entry_size: int, count: int) -> list[_Section]:
    if entry_size != _SECTION.size or not 0 < count <= MAX_SECTIONS:
        raise MalformedError("cubin.broken", f"a table of {count} sections of {entry_size} bytes each is none of a cubin's")
    if at < _HEADER.size or at + count * entry_size > len(data):
        raise MalformedError("cubin.truncated", "the table of sections lies outside of the file")
    rows = (_SECTION.unpack_from(data, at + index * entry_size) for index in range(count))
    return [_Section(row[0], row[1], row[4], row[5], row[6]) for row in rows]


def _bytes(data: bytes, section: _Section) -> bytes:
    if section.offset + section.size > len(data):
        raise MalformedError("cubin.truncated", f"a section ends at byte {section.offset + section.size} of {len(data)}")
    return data[section.offset:section.offset + section.size]


def _name(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    if not 0 <= at <= end:
        raise MalformedError("cubin.broken", f"a name at {at} is outside of its table")
    try:
        return table[at:end].decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError("cubin.broken", f"the name at {at} is not ASCII") from None


def _functions(data: bytes, section: _Section, sections: list[_Section]) -> set[str]:
    if section.size % _SYMBOL.size or section.size // _SYMBOL.size > MAX_SYMBOLS or section.link >= len(sections):
        raise MalformedError("cubin.broken", "the table of symbols cannot be one")
    names = _bytes(data, sections[section.link])
    found = set()
    for name, kind, _other, _index, _value, _size in _SYMBOL.iter_unpack(_bytes(data, section)):
        if kind == _GLOBAL_FUNCTION:
            found.add(_name(names, name))
    return found
