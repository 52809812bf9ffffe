"""Gates on what boards have shown: what is unknown is no pass, and where nothing can be compared nobody waits."""

from __future__ import annotations

import pytest

from jetfleet_contract.gates import BoardEvidence, Gates, judge_evidence, judge_install
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
