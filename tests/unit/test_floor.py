"""The floor at warm-up, and the ratios over it, window by window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.pipeline.floor import LEAST_RUNS, MOST_RUNS, UNTIMED, measure_floor
from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.floor import LEAST_FRAMES, Floor, Overhead, after_window, floor_of
from jetfleet_contract.messages import Series
from jetfleet_contract.sketch import RELATIVE_ERROR, sketch_of


def window(source: str, frames: int, **stages: float) -> Series:
    return Series("reader", "b", "1", "fp32@openvino:fp32", source, frames, frames,
                  stages={name: sketch_of([ms] * frames) for name, ms in stages.items()})


def test_the_ratios_are_over_the_floor() -> None:
    after = after_window(Overhead(Floor(10.0, 1.0, 0.5)), [window("a", 20, pre=1.0, infer=12.0, decode=0.6, sink=0.4, wait=500.0)])
    assert after.floor == Floor(10.0, 1.0, 0.5)
    assert after.overhead_ratio == pytest.approx(1.4, rel=2 * RELATIVE_ERROR)
    assert after.session_ratio == pytest.approx(1.2, rel=2 * RELATIVE_ERROR)
    assert set(after.gauges) == {"floor_ms", "floor_pre_ms", "floor_decode_ms", "overhead_ratio", "session_ratio"}


def test_sources_are_taken_together() -> None:
    after = after_window(Overhead(Floor(10.0, 1.0, 0.5)), [window("a", 30, infer=11.0), window("b", 9, infer=90.0)])
    assert after.session_ratio == pytest.approx(1.1, rel=2 * RELATIVE_ERROR)


def test_a_floor_that_was_measured_beside_a_champion_is_lowered_and_never_raised() -> None:
    disturbed = Overhead(Floor(20.0, 1.0, 0.5))
    lowered = after_window(disturbed, [window("a", 20, infer=10.0)])
    assert lowered.floor.session_ms == pytest.approx(10.0, rel=RELATIVE_ERROR)
    assert lowered.session_ratio == pytest.approx(1.0)
    hot = after_window(lowered, [window("a", 20, infer=15.0)])
    assert hot.floor == lowered.floor
    assert hot.session_ratio == pytest.approx(1.5, rel=2 * RELATIVE_ERROR)


def test_too_few_frames_change_nothing() -> None:
    before = Overhead(Floor(10.0, 1.0, 0.5), 1.3, 1.1)
    assert after_window(before, [window("a", LEAST_FRAMES - 1, infer=99.0)]) == before
    assert after_window(before, []) == before
    assert after_window(Overhead(), [window("a", 50, infer=9.0)]).gauges == {}
    assert set(Overhead(Floor(10.0, 1.0, 0.5)).gauges) == {"floor_ms", "floor_pre_ms", "floor_decode_ms"}


@given(st.floats(0.01, 1e4), st.lists(st.floats(0.01, 1e4), min_size=LEAST_FRAMES, max_size=30))
def test_a_session_is_never_faster_than_its_floor(floor: float, infer: list[float]) -> None:
    series = Series("a", "b", "1", "c", "s", len(infer), len(infer), stages={"infer": sketch_of(infer)})
    after = after_window(Overhead(Floor(floor, 0.0, 0.0)), [series])
    assert after.session_ratio >= 1.0
    assert after.overhead_ratio >= after.session_ratio * (1 - 1e-9)
    assert after.floor.session_ms <= floor


def test_the_floor_is_of_medians() -> None:
    assert floor_of([5.0, 1.0, 3.0], [0.1, 0.3], [7.0]) == Floor(3.0, 0.2, 7.0)


def test_untimed_runs_come_first_and_the_steps_in_their_order() -> None:
    calls: list[str] = []
    floor = measure_floor(lambda: calls.append("pre"), lambda: calls.append("infer"), lambda: calls.append("decode"))
    assert calls[:3] == ["pre", "infer", "decode"]
    assert UNTIMED + LEAST_RUNS <= calls.count("infer") <= UNTIMED + MOST_RUNS
    assert calls.count("pre") == calls.count("infer") == calls.count("decode")
    assert min(floor.session_ms, floor.pre_ms, floor.decode_ms) > 0


def test_a_model_that_fails_at_warm_up_fails() -> None:
    def fails() -> None:
        raise RuntimeFailure("backend.run", "no memory")

    with pytest.raises(RuntimeFailure):
        measure_floor(lambda: None, fails, lambda: None)
