"""Gates on what boards have shown: what is unknown is no pass, and where nothing can be compared nobody waits."""

from __future__ import annotations

import random

import pytest

from jetfleet_contract.gates import BoardEvidence, Gates, judge_evidence, judge_install
from jetfleet_contract.kpis import KpiBound, Tally, tally
from jetfleet_contract.sketch import sketch_of

FAST, SLOW = sketch_of([10.0] * 200), sketch_of([30.0] * 200)


def result(gates: Gates, *boards: BoardEvidence) -> dict[str, str]:
    return {ruling.gate: ruling.result for ruling in judge_evidence(gates, boards)}


def test_a_first_version_waits_for_no_comparison_however_noisy_its_boards_are() -> None:
    assert result(Gates(), BoardEvidence("a", new=FAST, noisy=7, first=True)) == {"latency": "passed"}
    assert result(Gates(), BoardEvidence("a", new=FAST, noisy=7)) == {"latency": "undecided"}


def test_three_times_as_slow_is_a_breach_and_the_same_is_a_pass() -> None:
    assert result(Gates(), BoardEvidence("a", FAST, SLOW)) == {"latency": "breached"}
    assert result(Gates(), BoardEvidence("a", FAST, FAST)) == {"latency": "passed"}


def test_silence_is_no_pass() -> None:
    gates = Gates(max_p95_ratio=0.0, min_agreement=0.8, max_crashes=0, max_temperature_c=90.0)
    told = BoardEvidence("a", agreement=0.9, crashes=0.0, temperature_c=70.0)
    assert set(result(gates, told).values()) == {"passed"}
    assert result(gates, told, BoardEvidence("b")) == {"latency": "passed", "agreement": "undecided", "crashes": "undecided",
                                                       "heat": "undecided"}
    assert result(gates, told, BoardEvidence("b", agreement=0.1, crashes=2.0, temperature_c=99.0)) == {
        "latency": "passed", "agreement": "breached", "crashes": "breached", "heat": "breached"}


@pytest.mark.parametrize(("committed", "size", "needed", "expected"), [
    (5, 5, 1.0, "passed"), (4, 5, 0.8, "passed"), (4, 5, 0.9, "undecided"), (1, 5, 0.9, "breached"), (55, 100, 0.55, "passed")])
def test_one_flaky_board_of_five_neither_blocks_nor_passes(committed: int, size: int, needed: float, expected: str) -> None:
    assert judge_install(Gates(min_success=needed), committed, size)[0] == expected


# --- business figures ----------------------------------------------------------------------------------------------


def seen(device: str, old: float | None, new: float | None, *, spread: float = 0.2, first: bool = False) -> BoardEvidence:
    """A board with 20 windows of 50 frames under each bundle, whose means scatter by `spread`."""
    def side(mean: float | None) -> Tally:
        return Tally() if mean is None else tally([(50, 50 * (mean + (spread if n % 2 else -spread))) for n in range(20)])

    return BoardEvidence(device, first=first, kpis={"people": (side(old), side(new))})


def figure(bound: KpiBound, *boards: BoardEvidence) -> str:
    rulings = judge_evidence(Gates(max_p95_ratio=0.0, kpis={"people": bound}), boards)
    found = [ruling for ruling in rulings if ruling.gate == "kpi"]
    assert len(found) == 1
    assert found[0].why.startswith("people: ")
    return found[0].result


FEWER, MORE, SOME, MANY = KpiBound(min_ratio=0.9), KpiBound(max_ratio=1.1), KpiBound(least=2.0), KpiBound(most=4.0)


@pytest.mark.parametrize(("bound", "old", "new", "expected"), [
    (FEWER, 3.0, 3.0, "passed"), (FEWER, 3.0, 2.0, "breached"), (FEWER, 3.0, 2.72, "undecided"), (FEWER, 3.0, 9.0, "passed"),
    (MORE, 3.0, 3.0, "passed"), (MORE, 3.0, 4.0, "breached"), (MORE, 3.0, 3.28, "undecided"),
    (SOME, None, 3.0, "passed"), (SOME, 3.0, 1.0, "breached"), (MANY, None, 3.0, "passed"), (MANY, None, 5.0, "breached"),
    (MORE, 0.0, 0.0, "undecided"), (FEWER, -3.0, -3.0, "undecided"), (KpiBound(least=-4.0), None, -3.0, "passed"),
    (FEWER, None, 3.0, "undecided"), (SOME, None, None, "undecided")])
def test_a_figure_passes_or_breaks_its_bound_when_the_windows_say_so(bound: KpiBound, old: float | None, new: float | None,
                                                                     expected: str) -> None:
    assert figure(bound, seen("a", old, new)) == expected
    assert figure(bound, *(seen(f"b{n}", old, new) for n in range(3))) in {expected, "passed" if expected == "undecided" else expected}


def test_steady_figures_that_are_equal_pass_to_the_last_digit() -> None:
    for value in (0.0, 0.1, 3.3, 1e6):
        assert figure(KpiBound(max_ratio=1.0), seen("a", value, value, spread=0.0)) == "passed"
        assert figure(KpiBound(least=value), seen("a", None, value, spread=0.0)) == "passed"


def test_many_boards_are_judged_by_how_they_differ() -> None:
    agreeing = [seen(f"b{n}", 3.0 + n, 0.8 * (3.0 + n)) for n in range(8)]
    assert figure(FEWER, *agreeing) == "breached"
    differing = [seen(f"b{n}", 3.0, 3.0 * (0.5 if n % 2 else 1.4)) for n in range(8)]
    assert figure(FEWER, *differing) == "undecided"


def test_a_first_version_and_a_mute_board() -> None:
    assert figure(FEWER, seen("a", None, 3.0, first=True)) == "passed"
    assert figure(SOME, seen("a", None, 1.0, first=True)) == "breached"
    assert figure(SOME, seen("a", None, 3.0), BoardEvidence("b")) == "undecided", "a board that told nothing is no pass"
    [_, ruling] = judge_evidence(Gates(max_p95_ratio=0.0, kpis={"people": SOME}), [seen("a", 3.0, None)])
    assert (ruling.result, ruling.missing) == ("undecided", True), "it had figures before: their absence is a breach in the end"


def test_the_gate_convicts_a_good_model_as_rarely_as_it_says() -> None:
    """Five looks, equal truth: with a confidence of 0.95, at most about 1 in 20 rollouts may see a breach."""
    draws = random.Random(11)
    breached = 0
    for _ in range(300):
        pairs = []
        for n in range(3):
            level = draws.uniform(2, 6)
            pairs.append((n, [tally([(50, 50 * draws.gauss(level, 0.8)) for _ in range(30)]) for _side in range(2)]))
        boards = [BoardEvidence(f"b{n}", kpis={"people": (sides[0], sides[1])}) for n, sides in pairs]
        breached += figure(KpiBound(min_ratio=1.0), *boards) == "breached"
    assert breached / 300 < 0.05
