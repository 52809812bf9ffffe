"""Packs one tensor of the target as what a prediction from the base's tensor misses; the arithmetic is that of `delta_format`.

For every tensor the prediction is picked that leaves the smallest misses, for every piece of it the layout that packs best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.delta_format import (
    MAX_PIECE,
    WIDTHS,
    Copy,
    Data,
    Factors,
    Layout,
    Order,
    Predict,
    Record,
    Stream,
    Tensor,
    write_record,
)

from .low_rank import Shift, factors_of, shift
from .matching import Bytes, packed
from .regions import Region

PIECE = 1 << 20
_THOROUGH_SHARE = 0.4
_MIN_PART = 2048
_GAIN_STEP = 32768.0
_FINE = 1e-12
_LEAST_SIDE = 32
_MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23}

Bits = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Prediction:
    """What the target is predicted to be: its bits, and the channel that each number belongs to."""

    predict: Predict
    bits: Bits
    channels: int = 1
    inner: int = 1
    parameters: tuple[NDArray[np.generic], ...] = ()
    factors: NDArray[np.int8] | None = None
    keys: NDArray[np.uint8] | None = None

    @property
    def cost(self) -> int:
        """About the bytes of the parameters, which pack a little."""
        own = sum(part.nbytes for part in self.parameters)
        return own if self.factors is None else int(0.85 * (own + self.factors.nbytes))


def tensor_records(target: Bytes, region: Region, base: Bytes, origin: Region) -> list[Record]:
    """Records that make the target's `region` from the base's `origin`, which has as many numbers of the same type."""
    wanted = _bits(target, region)
    prediction = _best(wanted, region, _bits(base, origin))
    records: list[Record] = []
    if prediction.factors is not None:
        rank, columns = prediction.factors.shape
        records.append(Factors(rank, columns, Stream(rank * columns, packed(prediction.factors.tobytes(), level=9))))
    for start, stop in _pieces(region, prediction):
        records.append(_piece(target, region, wanted, prediction, origin, start, stop))
    return _merged(records)


# --- prediction ------------------------------------------------------------------------------------------------


def _best(wanted: Bits, region: Region, old: Bits) -> Prediction:
    return min(_predictions(wanted, region, old), key=lambda way: _missed_bits(wanted, way.bits, region) / 8 + way.cost)


def _predictions(wanted: Bits, region: Region, old: Bits) -> Iterator[Prediction]:
    yield Prediction("same", old)
    if len(region.dims) < 2 or not region.signed or np.array_equal(wanted, old):
        return
    new, before = _floats(wanted, region), _floats(old, region)
    if not (np.isfinite(new).all() and np.isfinite(before).all()):
        return
    for channels, inner in _channelings(region):
        gained = _gained(region, new, before, channels, inner)
        yield gained
        if channels * inner == region.count and min(channels, inner) >= _LEAST_SIDE:
            shifted = shift(new, before, channels, inner, gained.parameters[0])
            if shifted is not None:
                yield _shifted(region, before, shifted)


def _channelings(region: Region) -> Iterator[tuple[int, int]]:
    """(channels, numbers of one channel in a row): along the first axis, and along the last one of a product's matrix."""
    most = MAX_PIECE // WIDTHS[region.kind]
    if region.count // region.dims[0] <= most:
        yield region.dims[0], region.count // region.dims[0]
    if len(region.dims) == 2 and region.dims[1] <= most:
        yield region.dims[1], 1


def _gained(region: Region, new: NDArray[np.float32], old: NDArray[np.float32], channels: int, inner: int) -> Prediction:
    """Per channel the factor of least squares, in steps of 2**-15 from 1."""
    a, b = old.reshape(-1, channels, inner), new.reshape(-1, channels, inner)
    over = np.einsum("kci,kci->c", a, b, dtype=np.float64)
    under = np.einsum("kci,kci->c", a, a, dtype=np.float64)
    factors = np.where(under > _FINE, over / np.maximum(under, _FINE), 1.0)
    steps = np.clip(np.rint((factors - 1.0) * _GAIN_STEP), -32768, 32767).astype("<i2")
    exact = factors_of(steps)
    values: NDArray[np.float32] = np.asarray(a * exact.reshape(1, -1, 1), np.float32).reshape(-1)
    return _of_values("gain", region, values, channels, inner, (steps,))


def _shifted(region: Region, old: NDArray[np.float32], found: Shift) -> Prediction:
    channels, inner = found.rows.shape[0], found.factors.shape[1]
    values = old.reshape(channels, inner) * factors_of(found.steps).reshape(-1, 1)
    moved = found.rows.astype(np.float32) @ found.factors.astype(np.float32)
    values = np.asarray(values + moved * found.scales.reshape(-1, 1), np.float32).reshape(-1)
    return _of_values("shift", region, values, channels, inner, (found.steps, found.scales, found.rows), found.factors)


def _of_values(predict: Predict, region: Region, values: NDArray[np.float32], channels: int, inner: int,
               parameters: tuple[NDArray[np.generic], ...], factors: NDArray[np.int8] | None = None) -> Prediction:
    bits = _rounded(values, region)
    keys = None
    if region.kind == "int8":
        keys = np.clip((values - bits.view(np.int8).astype(np.float32)) * np.float32(32) + np.float32(16), 0, 31).astype(np.uint8)
    return Prediction(predict, bits, channels, inner, parameters, factors, keys)


def _floats(bits: Bits, region: Region) -> NDArray[np.float32]:
    if region.kind == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view({"int8": "<i1", "float16": "<f2", "float32": "<f4"}[region.kind]).astype(np.float32)


def _rounded(values: NDArray[np.float32], region: Region) -> Bits:
    with np.errstate(all="ignore"):
        if region.kind == "float32":
            return values.view("<u4")
        if region.kind == "float16":
            return values.astype("<f2").view("<u2")
        if region.kind == "bfloat16":
            bits = values.view("<u4")
            return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
        return np.clip(np.rint(values), -127, 127).astype(np.int8).view(np.uint8)


def _bits(data: Bytes, region: Region) -> Bits:
    part = data[region.offset:region.offset + region.length]
    wide = f"<u{WIDTHS[region.kind]}"
    return part.view(wide) if region.offset % WIDTHS[region.kind] == 0 else np.frombuffer(part.tobytes(), wide)


# --- misses ----------------------------------------------------------------------------------------------------


def _zigzag(wanted: Bits, predicted: Bits, region: Region) -> Bits:
    missed = wanted - predicted if region.kind == "int8" else _mapped(wanted) - _mapped(predicted)
    width = 8 * missed.dtype.itemsize
    signs = (missed.view(f"<i{width // 8}") >> (width - 1)).view(missed.dtype)
    zigzag: Bits = np.bitwise_xor(missed << missed.dtype.type(1), signs)
    return zigzag


def _mapped(bits: Bits) -> Bits:
    width = 8 * bits.dtype.itemsize
    signs = (bits.view(f"<i{width // 8}") >> (width - 1)).view(bits.dtype)
    return bits ^ (signs | bits.dtype.type(1 << (width - 1)))


def _missed_bits(wanted: Bits, predicted: Bits, region: Region) -> float:
    """About how many bits the misses take: the logarithm of each, which is what an entropy code of their scale spends."""
    return float(np.log2(_zigzag(wanted, predicted, region).astype(np.float32) + 1).sum())


def _exponents(bits: Bits, region: Region) -> NDArray[np.uint8]:
    mask = 0x1F if region.kind == "float16" else 0xFF
    return ((bits >> bits.dtype.type(_MANTISSA[region.kind])) & bits.dtype.type(mask)).astype(np.uint8)


# --- pieces ----------------------------------------------------------------------------------------------------


def _pieces(region: Region, prediction: Prediction) -> Iterator[tuple[int, int]]:
    """Ranges of numbers, each a whole number of channels where the prediction has some."""
    room = PIECE // WIDTHS[region.kind]
    step = room if not prediction.parameters else max(1, room // _row(prediction)) * _row(prediction)
    for start in range(0, region.count, step):
        yield start, min(start + step, region.count)


def _row(prediction: Prediction) -> int:
    """Numbers that a piece cannot be cut inside: one channel where each comes once, all of them where they take turns."""
    return prediction.inner if prediction.channels * prediction.inner == len(prediction.bits) else prediction.channels * prediction.inner


def _piece(target: Bytes, region: Region, wanted: Bits, prediction: Prediction, origin: Region, start: int, stop: int) -> Record:
    offset = origin.offset + start * WIDTHS[region.kind]
    here = slice(start, stop)
    if prediction.predict == "same" and np.array_equal(wanted[here], prediction.bits[here]):
        return Copy(offset, (stop - start) * WIDTHS[region.kind])
    channels, inner, parameters = _share(prediction, start, stop)
    misses = _zigzag(wanted[here], prediction.bits[here], region)
    keys = _keys(prediction, here, region)
    layout, order, streams = _least(misses, keys)
    made = Tensor(region.kind, prediction.predict, layout, order, offset, stop - start, channels, inner, parameters, streams)
    first = region.offset + start * WIDTHS[region.kind]
    plain = target[first:first + made.length].tobytes()
    literal = Data(made.length, 0, 0, packed(plain, level=3))
    return literal if len(literal.packed) < len(write_record(made)) else made


def _share(prediction: Prediction, start: int, stop: int) -> tuple[int, int, Stream | None]:
    """Channels, run length and parameters of one piece."""
    if not prediction.parameters:
        return 1, stop - start, None
    parameters, channels = prediction.parameters, prediction.channels
    if channels * prediction.inner == len(prediction.bits):
        parameters = tuple(part[start // prediction.inner:stop // prediction.inner] for part in parameters)
        channels = len(parameters[0])
    raw = b"".join(part.tobytes() for part in parameters)
    return channels, prediction.inner, Stream(len(raw), packed(raw, level=9))


def _keys(prediction: Prediction, here: slice, region: Region) -> NDArray[np.uint8] | None:
    """What the misses of a piece may be sorted by."""
    if region.kind != "int8":
        return _exponents(prediction.bits[here], region)
    return None if prediction.keys is None else prediction.keys[here]


def _least(misses: Bits, keys: NDArray[np.uint8] | None) -> tuple[Layout, Order, tuple[Stream, ...]]:
    """The layout and order that pack best, tried quickly; what is sparse is then packed again with more effort."""
    ways = _layouts(misses, "plain", [])
    if keys is not None and misses.any():
        ways += _layouts(misses[np.argsort(keys, kind="stable")], "context", _parts(keys))
    tried = [(sum(len(_frame(raw, 1, parts)) for raw in raws), layout, order, raws, parts) for layout, order, raws, parts in ways]
    size, layout, order, raws, parts = min(tried, key=lambda entry: entry[0])
    frames = [_frame(raw, 1, parts) for raw in raws]
    if size < _THOROUGH_SHARE * misses.nbytes:
        frames = [min(frame, _frame(raw, 19, ()), key=len) for frame, raw in zip(frames, raws, strict=True)]
    return layout, order, tuple(Stream(len(raw), frame) for raw, frame in zip(raws, frames, strict=True))


def _layouts(misses: Bits, order: Order, parts: list[int]) -> list[tuple[Layout, Order, list[bytes], list[int]]]:
    """The layouts that may pay, with where new parts begin in their streams."""
    ways: list[tuple[Layout, Order, list[bytes], list[int]]] = [("planes", order, _planes(misses), parts)]
    if np.count_nonzero(misses < 15) > 0.9 * len(misses):
        ways.append(("nibbles", order, _nested(misses, 4), [part // 2 for part in parts]))
    if np.count_nonzero(misses < 3) > 0.6 * len(misses):
        ways.append(("crumbs", order, _nested(misses, 2), [part // 4 for part in parts]))
    return ways


def _planes(values: Bits) -> list[bytes]:
    width = values.dtype.itemsize
    flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1, width)
    return [flat[:, index].tobytes() for index in range(width)]


def _nested(misses: Bits, bits: int) -> list[bytes]:
    """Small misses several to a byte, the others behind."""
    escape = (1 << bits) - 1
    small = np.minimum(misses, misses.dtype.type(escape)).astype(np.uint8)
    per_byte = 8 // bits
    padded = np.zeros(-(-len(small) // per_byte) * per_byte, np.uint8)
    padded[:len(small)] = small
    rows = padded.reshape(-1, per_byte)
    joined = rows[:, 0].copy()
    for index in range(1, per_byte):
        joined |= rows[:, index] << np.uint8(bits * index)
    return [joined.tobytes(), *_planes(misses[small == escape])]


def _parts(keys: NDArray[np.uint8]) -> list[int]:
    """Where, in numbers sorted by `keys`, each part of its own begins; tiny ones go with their neighbour."""
    counts = np.bincount(keys, minlength=256)
    parts: list[int] = []
    at = since = 0
    for count in counts.tolist():
        at, since = at + count, since + count
        if since >= _MIN_PART:
            parts.append(at)
            since = 0
    return parts[:-1]


def _frame(raw: bytes, level: int, parts: Sequence[int]) -> bytes:
    """One zstd frame; a new block, and so a new entropy code, begins at each of `parts`."""
    if not raw:
        return b""
    parts = [part for part in parts if part < len(raw)]
    if not parts:
        return packed(raw, level=level)
    import zstandard

    work = zstandard.ZstdCompressor(level=level, write_checksum=False).compressobj(size=len(raw))
    pieces = []
    for start, stop in zip((0, *parts), (*parts, len(raw)), strict=True):
        pieces += [work.compress(raw[start:stop]), work.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*pieces, work.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)])


def _merged(records: list[Record]) -> list[Record]:
    """Copies that follow each other in the base become one."""
    merged: list[Record] = []
    for record in records:
        last = merged[-1] if merged else None
        if isinstance(record, Copy) and isinstance(last, Copy) and last.offset + last.length == record.offset:
            merged[-1] = Copy(last.offset, last.length + record.length)
        else:
            merged.append(record)
    return merged
