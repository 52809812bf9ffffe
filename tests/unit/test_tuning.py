"""Which settings a board measures, which of them win, and what a run may call itself."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.tuning import (
    CLEARLY,
    MAX_SETTINGS,
    Tuning,
    TuningChoice,
    TuningFigures,
    choose_tuning,
    eco_tuning,
    ran_in,
    settings_to_measure,
)

FOLDED, FLUSH = Tuning(folded=True), Tuning(flush=True)


def figures(tuning: Tuning, period: tuple[float, ...], cpu: tuple[float, ...] = (), error: str = "") -> TuningFigures:
    return TuningFigures(tuning, period, cpu or tuple(20.0 for _ in period), error)


def test_the_fastest_that_wins_every_round_clearly_is_chosen() -> None:
    choice = choose_tuning([figures(Tuning(), (10.0, 10.2, 10.1)), figures(FOLDED, (9.5, 9.6, 9.4)), figures(FLUSH, (9.0, 9.1, 9.2))])
    assert choice.tuning == FLUSH
    assert choice.reason == "0.90x the time of the defaults"
    assert len(choice.figures) == 3


def test_one_lost_round_keeps_the_defaults() -> None:
    choice = choose_tuning([figures(Tuning(), (10.0, 10.0, 8.9)), figures(FOLDED, (9.0, 9.0, 9.0))])
    assert choice.tuning == Tuning()
    assert choice.reason == "no setting clearly beats the defaults"


def test_a_gain_within_the_noise_keeps_the_defaults() -> None:
    assert choose_tuning([figures(Tuning(), (10.0, 10.0)), figures(FOLDED, (9.8, 9.8))]).tuning == Tuning()


def test_as_fast_for_much_less_cpu_is_a_gain() -> None:
    choice = choose_tuning([figures(Tuning(), (10.0, 10.0), (20.0, 20.0)), figures(FLUSH, (10.05, 10.05), (14.0, 14.0))])
    assert choice.tuning == FLUSH
    assert "0.70x the CPU time" in choice.reason
    assert choose_tuning([figures(Tuning(), (10.0, 10.0), (20.0, 20.0)), figures(FLUSH, (10.5, 10.5), (14.0, 14.0))]).tuning == Tuning()


def test_a_setting_that_cannot_be_used_is_none_and_defaults_that_cannot_decide_nothing() -> None:
    broken = figures(FOLDED, (), error="answers differ")
    assert choose_tuning([figures(Tuning(), (10.0, 10.0)), broken]).tuning == Tuning()
    assert choose_tuning([figures(Tuning(), (), error="does not load"), figures(FOLDED, (1.0, 1.0))]).reason == "does not load"
    assert choose_tuning([]).reason == "not measured"
    assert choose_tuning([figures(Tuning(), (10.0,)), figures(FOLDED, (1.0,))]).tuning == Tuning()  # one round proves nothing


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)), min_size=1, max_size=8))
def test_a_chosen_setting_is_never_slower_in_any_round(rounds: list[tuple[float, float]]) -> None:
    base, rival = (tuple(column) for column in zip(*rounds, strict=True))
    choice = choose_tuning([figures(Tuning(), base), figures(FOLDED, rival)])
    if choice.tuning == FOLDED:
        assert all(b < a for a, b in rounds)
        assert statistics.median(rival) <= CLEARLY * statistics.median(base)


def test_settings_begin_with_the_defaults_and_pin_only_a_model_that_fills_the_board() -> None:
    for backend in ("onnxruntime", "openvino"):
        for threads, cores, pins in ((0, 4, True), (4, 4, True), (2, 4, False), (1, 1, False)):
            settings = settings_to_measure(backend, threads=threads, cores=cores)
            assert settings[0] == Tuning()
            assert len(set(settings)) == len(settings) <= MAX_SETTINGS
            assert any(one.pinned for one in settings) is pins
    assert settings_to_measure("tensorrt", threads=0, cores=4) == ()
    assert settings_to_measure("tensorrt", threads=0, cores=4, dla=True) == (Tuning(), Tuning(provider="DLA0"))
    assert settings_to_measure("tensorrt-rtx", threads=0, cores=4, dla=True) == ()


def test_a_run_is_called_what_most_of_it_was() -> None:
    assert ran_in("bf16", {"bf16": 60, "fp32": 2}) == "bf16"
    assert ran_in("bf16", {"fp32": 60, "bf16": 2}) == "fp32"
    assert ran_in("fp16", {"bf16": 62}) == "bf16"
    assert ran_in("int8", {"int8": 40, "fp32": 24}) == "int8"
    assert ran_in("int8", {"int8": 20, "fp32": 44}) == "int8"  # what the builder left in float for its accuracy
    assert ran_in("int8", {"int8": 2, "fp32": 62}) == "fp32"
    assert ran_in("fp32", {"int8": 40, "fp32": 22}) == "int8"
    assert ran_in("fp32", {"fp32": 1, "fp16": 1}) == "fp32"
    assert ran_in("int8", {}) == "int8"


def test_texts() -> None:
    assert Tuning().text == "defaults"
    assert Tuning(folded=True, pinned=True, provider="GPU").text == "folded, pinned, GPU"


def test_the_frugal_setting_takes_clearly_less_cpu_in_every_round_and_is_not_far_slower() -> None:
    used, half = figures(FLUSH, (10.0, 10.0), (20.0, 20.0)), Tuning(flush=True, threads=1)
    def eco(*others: TuningFigures) -> Tuning | None:
        return eco_tuning(TuningChoice(FLUSH, "", (figures(Tuning(), (11.0, 11.0), (21.0, 21.0)), used, *others)))

    assert eco(figures(half, (16.0, 16.0), (16.0, 16.5))) == half
    assert eco(figures(half, (16.0, 16.0), (16.0, 16.5)), figures(FOLDED, (12.0, 12.0), (14.0, 14.0))) == FOLDED
    assert eco(figures(half, (16.0, 16.0), (18.0, 18.0))) is None, "a tenth less is noise"
    assert eco(figures(half, (16.0, 16.0), (10.0, 20.5))) is None, "not in every round"
    assert eco(figures(half, (21.0, 21.0), (10.0, 10.0))) is None, "more than twice as slow"
    assert eco(figures(half, (), (), "backend.load")) is None
    assert eco_tuning(TuningChoice()) is None
