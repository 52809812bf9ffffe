"""Heat while a challenger is tried and kept: who is told, what is convicted, and that a hot day convicts nobody. Sensors are a folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from slot_worlds import BUNDLES, GOOD, POLICY, World

from jetfleet_agent.supervisor.heat import IDLE_S, PERIOD_S, Heat, HeatWatch
from jetfleet_agent.supervisor.telemetry import BoardGauges
from jetfleet_contract import slot_records as r

B = BUNDLES["b"]


class Hot:
    """A board whose sensors and clock the test turns, with one app of `World`."""

    def __init__(self, sysfs: Path, world: World) -> None:
        self.world = world
        self.zone = sysfs / "class" / "thermal" / "thermal_zone0"
        self.fan = sysfs / "class" / "thermal" / "cooling_device0"
        for folder, name in ((self.zone, "cpu-thermal"), (self.fan, "cpufreq-cpu0")):
            folder.mkdir(parents=True)
            (folder / "type").write_text(name)
        self.told: list[bool] = []
        self.set(50.0, slowed=False)
        self.watch = HeatWatch(BoardGauges(dict, sysfs).heat, lambda: {"app": world.state}, self.told.append,
                               lambda _app, event: world.send(event), lambda: world.mono)

    def set(self, celsius: float, *, slowed: bool) -> None:
        (self.zone / "temp").write_text(str(int(celsius * 1000)))
        (self.fan / "cur_state").write_text(str(int(slowed)))

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.watch.tick()
            self.world.mono += 1.0


@pytest.fixture
def trial(tmp_path: Path) -> Hot:
    world = World().install().go("trial", 2, "b", policy=msgspec.structs.replace(POLICY, keep_s=60.0))
    return Hot(tmp_path, world)


def switch(hot: Hot) -> None:
    hot.world.send(r.Compared(B, GOOD))
    hot.world.send(r.TookOver(B))


def test_nothing_is_read_while_nobody_is_on_trial(tmp_path: Path) -> None:
    hot = Hot(tmp_path, World().install())
    assert hot.watch.tick() == IDLE_S
    assert hot.told == []


def test_pipelines_are_told_when_the_board_is_slowed_down_and_when_no_more(trial: Hot) -> None:
    trial.run(2)
    trial.set(50.0, slowed=True)
    trial.run(3)
    trial.set(50.0, slowed=False)
    trial.run(2)
    assert trial.told == [True, False]
    assert 0 < trial.watch.tick() <= PERIOD_S


def test_a_model_that_heats_the_board_up_is_rolled_back(trial: Hot) -> None:
    trial.set(70.0, slowed=False)
    trial.run(3)
    switch(trial)
    trial.run(3)
    assert trial.world.state.phase == "keeping", "it was as hot before"
    trial.set(86.0, slowed=False)
    trial.run(2)
    assert (trial.world.reports[-1].outcome, trial.world.reports[-1].code) == ("rolled_back", "trial.heat")
    assert "16.0 degrees hotter" in trial.world.reports[-1].detail


def test_a_board_that_is_slowed_down_by_the_new_model_for_long_goes_back(trial: Hot) -> None:
    trial.run(2)
    switch(trial)
    for seconds, slowed in ((2, False), (1, True), (2, False)):
        trial.set(50.0, slowed=slowed)
        trial.run(seconds)
    assert trial.world.state.phase == "keeping", "a moment convicts nobody"
    trial.set(50.0, slowed=True)
    trial.run(4)
    assert trial.world.reports[-1].code == "trial.heat"
    assert "slowed down" in trial.world.reports[-1].detail


def test_a_board_that_was_slowed_down_before_the_switch_convicts_nobody(trial: Hot) -> None:
    trial.set(80.0, slowed=True)
    trial.run(2)
    switch(trial)
    trial.run(10)
    assert trial.world.state.phase == "keeping"


def test_sensors_that_say_nothing_say_nothing(tmp_path: Path) -> None:
    assert BoardGauges(dict, tmp_path).heat() == Heat(None, None)
    world = World().install().go("trial", 2, "b")
    told: list[bool] = []
    watch = HeatWatch(Heat, lambda: {"app": world.state}, told.append, lambda _app, event: world.send(event), lambda: world.mono)
    watch.tick()
    assert watch.since("app", B) == (0.0, 0.0)
    assert told == []
