"""The arithmetic of a delta's tensor pieces, as `jetfleet_contract.delta_format` writes it down; numbers in, bytes out.

It runs in the throw-away process of `patching`. All of it is IEEE 754 in float32 or whole numbers, so that a Jetson predicts, bit for bit,
what the host predicted when it made the delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jetfleet_contract.delta_format import WIDTHS, Factors, Tensor
from jetfleet_contract.errors import MalformedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[np.unsignedinteger]
    Matrix = NDArray[np.float32]

_MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23}


def unpacked_factors(record: Factors, rows: bytes) -> Matrix:
    """The factors as float32 (rank, columns)."""
    import numpy as np

    return np.frombuffer(rows, np.int8).astype(np.float32).reshape(record.rank, record.columns)


def restored(record: Tensor, base: bytes, parameters: bytes, factors: Matrix | None, streams: Sequence[bytes]) -> bytes:
    """The target's bytes of one piece.

    Args:
        base: the numbers that it is predicted from. parameters, streams: the record's, unpacked; their lengths were checked.
        factors: those that a `shift` refers to.

    Raises:
        MalformedError: `delta.malformed` when escapes and their places do not match.
    """
    import numpy as np

    predicted, keys = _predicted(record, base, parameters, factors)
    misses = _misses(record, streams)
    one = misses.dtype.type(1)
    signed = np.right_shift(misses, one)
    np.bitwise_and(misses, one, out=misses)
    np.negative(misses, out=misses)
    np.bitwise_xor(signed, misses, out=signed)
    if record.order == "context":
        order = np.argsort(_exponents(record, predicted) if keys is None else keys, kind="stable")
        misses[order] = signed
        signed = misses
    if record.kind == "int8":
        return (predicted + signed).tobytes()
    return _unmapped(_mapped(predicted) + signed).tobytes()


def _predicted(record: Tensor, base: bytes, parameters: bytes, factors: Matrix | None) -> tuple[Bits, NDArray[np.uint8] | None]:
    """The prediction's bits as unsigned numbers of the target's width; and, for whole numbers, what they are sorted by."""
    import numpy as np

    wide = np.dtype(f"<u{WIDTHS[record.kind]}")
    if record.predict == "same":
        bits = np.frombuffer(base, wide)
        return bits, np.full(len(bits), 16, np.uint8) if record.kind == "int8" else None
    values = _floats(record, base)
    with np.errstate(all="ignore"):
        values = _gained(record, values, parameters[:2 * record.channels])
        if record.predict == "shift" and factors is not None:
            values += _shift(record, parameters[2 * record.channels:], factors)
        if record.kind == "int8":
            return _whole(values)
        return _rounded(record, values), None


def _shift(record: Tensor, parameters: bytes, factors: Matrix) -> Matrix:
    """The low-rank part: whole numbers, exact, times one float32 a channel."""
    import numpy as np

    scales = np.frombuffer(parameters[:4 * record.channels], "<f4").reshape(-1, 1)
    rows = np.frombuffer(parameters[4 * record.channels:], np.int8).astype(np.float32).reshape(record.channels, -1)
    moved = rows @ factors
    np.multiply(moved, scales, out=moved)
    shift = moved.reshape(-1)
    return shift if len(shift) == record.count else np.tile(shift, record.count // len(shift))


def _floats(record: Tensor, base: bytes) -> NDArray[np.float32]:
    import numpy as np

    if record.kind == "bfloat16":
        return (np.frombuffer(base, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(base, {"int8": "<i1", "float16": "<f2", "float32": "<f4"}[record.kind]).astype(np.float32)


def _gained(record: Tensor, values: NDArray[np.float32], steps: bytes) -> NDArray[np.float32]:
    import numpy as np

    gains = np.float32(1) + np.frombuffer(steps, "<i2").astype(np.float32) / np.float32(32768)
    shaped = values.reshape(-1, record.channels, record.inner)
    gained: NDArray[np.float32] = np.multiply(shaped, gains.reshape(1, -1, 1)).reshape(-1)
    return gained


def _rounded(record: Tensor, values: NDArray[np.float32]) -> Bits:
    """float32 numbers as bits of the target's type, rounded to even: IEEE 754, so that every machine predicts the same."""
    import numpy as np

    if record.kind == "float32":
        return values.view("<u4")
    if record.kind == "float16":
        return values.astype("<f2").view("<u2")
    if record.kind == "bfloat16":
        bits = values.view("<u4")
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    raise MalformedError("delta.malformed", f"the delta cannot be used: {record.kind} is not rounded to")


def _whole(values: NDArray[np.float32]) -> tuple[Bits, NDArray[np.uint8]]:
    """int8 numbers, and the part that rounding took, in 32nds from -1/2."""
    import numpy as np

    whole = np.clip(np.rint(values), -127, 127)
    np.subtract(values, whole, out=values)
    np.multiply(values, np.float32(32), out=values)
    np.add(values, np.float32(16), out=values)
    np.clip(values, 0, 31, out=values)
    return whole.astype(np.int8).view(np.uint8), values.astype(np.uint8)


def _misses(record: Tensor, streams: Sequence[bytes]) -> Bits:
    """The zig-zagged misses in the order in which they stand."""
    import numpy as np

    if record.layout == "planes":
        return _joined(record, streams)
    base = np.frombuffer(streams[0], np.uint8)
    bits = 4 if record.layout == "nibbles" else 2
    per_byte, escape = 8 // bits, (1 << bits) - 1
    spread = np.empty((len(base), per_byte), np.uint8)
    for index in range(per_byte):
        np.bitwise_and(base >> np.uint8(bits * index), np.uint8(escape), out=spread[:, index])
    small = spread.reshape(-1)[:record.count]
    misses = small.astype(f"<u{WIDTHS[record.kind]}")
    escaped = np.flatnonzero(small == escape)
    others = _joined(record, streams[1:])
    if len(escaped) != len(others):
        raise MalformedError("delta.malformed", f"the delta cannot be used: {len(others)} escapes for {len(escaped)} places")
    misses[escaped] = others
    return misses


def _joined(record: Tensor, planes: Sequence[bytes]) -> Bits:
    """Numbers from their byte planes, lowest first."""
    import numpy as np

    width = WIDTHS[record.kind]
    joined = np.empty((len(planes[0]), width), np.uint8)
    for index, plane in enumerate(planes):
        joined[:, index] = np.frombuffer(plane, np.uint8)
    return joined.reshape(-1).view(f"<u{width}")


def _exponents(record: Tensor, bits: Bits) -> NDArray[np.uint8]:
    import numpy as np

    shifted = bits >> bits.dtype.type(_MANTISSA[record.kind])
    return (shifted & shifted.dtype.type(0x1F if record.kind == "float16" else 0xFF)).astype(np.uint8)


def _mapped(bits: Bits) -> Bits:
    """Unsigned numbers in the order of the floats that `bits` are."""
    import numpy as np

    width = bits.dtype.itemsize
    top = bits.dtype.type(1 << (8 * width - 1))
    signs = np.right_shift(bits.view(f"<i{width}"), 8 * width - 1).view(bits.dtype)
    np.bitwise_or(signs, top, out=signs)
    mapped: Bits = np.bitwise_xor(bits, signs, out=signs)
    return mapped


def _unmapped(numbers: Bits) -> Bits:
    import numpy as np

    width = numbers.dtype.itemsize
    top = numbers.dtype.type(1 << (8 * width - 1))
    signs = np.right_shift(numbers.view(f"<i{width}"), 8 * width - 1).view(numbers.dtype)
    np.invert(signs, out=signs)
    np.bitwise_or(signs, top, out=signs)
    bits: Bits = np.bitwise_xor(numbers, signs, out=signs)
    return bits
