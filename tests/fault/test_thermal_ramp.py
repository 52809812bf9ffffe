"""A thermal ramp, replayed without hardware: a real pipeline process's own reported work heats a simulated board whose kernel tree the real
governor reads; its caps reach the pipeline over the real socket. The governor's clock and the board's run ten times as fast as ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from kernel_trees import write
from pipeline_bench import Bench
from pipelines import detector_task, model_of, save_map_model

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.alarms import StandingAlarms
from jetfleet_agent.supervisor.governing import Governing
from jetfleet_agent.supervisor.pipeline_link import run_folder
from jetfleet_agent.supervisor.pipelines import PROGRAM
from jetfleet_contract.app_config import Governor, Tile
from jetfleet_contract.governor import lowest
from jetfleet_contract.messages import AppConfig, Result, Source
from jetfleet_contract.policy import Candidate
from jetfleet_contract.tuning import Tuning

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FASTER = 10.0
TRIP_C = 95.0
FULL_C = 40.0
TAU_S = 40.0
FPS = 50.0


class HotBoard(Bench):
    """`ambient` is the test's; frames that the pipeline says it answered are the heat."""

    def __init__(self, folder: Path) -> None:
        super().__init__(run_folder(folder), program=PROGRAM)
        self.zone = folder / "sys/class/thermal/thermal_zone0"
        self.ambient = self.temperature = self.hottest = 40.0
        self.rate = 0.0
        self.windows = 0
        self.rungs: list[tuple[float, int]] = []
        self.began = self.advanced = time.monotonic()
        self.tell()
        write(self.zone, {"type": "soc-thermal", "trip_point_0_type": "passive", "trip_point_0_temp": round(TRIP_C * 1000)})
        self.alarms = StandingAlarms()
        self.governing = Governing(self.pipelines, None, self.alarms.note, self.clock, folder / "sys")

    def clock(self) -> float:
        return 1000.0 + (time.monotonic() - self.began) * FASTER

    def tell(self) -> None:
        write(self.zone, {"next": round(self.temperature * 1000)})
        (self.zone / "next").rename(self.zone / "temp")

    def turn(self) -> None:
        before = len(self.said)
        super().turn()
        for event in self.said[before:]:
            if isinstance(event, ipc.Window) and event.duration_s > 0:
                self.governing.heard("gate", event)
                self.rate = sum(series.done for series in event.series) / event.duration_s
                self.windows += 1
        now = time.monotonic()
        passed, self.advanced = (now - self.advanced) * FASTER, now
        aim = self.ambient + FULL_C * min(self.rate / FPS, 1.2)
        self.temperature += min(passed / TAU_S, 1.0) * (aim - self.temperature)
        self.hottest = max(self.hottest, self.temperature)
        self.tell()
        self.governing.tick()
        rung = int(self.governing.gauges().get("gate.governor_rung", 0))
        if not self.rungs or self.rungs[-1][1] != rung:
            self.rungs.append((self.clock(), rung))


class SteppedBoard(HotBoard):
    """Its temperature is the test's alone; its governor's clock runs a hundred times as fast as ours."""

    def clock(self) -> float:
        return 1000.0 + (time.monotonic() - self.began) * 10.0 * FASTER

    def turn(self) -> None:
        self.temperature = self.ambient
        super().turn()


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[SteppedBoard]:
    made = SteppedBoard(tmp_path)
    yield made
    made.pipelines.finish()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[HotBoard]:
    made = HotBoard(tmp_path)
    yield made
    made.pipelines.finish()


@pytest.mark.slow
def test_the_rate_falls_before_the_trip_point_and_comes_back(board: HotBoard, tmp_path: Path) -> None:
    model = model_of(save_map_model(tmp_path / "m.onnx"), detector_task())
    config = AppConfig(governor=Governor(least_fps=2.0))
    board.pipelines.start("gate", ipc.Run(model, config, (Source("cam", "synthetic:64x48?frames=1000000", fps=FPS),), window_s=0.2))
    board.until(lambda: board.windows > 15 and board.rate > 0.5 * FPS, "a free pipeline")
    free, pid = board.rate, board.pipelines.pids()["gate"]
    assert board.rungs[-1][1] == 0

    board.ambient = 75.0  # with the full rate: 115 C, 20 over the trip point
    board.until(lambda: board.rate < free / 2, "the rate to fall")
    assert board.hottest < TRIP_C
    (alarm,) = board.alarms.now()
    assert (alarm.app, alarm.code) == ("gate", "governor")
    assert "governor.heat" in alarm.detail
    until_s = board.clock() + 60.0
    board.until(lambda: board.clock() > until_s, "a minute of heat")
    assert board.hottest < TRIP_C, "before the SoC throttles, not after"

    board.ambient = 30.0
    board.until(lambda: board.rungs[-1][1] == 0 and board.rate > 0.8 * free, "the rate to come back")
    assert board.hottest < TRIP_C
    assert board.alarms.now() == ()
    assert board.pipelines.pids()["gate"] == pid, "without a restart"
    assert board.crashes == []
    ways = [later > earlier for (_, earlier), (_, later) in pairwise(board.rungs)]
    assert sum(a != b for a, b in pairwise(ways)) <= 5, f"it does not oscillate: {board.rungs}"


FRUGAL, CHEAPER, LAST = "frugal settings", "a cheaper candidate", "no tiles"


def test_the_whole_ladder_down_and_up_again_and_a_file_loses_no_frame(stepped: SteppedBoard, tmp_path: Path) -> None:
    """Every kind of rung of one app, in its order, told in the alarm, obeyed by the real pipeline, and undone in reverse."""
    lean = ipc.Way(Candidate("small", "onnxruntime", "fp32"), str(save_map_model(tmp_path / "small.onnx")))
    model = msgspec.structs.replace(model_of(save_map_model(tmp_path / "m.onnx"), detector_task()), eco=Tuning(sleeping=True, threads=1),
                                    lean=lean)
    config = AppConfig(governor=Governor(least_fps=0.4 * FPS), tile=Tile(32, 0.0))
    stepped.pipelines.start("gate", ipc.Run(model, config, (Source("cam", "synthetic:64x48?frames=1000000", fps=FPS),), window_s=0.2))
    stepped.until(lambda: stepped.windows > 5 and stepped.rate > 0.5 * FPS, "a free pipeline")
    of = _lowest(stepped)
    assert of >= 4, "frugal, cheaper, a share of the rate at least, whole"

    stepped.ambient = TRIP_C - 3.0
    told: list[str] = []
    stepped.until(lambda: _listen(stepped, told) and _obeyed(stepped) == (0.0, 1.0, 0.0) and stepped.rungs[-1][1] == of, "the lowest rung")
    assert [rung for _, rung in stepped.rungs] == list(range(of + 1)), "one by one"
    assert FRUGAL in told[0]
    assert CHEAPER not in told[0]
    assert CHEAPER in told[1]
    assert "frames a second" in told[2]
    assert all((LAST in one) == (one is told[-1]) for one in told)
    held = sum(isinstance(event, ipc.Results) for event in stepped.said)
    stepped.until(lambda: sum(isinstance(event, ipc.Results) for event in stepped.said) > held + 3, "answers on the lowest rung")
    assert _answers(stepped)[-1].candidate == lean.candidate.name

    stepped.ambient = 40.0
    stepped.until(lambda: stepped.rungs[-1][1] == 0 and _obeyed(stepped) == (0.0, 0.0, 1.0), "the way back")
    assert [rung for _, rung in stepped.rungs] == [*range(of + 1), *reversed(range(of))], "undone in reverse"
    assert stepped.alarms.now() == ()
    after = len(_answers(stepped))
    stepped.until(lambda: len(_answers(stepped)) > after + 5, "answers of the free pipeline")
    answers = _answers(stepped)
    assert [one.frame for one in answers] == list(range(len(answers))), "a file loses no frame"
    assert answers[-1].candidate == model.candidate.name
    assert stepped.crashes == []


def _lowest(board: HotBoard) -> int:
    """How long the app's ladder is."""
    return lowest(Governor(least_fps=0.4 * FPS), {"cam": board.rate}, board.pipelines.means("gate"))


def _listen(board: HotBoard, told: list[str]) -> bool:
    for alarm in board.alarms.now():
        if not told or told[-1] != alarm.detail:
            told.append(alarm.detail)
    return True


def _obeyed(board: HotBoard) -> tuple[float, float, float]:
    """What the last window says of the pipeline: frugal, cheaper, tiles."""
    windows = [event for event in board.said if isinstance(event, ipc.Window)]
    return tuple(windows[-1].gauges.get(name, -1.0) for name in ("eco", "lean", "tiles"))  # type: ignore[return-value]


def _answers(board: HotBoard) -> list[Result]:
    return [result for event in board.said if isinstance(event, ipc.Results) for result in event.results]
