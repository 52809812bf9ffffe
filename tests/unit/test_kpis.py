"""Business figures: what a hook may say, what its faults cost, how figures travel and compare."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.kpis import MAX_SLOW, Answer, Hook, KpiStep, load_hook
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_contract import kpis
from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_contract.kpis import Figure, Tally, as_values, bounds, checked, tally
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import RELATIVE_ERROR, sketch_of


class Named:
    key = ("a" * 64, "1", "v@onnxruntime:fp32")


MODEL = cast("LoadedModel", Named())


class Bench:
    """A step whose hook is `say`, on a clock that the test moves."""

    def __init__(self, say: Callable[[Answer], object]) -> None:
        self.told: list[Raised] = []
        self.now = 0.0
        self.meter = Meter("app")
        self.loads = 0
        self.step = KpiStep("app", self.meter, self.told.append, load=self.load, clock=lambda: self.now)
        self.say = say
        self.step.configure(AppConfig(kpis="hook"))

    def load(self, _name: str, _options: Mapping[str, Any]) -> Hook:
        self.loads += 1
        return self.say

    def take(self, number: int = 0) -> dict[str, float]:
        frame = Frame("front", number, 0, np.zeros((48, 64, 3), np.uint8), 1.0, 2.0)
        frame.detections = (Detection("person", 0.9, (1.0, 2.0, 3.0, 4.0)),)
        self.step.take(frame, MODEL, 3.0)
        return frame.kpis

    @property
    def codes(self) -> list[str]:
        return [event.code for event in self.told]


def test_figures_go_into_results_and_sketches() -> None:
    bench = Bench(lambda answer: {"people": len(answer.detections), "balance": np.float32(-2.5), "wide": answer.width > 50})
    assert bench.take() == {"people": 1.0, "balance": -2.5, "wide": 1.0}
    (series,) = bench.meter.take()
    assert {name: (sketch.count, sketch.total) for name, sketch in series.values.items()} == {
        "kpi.people": (1, 1.0), "kpi.balance.neg": (1, 2.5), "kpi.wide": (1, 1.0)}
    assert all(sketch.is_consistent() for sketch in series.values.values())
    assert series.stages["kpi"].count == 1
    assert bench.told == []


@pytest.mark.parametrize(("said", "code"), [
    (None, "kpi.kind"), ([1, 2], "kpi.kind"), ({"n": math.nan}, "kpi.value"), ({"n": -math.inf}, "kpi.value"), ({"n": "many"}, "kpi.value"),
    ({"n": 1e13}, "kpi.value"), ({"n": 10 ** 400}, "kpi.value"), ({1: 2.0}, "kpi.name"), ({"a.b": 1.0}, "kpi.name"),
    ({"A": 1.0}, "kpi.name"), ({"x" * 41: 1.0}, "kpi.name"), ({f"n{i}": 1.0 for i in range(13)}, "kpi.count")])
def test_what_breaks_the_contract_costs_this_frames_figures_and_is_said_once(said: object, code: str) -> None:
    bench = Bench(lambda _: said)
    assert [bench.take(n) for n in range(3)] == [{}, {}, {}]
    assert bench.codes == [code]
    assert bench.step.counts() == {f"{code}s": 3.0}
    bench.say = lambda _: {"n": 1.0}
    bench.step.configure(AppConfig(kpis="hook", kpi_options={"zone": "a"}))
    assert bench.take() == {"n": 1.0}
    assert [event.up for event in bench.told] == [True, False]


def test_a_hook_that_raises_never_ends_the_app() -> None:
    def hook(answer: Answer) -> dict[str, float]:
        if answer.frame % 2:
            raise ZeroDivisionError("half of them")
        if answer.frame % 4 == 2:
            raise KeyError("zone")
        return {"n": 1.0}

    bench = Bench(hook)
    assert [bench.take(n) for n in range(8)] == [{"n": 1.0}, {}, {}, {}] * 2
    assert bench.codes == ["kpi.error"]
    assert bench.step.counts() == {"kpi.errors": 6.0}


def test_a_slow_hook_is_switched_off_until_its_settings_change() -> None:
    bench = Bench(lambda _: None)

    def slow(_answer: Answer) -> dict[str, float]:
        bench.now += 0.021
        return {"n": 1.0}

    bench.say = slow
    bench.step.configure(AppConfig(kpis="hook", version=2, kpi_options={"a": 1.0}))
    assert [bench.take(n) for n in range(MAX_SLOW + 3)] == [{"n": 1.0}] * MAX_SLOW + [{}] * 3
    assert bench.codes == ["kpi.slow"]
    loads = bench.loads
    bench.step.configure(AppConfig(kpis="hook", version=3, kpi_options={"a": 1.0}))
    assert bench.take() == {}, "the same hook with the same options stays off"
    bench.step.configure(AppConfig(kpis="hook", kpi_options={"a": 2.0}))
    assert (bench.take(), bench.loads) == ({"n": 1.0}, loads + 1)
    bench.step.configure(AppConfig())
    assert bench.take() == {}


def test_now_and_then_slow_is_not_slow() -> None:
    bench = Bench(lambda _: None)

    def hook(answer: Answer) -> dict[str, float]:
        bench.now += 0.5 if answer.frame % 5 == 0 else 0.0
        return {"n": 1.0}

    bench.say = hook
    bench.step.configure(AppConfig(kpis="hook", kpi_options={"a": 1.0}))
    assert all(bench.take(n) for n in range(500))


def test_a_hook_cannot_flood_telemetry_with_ever_new_names() -> None:
    bench = Bench(lambda answer: {f"n{answer.frame}": 1.0, f"m{answer.frame}": -1.0})
    assert [len(bench.take(n)) for n in range(8)] == [2] * 6 + [0] * 2
    assert bench.codes == ["kpi.count"]
    (series,) = bench.meter.take()
    assert len(series.values) == kpis.MAX_KPIS


def test_a_hook_that_is_not_installed_is_named() -> None:
    with pytest.raises(JetfleetError) as caught:
        load_hook("no-such-hook", {})
    assert caught.value.code == "kpi.unknown"
    told: list[Raised] = []
    step = KpiStep("app", Meter("app"), told.append)
    step.configure(AppConfig(kpis="no-such-hook"))
    assert [(event.source, event.code) for event in told] == [("kpi", "kpi.unknown")]


NUMBERS = st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans())


@given(st.one_of(st.none(), st.text(), st.lists(st.integers()),
                 st.dictionaries(st.one_of(st.text(max_size=50), st.integers()), NUMBERS, max_size=20)))
def test_any_answer_gives_figures_within_bounds_or_a_code(said: object) -> None:
    try:
        found = checked(said)
    except MalformedError:
        return
    assert len(found) <= kpis.MAX_KPIS
    assert all(math.isfinite(value) and abs(value) <= kpis.MAX_VALUE for value in found.values())
    assert all(value >= 0 for value in as_values(found).values())


@given(st.lists(st.floats(-1e6, 1e6).map(lambda v: 0.0 if abs(v) < 1e-3 else v), min_size=1, max_size=60))
def test_a_figure_of_any_sign_keeps_sum_bounds_and_quantiles(values: list[float]) -> None:
    figure = Figure(sketch_of([v for v in values if v >= 0]), sketch_of([-v for v in values if v < 0]))
    assert figure.count == len(values)
    assert figure.total == pytest.approx(math.fsum(values), abs=1e-3)
    assert (figure.least, figure.most) == (min(values), max(values))
    ordered = sorted(values)
    for q in (0.0, 0.5, 0.95, 1.0):
        rank = q * (len(values) - 1)
        near = ordered[max(0, math.floor(rank) - 1): math.ceil(rank) + 2]
        reach = 2 * RELATIVE_ERROR * max(abs(v) for v in near) + 1e-2
        assert min(near) - reach <= figure.quantile(q) <= max(near) + reach


# --- comparison ----------------------------------------------------------------------------------------------------


def test_a_tally_is_the_mean_over_frames_with_the_error_of_its_windows() -> None:
    assert tally([]) == Tally()
    assert tally([(10, 20.0), (0, 0.0)]) == Tally(10, 2.0)
    same = tally([(10, 20.0)] * 10)
    assert (same.count, same.mean, same.error) == (100, 2.0, 0.0)


def test_the_bounds_of_a_mean_hold_as_often_as_they_say() -> None:
    """Windows whose frames are alike (a queue of people stays a while): the true mean is below the upper bound in 95 of 100 samples."""
    draws = random.Random(7)
    held = 0
    for _ in range(400):
        levels = [draws.gauss(3.0, 1.0) for _ in range(40)]
        windows = [(n, math.fsum(level + draws.gauss(0, 0.3) for _ in range(n)))
                   for level in levels if (n := draws.randint(5, 15))]
        _, low, high = bounds([(Tally(), tally(windows))], 0.0, 0.05)
        held += low < 3.0 < high
    assert 0.85 < held / 400 < 0.95


def test_from_five_boards_on_each_is_one_observation() -> None:
    some = [(Tally(100, 4.0, 0.1), Tally(100, 4.0 + 0.1 * n, 0.1)) for n in range(-2, 3)]
    mean, low, high = bounds(some, 1.0, 0.01)
    assert mean == pytest.approx(0.0)
    assert low < 0 < high
    assert bounds([(Tally(9, 2.0), Tally(9, 1.0))], 1.0, 0.01)[1:] == (-math.inf, math.inf), "too few windows tell nothing"
    assert bounds([(Tally(9, 0.0, 0.0), Tally(9, 0.0, 0.0))], 1.1, 0.01) == (0.0, 0.0, 0.0), "nothing stays nothing"
