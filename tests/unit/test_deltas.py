"""Deltas: what is made on the host is applied by the board's program, for every kind of number and every way of changing them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from delta_files import as_type, delta, moved, named, weights, write_onnx

from jetfleet_agent.patching import patch
from jetfleet_contract.delta_format import Copy, Data, Factors, Tensor, read_header, read_records
from jetfleet_contract.errors import StorageError, UntrustedError
from jetfleet_host.deltas.making import shared_share
from jetfleet_host.deltas.matching import Base, byte_records, cut
from jetfleet_host.deltas.regions import tensor_regions


def applied(base: Path, source: Path, tmp_path: Path) -> str:
    """The digest of what the board's program makes."""
    out = tmp_path / "out.part"
    patch(base, source, out, 2)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def records(source: Path) -> list[Any]:
    with source.open("rb") as stream:
        return list(read_records(read_header(stream.read), stream.read))


@pytest.mark.parametrize(("kind", "most"), [("float32", 0.62), ("float16", 0.35), ("bfloat16", 0.20), ("int8", 0.13)])
def test_weights_that_all_moved_a_little_cost_little(tmp_path: Path, kind: str, most: float) -> None:
    old = weights()
    base = write_onnx(tmp_path / "base", as_type(old, kind))
    target = write_onnx(tmp_path / "target", as_type(moved(old, 5e-5, gain=0.01), kind))
    made, source = delta(base, target)
    assert made.chosen == "tensor"
    assert made.size < most * made.full
    assert made.size == source.stat().st_size < min(attempt.size for attempt in made.attempts if attempt.method != "tensor")
    assert applied(base, source, tmp_path) == target.name


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 65504.0])
def test_odd_numbers_come_through(tmp_path: Path, special: float) -> None:
    old, new = weights(), moved(weights(), 1e-4)
    for at, arrays in ((3, old), (5, new)):
        arrays["a.w"].reshape(-1)[at::97] = special
    for kind in ("float32", "float16"):
        with np.errstate(all="ignore"):
            base = write_onnx(tmp_path / "base", as_type(old, kind))
            target = write_onnx(tmp_path / "target", as_type(new, kind))
        made, source = delta(base, target, methods=("tensor",))
        assert made.chosen == "tensor"
        assert applied(base, source, tmp_path) == target.name


def test_an_export_of_the_same_weights_in_another_order_is_tiny(tmp_path: Path) -> None:
    base = write_onnx(tmp_path / "base", weights())
    target = write_onnx(tmp_path / "target", weights(), producer="another exporter", reverse=True)
    made, source = delta(base, target)
    assert made.size < 1000
    assert applied(base, source, tmp_path) == target.name


def test_renamed_tensors_are_found_by_content_and_then_by_shape(tmp_path: Path) -> None:
    old = weights()
    base = write_onnx(tmp_path / "base", old)
    same = write_onnx(tmp_path / "same", {f"onnx::{name}": array for name, array in old.items()})
    made, source = delta(base, same)
    assert made.size < 1500
    assert applied(base, source, tmp_path) == same.name
    other = write_onnx(tmp_path / "other", {f"onnx::{name}": array for name, array in moved(old, 1e-5).items()})
    made, source = delta(base, other)
    assert (made.chosen, made.size < 0.6 * made.full) == ("tensor", True)
    assert applied(base, source, tmp_path) == other.name


def test_a_run_of_changed_weights_costs_that_run(tmp_path: Path) -> None:
    old, new = weights(), weights()
    flat = new["b.w"].reshape(-1)
    flat[3000:4000] += np.random.default_rng(0).normal(0, 0.01, 1000).astype(np.float32)
    base, target = write_onnx(tmp_path / "base", old), write_onnx(tmp_path / "target", new)
    made, source = delta(base, target)
    assert made.size < 5000
    assert applied(base, source, tmp_path) == target.name


def test_bytes_that_moved_are_copied(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 600_000, np.uint8).tobytes()
    (tmp_path / "base").write_bytes(data)
    (tmp_path / "target").write_bytes(b"something new" + data[200_000:] + b"in between" + data[:200_000])
    base, target = named(tmp_path / "base"), named(tmp_path / "target")
    made, source = delta(base, target)
    assert made.chosen in ("chunks", "patch")
    assert made.size < 1000
    assert sum(isinstance(record, Copy) for record in records(source)) >= 2
    assert applied(base, source, tmp_path) == target.name


def test_text_that_changed_here_and_there_refers_to_its_base(tmp_path: Path) -> None:
    lines = [f"line {number}: {number * 7919 % 10007}\n" for number in range(400)]
    (tmp_path / "base").write_text("".join(lines))
    (tmp_path / "target").write_text("".join(line.replace("7: ", "7 = ") for line in lines))
    base, target = named(tmp_path / "base"), named(tmp_path / "target")
    made, source = delta(base, target)
    assert made.chosen == "patch"
    assert any(isinstance(record, Data) and record.window_length for record in records(source))
    assert applied(base, source, tmp_path) == target.name


def test_what_saves_nothing_is_not_kept_and_the_reason_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("base", "target"):
        (tmp_path / name).write_bytes(rng.integers(0, 256, 50_000, np.uint8).tobytes())
    made, source = delta(named(tmp_path / "base"), named(tmp_path / "target"))
    assert (made.chosen, made.size) == (None, 50_000)
    assert "in full" in made.reason
    assert len(made.attempts) == 2
    assert not source.exists()


def test_a_damaged_base_is_named_before_anything_is_written(tmp_path: Path) -> None:
    old = weights()
    base, target = write_onnx(tmp_path / "base", old), write_onnx(tmp_path / "target", moved(old, 1e-5))
    _, source = delta(base, target)
    data = bytearray(base.read_bytes())
    data[5000] ^= 1
    base.write_bytes(data)
    with pytest.raises(UntrustedError) as damaged:
        patch(base, source, tmp_path / "out", 1)
    assert damaged.value.code == "delta.base-damaged"
    assert (tmp_path / "out").stat().st_size == 0
    base.unlink()
    with pytest.raises(StorageError) as missing:
        patch(base, source, tmp_path / "out", 1)
    assert missing.value.code == "delta.base-missing"


def test_a_leftover_of_an_earlier_attempt_is_written_over(tmp_path: Path) -> None:
    old = weights()
    base, target = write_onnx(tmp_path / "base", old), write_onnx(tmp_path / "target", moved(old, 1e-5))
    _, source = delta(base, target)
    (tmp_path / "out.part").write_bytes(b"x" * (target.stat().st_size + 777))
    assert applied(base, source, tmp_path) == target.name


def test_a_prediction_by_gain_takes_what_moved_whole_channels(tmp_path: Path) -> None:
    old = weights()
    base, target = write_onnx(tmp_path / "base", old), write_onnx(tmp_path / "target", moved(old, 1e-6, gain=0.05))
    _, source = delta(base, target)
    ways = {record.predict for record in records(source) if isinstance(record, Tensor)}
    assert "gain" in ways


def test_cuts_depend_on_content_and_not_on_place() -> None:
    data = np.random.default_rng(0).integers(0, 256, 400_000, np.uint8)
    shifted = np.concatenate([np.zeros(777, np.uint8), data])
    chunks = {data[a:b].tobytes() for a, b in cut(data)}
    again = {shifted[a:b].tobytes() for a, b in cut(shifted)}
    assert len(chunks & again) >= len(chunks) - 2
    assert b"".join(data[a:b].tobytes() for a, b in cut(data)) == data.tobytes()


def test_records_of_bytes_make_those_bytes() -> None:
    rng = np.random.default_rng(0)
    old = rng.integers(0, 256, 100_000, np.uint8)
    new = np.concatenate([old[50_000:], rng.integers(0, 256, 3000, np.uint8), old[:50_000]])
    made = byte_records(new, 0, len(new), Base.of(old), near=0, refer=False)
    assert sum(record.length for record in made) == len(new)
    assert sum(record.length for record in made if isinstance(record, Copy)) > 80_000


def test_only_tensors_of_the_same_name_and_shape_are_shared(tmp_path: Path) -> None:
    base = write_onnx(tmp_path / "base", weights())
    assert shared_share(base, write_onnx(tmp_path / "same", moved(weights(), 1e-3))) > 0.99
    other = {name: array[:-1] for name, array in weights().items()}
    assert shared_share(base, write_onnx(tmp_path / "other", other)) == 0.0


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model at all", b"\x3a\xff\xff\xff\xff\x7f", bytes(range(256))])
def test_what_is_no_model_has_no_tensors(data: bytes) -> None:
    assert tensor_regions(memoryview(data)) == ()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "int8"])
def test_what_moved_in_a_few_directions_is_sent_as_those_directions(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    old = {"w": rng.normal(0, 0.02, (256, 1024)).astype(np.float32)}
    by = 1e-3 if kind == "int8" else 2e-4
    step = by * rng.normal(0, 1, (256, 3)) @ rng.normal(0, 1, (3, 1024)) + rng.normal(0, by / 10, (256, 1024))
    base = write_onnx(tmp_path / "base", as_type(old, kind))
    target = write_onnx(tmp_path / "target", as_type({"w": (old["w"] + step).astype(np.float32)}, kind))
    made, source = delta(base, target, methods=("tensor",))
    found = records(source)
    assert any(isinstance(record, Factors) for record in found)
    assert {record.predict for record in found if isinstance(record, Tensor) and record.count > 1000} == {"shift"}
    assert applied(base, source, tmp_path) == target.name
    assert made.size < (0.72 if kind == "float32" else 0.5) * made.full


def test_noise_has_no_directions(tmp_path: Path) -> None:
    old = {"w": np.random.default_rng(3).normal(0, 0.02, (256, 1024)).astype(np.float32)}
    base = write_onnx(tmp_path / "base", old)
    _, source = delta(base, write_onnx(tmp_path / "target", moved(old, 1e-4)), methods=("tensor",))
    assert not any(isinstance(record, Factors) for record in records(source))
