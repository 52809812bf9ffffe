"""Sketches: relative error, exact merging, consistency."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.sketch import MAX_VALUE, MIN_VALUE, RELATIVE_ERROR, Sketch, SketchRecorder, sketch_of

VALUES = st.lists(st.floats(min_value=MIN_VALUE, max_value=MAX_VALUE, allow_nan=False), min_size=1, max_size=200)


@given(VALUES, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_within_the_stated_relative_error(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert sketch_of(values).quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.0001)


@given(VALUES, VALUES)
def test_merging_is_the_sketch_of_both_samples(a: list[float], b: list[float]) -> None:
    merged, both = sketch_of(a).merged(sketch_of(b)), sketch_of(a + b)
    assert merged.buckets == both.buckets
    assert (merged.count, merged.least, merged.most) == (both.count, both.least, both.most)
    assert merged.total == pytest.approx(both.total)


@given(VALUES, VALUES)
def test_merging_commutes(a: list[float], b: list[float]) -> None:
    left, right = sketch_of(a).merged(sketch_of(b)), sketch_of(b).merged(sketch_of(a))
    assert left.buckets == right.buckets
    assert left.count == right.count


@given(VALUES)
def test_json_keeps_a_sketch_whole(values: list[float]) -> None:
    sketch = sketch_of(values)
    assert msgspec.json.decode(msgspec.json.encode(sketch), type=Sketch) == sketch
    assert sketch.is_consistent()


def test_values_out_of_range_are_counted_at_the_bounds() -> None:
    sketch = sketch_of([0.0, 1e9])
    assert sketch.count == 2
    assert sketch.is_consistent()
    assert (sketch.least, sketch.most) == (0.0, 1e9)


def test_taking_starts_anew_and_merging_with_nothing_changes_nothing() -> None:
    recorder = SketchRecorder()
    recorder.add(5.0)
    first = recorder.take()
    assert first.count == 1
    assert recorder.take() == Sketch()
    assert first.merged(Sketch()) == first == Sketch().merged(first)
    assert Sketch().quantile(0.5) == 0.0


@pytest.mark.parametrize("change", [{"count": 3}, {"buckets": {10**6: 1}}, {"buckets": {5: -1}}, {"total": math.nan}, {"least": 9.0}])
def test_a_forged_sketch_is_inconsistent(change: dict[str, object]) -> None:
    assert not msgspec.structs.replace(sketch_of([5.0]), **change).is_consistent()
