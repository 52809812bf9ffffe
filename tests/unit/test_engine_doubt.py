"""Which crashes convict an engine, which do not, and what is remembered of it over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.supervisor.engine_doubts import Doubts
from jetfleet_agent.supervisor.engine_record import EngineMemory
from jetfleet_contract.engine_doubt import (
    FORGIVEN_S,
    LEAST_WITHOUT_S,
    MOST_WITHOUT_S,
    Doubt,
    Judgement,
    crashed_with,
    crashed_without,
    runs_without,
)

APP, BUNDLE, BLOB = "gate", "5b" * 32, "e0" * 32


def test_a_crash_before_the_first_answer_convicts() -> None:
    assert crashed_with(Doubt(), "pipeline.killed", None) == Judgement(None, convicted=True)
    assert crashed_with(Doubt(1, 500.0), "pipeline.killed", None).convicted


def test_two_later_crashes_take_it_out_and_convict_nobody_yet() -> None:
    once = crashed_with(Doubt(), "pipeline.killed", 40.0)
    assert once == Judgement(Doubt(1, 40.0, "pipeline.killed"))
    assert once.doubt is not None
    twice = crashed_with(once.doubt, "pipeline.exit", 10.0)
    assert twice == Judgement(Doubt(2, 40.0, "pipeline.exit", without=True))
    assert crashed_with(once.doubt, "pipeline.exit", FORGIVEN_S).doubt == Doubt(1, FORGIVEN_S, "pipeline.exit"), "a good day begins anew"


@pytest.mark.parametrize(("lived", "least"), [(1.0, LEAST_WITHOUT_S), (400.0, 800.0), (FORGIVEN_S, MOST_WITHOUT_S)])
def test_running_on_without_it_convicts_and_ending_without_it_acquits(lived: float, least: float) -> None:
    doubt = Doubt(2, lived, "pipeline.killed", without=True)
    assert runs_without(doubt, least - 1.0) == Judgement(doubt)
    assert runs_without(doubt, least) == Judgement(None, convicted=True)
    assert crashed_without(doubt) == Judgement(None)
    untouched = Doubt(1, lived)
    assert crashed_without(untouched) == runs_without(untouched, 1e9) == Judgement(untouched), "it was not taken out"


@given(st.lists(st.floats(0.0, 1e6), max_size=6))
def test_no_number_of_later_crashes_convicts_by_itself(lives: list[float]) -> None:
    doubt = Doubt()
    for answered_s in lives:
        judgement = crashed_with(doubt, "pipeline.killed", answered_s)
        assert not judgement.convicted
        assert judgement.doubt is not None
        doubt = judgement.doubt


class Board:
    """The agent's part, over a real record; `start` is what a pipeline's next start loads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 0.0
        self.restart()

    def restart(self) -> None:
        self.memory = EngineMemory(self.folder)
        self.doubts = Doubts(self.memory)

    def start(self) -> str:
        out = self.doubts.is_doubted(APP, BLOB) or BLOB in self.memory.now.bad
        self.doubts.loads(APP, BUNDLE, "" if out else BLOB)
        return "compiled" if out else "engine"

    def answer(self, seconds: float) -> None:
        self.doubts.answers(APP, self.now)
        self.now += seconds
        self.doubts.look(self.now)

    def crash(self) -> bool:
        return self.doubts.ended(APP, "pipeline.killed", self.now)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_crash_of_something_else_keeps_the_engine(board: Board) -> None:
    assert board.start() == "engine"
    board.answer(30.0)
    assert not board.crash(), "the first time it is loaded again"
    board.answer(30.0)
    assert board.crash()
    assert board.start() == "compiled"
    board.answer(20.0)
    assert board.crash(), "the camera's driver it was"
    assert board.start() == "engine"
    assert (board.memory.now.bad, board.memory.now.doubts) == ({}, {})


def test_an_engine_that_only_it_ends_with_is_convicted_also_over_a_restart_of_the_agent(board: Board) -> None:
    board.start()
    for _ in range(2):
        board.answer(30.0)
        board.crash()
    board.restart()
    assert board.start() == "compiled"
    board.answer(LEAST_WITHOUT_S)
    assert board.memory.now.bad == {BLOB: "pipeline.killed"}
    assert board.memory.now.doubts == {}
    assert board.start() == "compiled"


def test_an_end_that_was_meant_says_nothing_and_the_next_start_has_answered_nothing_yet(board: Board) -> None:
    board.start()
    board.answer(30.0)
    assert not board.doubts.ended(APP, "", board.now)
    assert board.memory.now.doubts == {}
    assert board.crash(), "the new process was still loading"
    assert board.memory.now.bad == {BLOB: "pipeline.killed"}
