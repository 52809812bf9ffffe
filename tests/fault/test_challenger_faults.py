"""Challengers that break on a whole board: a real agent, a real broker, real pipelines, a plug-in that breaks in the phase that is told.

The board is left alone each time. What runs afterwards is the champion, the report names what happened, and the way for the next update
is free. A file says when the plug-in breaks, so no phase is met by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from brokers import mosquitto, until
from faulty_tasks import faulty, install
from fleet_rig import POLICY, AgentProcess, HostRig, app_spec
from pipelines import classifier_task

from jetfleet_contract.messages import Report, TrialPolicy

DEVICE = "gate-1"
KEEP = msgspec.structs.replace(POLICY, keep_s=60.0, share=1.0, watch_share=0.5, max_p99_ratio=8.0)


class Board:
    """One board that runs model 1, and the file that makes a faulty model break."""

    def __init__(self, folder: Path, port: int) -> None:
        self.host = HostRig(folder / "host", port)
        self.agent = AgentProcess(folder / DEVICE, DEVICE, port, self.host.project.root_file).start()
        self.signal = folder / "now"
        self.one = self.host.publish("1")
        installed = self.host.outcome(self.host.deploy(DEVICE, app_spec(self.one, "1")))
        assert installed.outcome == "committed", installed

    def update(self, fault: str, policy: TrialPolicy = KEEP, *, ms: float = 0.0, after: int = 0) -> int:
        """Roll out a version that breaks once the signal is there."""
        task = faulty(classifier_task(), fault, ms=ms, after=after, when=str(self.signal))
        return self.host.deploy(DEVICE, app_spec(self.host.publish("2", task=task), "2", policy=policy))

    def reaches(self, seq: int, phase: str) -> None:
        until(lambda: any(r.seq == seq and r.phase == phase for r in list(self.host.reports)),
              f"{phase}; so far {[(r.phase, r.outcome, r.code, r.detail) for r in self.host.reports]}", 90)

    def answers_with(self, version: str, frames: int = 5) -> None:
        before = len(self.host.results)
        until(lambda: sum(r.version == version for r in list(self.host.results)[before:]) >= frames, f"answers of {version}", 90)

    @property
    def pipeline(self) -> int:
        found = [child.pid for child in psutil.Process(self.agent.pid).children() if "jetfleet_agent.pipeline" in child.cmdline()]
        assert len(found) == 1
        return int(found[0])

    def can_still_be_updated(self) -> None:
        """The fault is over; another version goes the whole way."""
        self.signal.unlink(missing_ok=True)
        done = self.host.outcome(self.host.deploy(DEVICE, app_spec(self.host.publish("3"), "3")), deadline_s=120)
        assert (done.outcome, done.version) == ("committed", "3"), done

    def stop(self) -> None:
        try:
            self.agent.stop()
        finally:
            self.host.stop()
        assert not self.host.faults, self.host.faults


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("PYTHONPATH", install(tmp_path / "site"))
    with mosquitto() as broker:
        made = Board(tmp_path, broker.port)
        yield made
        made.stop()


def end(board: Board, seq: int) -> Report:
    return board.host.outcome(seq, deadline_s=180)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code", "says"), [
    ("segv", "evaluate.crash", "SIGSEGV"), ("memory", "backend.memory", "does not fit into memory"),
])
def test_a_challenger_that_breaks_in_the_probe_never_comes_near_the_champion(board: Board, fault: str, code: str, says: str) -> None:
    """`after` lets the measurement through, which has one image where the probe set has two."""
    before = board.pipeline
    board.signal.touch()
    refused = end(board, board.update(fault, after=1))
    assert refused.outcome == "refused", refused
    assert (refused.code, refused.phase) in ((code, "probing"), ("choice.none", "choosing")), refused
    assert says in refused.detail
    assert board.pipeline == before, "the champion never stopped"
    board.answers_with("1")
    board.can_still_be_updated()


@pytest.mark.slow
def test_a_pipeline_that_a_resident_challenger_tears_down_comes_back_with_the_champion(board: Board) -> None:
    seq = board.update("segv", msgspec.structs.replace(KEEP, frames=100_000, lease_s=600.0))
    board.reaches(seq, "trial")
    board.signal.touch()
    refused = end(board, seq)
    assert (refused.outcome, refused.code, refused.phase) == ("refused", "trial.crash", "trial"), refused
    assert "SIGSEGV" in refused.detail
    board.answers_with("1")
    board.can_still_be_updated()


@pytest.mark.slow
def test_a_new_champion_that_tears_down_its_pipeline_while_it_is_kept_is_rolled_back(board: Board) -> None:
    seq = board.update("segv")
    board.reaches(seq, "keeping")
    board.answers_with("2")
    board.signal.touch()
    back = end(board, seq)
    assert (back.outcome, back.code, back.phase) == ("rolled_back", "trial.crash", "keeping"), back
    assert "SIGSEGV" in back.detail
    board.answers_with("1")
    board.can_still_be_updated()


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("memory", "backend.memory"), ("raise", "task.crash")])
def test_a_challenger_that_raises_beside_the_champion_costs_it_not_one_frame(board: Board, fault: str, code: str) -> None:
    before = board.pipeline
    seq = board.update(fault, msgspec.structs.replace(KEEP, frames=100_000))
    board.reaches(seq, "trial")
    board.signal.touch()
    refused = end(board, seq)
    assert (refused.outcome, refused.code) == ("refused", code), refused
    assert board.pipeline == before
    board.answers_with("1")
    numbers = sorted({r.frame for r in board.host.results})
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "a frame was lost"


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "ms", "code"), [("slow", 60.0, "trial.keep-latency"), ("blind", 0.0, "trial.keep-agreement")])
def test_a_breach_after_the_switch_brings_the_old_model_back_from_memory(board: Board, fault: str, ms: float, code: str) -> None:
    before = board.pipeline
    seq = board.update(fault, ms=ms)
    board.reaches(seq, "keeping")
    board.answers_with("2", 30)
    board.signal.touch()
    back = end(board, seq)
    assert (back.outcome, back.code, back.phase) == ("rolled_back", code, "keeping"), back
    assert back.metrics["keep_p99_ms"] > 0
    board.answers_with("1")
    assert board.pipeline == before, "from memory, between two frames"
    numbers = sorted({r.frame for r in board.host.results})
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "a frame was lost"
    versions = [r.version for r in sorted(board.host.results, key=lambda r: r.frame)]
    assert versions.index("2") > 0
    assert "1" in versions[versions.index("2"):]


@pytest.mark.slow
def test_stop_start_swaps_with_one_model_at_a_time_and_tells_the_gap(board: Board) -> None:
    before = board.pipeline
    seq = board.update("slow", msgspec.structs.replace(KEEP, mode="stop-start", keep_s=2.0))
    done = end(board, seq)
    assert (done.outcome, done.version) == ("committed", "2"), done
    assert done.metrics["gap_ms"] > 0
    assert done.metrics["champion_p99_ms"] > 0
    assert done.metrics["memory_predicted_mb"] > 0
    assert any("stop-start" in r.detail for r in board.host.reports)
    assert board.pipeline != before
    board.answers_with("2")


@pytest.mark.slow
def test_stop_start_starts_the_old_model_again_when_the_new_one_is_slow(board: Board) -> None:
    board.answers_with("1", 60)
    seq = board.update("slow", msgspec.structs.replace(KEEP, mode="stop-start"), ms=60.0)
    board.reaches(seq, "keeping")
    board.signal.touch()
    back = end(board, seq)
    assert (back.outcome, back.code) == ("rolled_back", "trial.keep-latency"), back
    board.answers_with("1")
    board.can_still_be_updated()
