"""Telemetry windows: numbered without gaps, merged without loss, bounded for a broker; gauges of the board."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from kernel_trees import write

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.alarms import MAX_STANDING, StandingAlarms
from jetfleet_agent.supervisor.telemetry import MAX_SERIES, BoardGauges, TelemetryWindows, merged
from jetfleet_contract.messages import MAX_GAUGES, MAX_MESSAGE_BYTES, Alarm, Series, encode
from jetfleet_contract.sketch import sketch_of


def series(source: str = "cam", *, seen: int = 10, values: list[float] | None = None, app: str = "gate", dropped: int = 1) -> Series:
    stages = {"total": sketch_of(values or [1.0, 2.0])}
    return Series(app, "a" * 64, "1", "v@x:fp32", source, seen, seen - dropped, {"late": dropped}, stages)


def windows(period: float = 10.0) -> TelemetryWindows:
    return TelemetryWindows("board", 3, period, mono=100.0, started=1.8e9)


def test_windows_of_pipelines_are_merged_and_nothing_is_lost() -> None:
    made = windows()
    made.add("gate", ipc.Window(1.8e9, 5.0, (series(values=[1.0, 9.0]),), {"fps": 24.0}))
    made.add("gate", ipc.Window(1.8e9, 5.0, (series(values=[4.0]), series("other")), {"fps": 25.0}))
    assert made.due_s(105.0) == 5.0
    (window,) = made.take(110.0, 1.8e9 + 10, {"rss_mb": 40.0})
    assert (window.device, window.session, window.window, window.duration_s, window.started) == ("board", 3, 1, 10.0, 1.8e9)
    cam = next(s for s in window.series if s.source == "cam")
    assert (cam.seen, cam.done, cam.dropped) == (20, 18, {"late": 2})
    assert (cam.stages["total"].count, cam.stages["total"].most) == (3, 9.0)
    assert window.gauges == {"rss_mb": 40.0, "gate.fps": 25.0}


def test_numbers_grow_by_one_and_an_empty_window_is_told_too() -> None:
    made = windows()
    assert [made.take(110.0 + 10 * i, 0.0, {})[0].window for i in range(3)] == [1, 2, 3]
    assert made.due_s(131.0) == pytest.approx(9.0)


def test_what_is_too_large_for_a_broker_is_several_windows() -> None:
    made = windows()
    values = [1.01 ** i for i in range(600)]
    made.add("gate", ipc.Window(0.0, 1.0, tuple(series(f"cam{i}", values=values) for i in range(60))))
    told = made.take(110.0, 0.0, {"rss_mb": 1.0})
    assert len(told) > 1
    assert [w.window for w in told] == list(range(1, len(told) + 1))
    assert sum(len(w.series) for w in told) == 60
    assert all(len(encode(w)) < MAX_MESSAGE_BYTES for w in told)
    assert [bool(w.gauges) for w in told] == [True] + [False] * (len(told) - 1)


def test_too_many_series_and_gauges_are_left_out_and_counted() -> None:
    made = windows()
    many = {f"g{i}": 1.0 for i in range(MAX_GAUGES + 9)}
    made.add("gate", ipc.Window(0.0, 1.0, tuple(series(f"cam{i}") for i in range(MAX_SERIES + 5)), many))
    told = made.take(110.0, 0.0, {"rss_mb": 1.0, "x" * 80: 1.0})
    assert sum(len(w.series) for w in told) == MAX_SERIES
    assert len(told[0].gauges) == MAX_GAUGES
    assert told[0].gauges["rss_mb"] == 1.0
    assert all(len(name) < 64 for name in told[0].gauges)


def test_merging_is_the_same_in_any_order() -> None:
    a, b = series(values=[1.0]), msgspec.structs.replace(series(values=[7.0]), dropped={"full": 2}, stages={"infer": sketch_of([3.0])})
    ab, ba = merged(a, b), merged(b, a)
    assert (ab.seen, ab.dropped, ab.stages) == (ba.seen, ba.dropped, ba.stages)
    assert ab.dropped == {"late": 1, "full": 2}


def test_gauges_of_the_board_and_its_pipelines(tmp_path: Path) -> None:
    for number, text in enumerate(("45500\n", "61250\n", "-256000\n", "busy")):
        zone = tmp_path / "class" / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    gauges = BoardGauges(lambda: {"gate": os.getpid(), "gone": 2**22 - 1}, tmp_path).read()
    assert gauges["temperature_c"] == 61.25
    assert gauges["rss_mb"] == pytest.approx(gauges["gate.rss_mb"], rel=0.2)
    assert gauges["memory_free_mb"] > 0
    assert "gone.rss_mb" not in gauges


def test_a_board_without_sensors_has_no_temperature(tmp_path: Path) -> None:
    assert "temperature_c" not in BoardGauges(dict, tmp_path).read()


@pytest.mark.parametrize(("devices", "told"), [
    ({"thermal-cpufreq-0": "0", "pwm-fan": "3"}, 0.0), ({"thermal-cpufreq-0": "2"}, 1.0),
    ({"gpu-throttle-alert": "1", "Processor": "0"}, 1.0),
    ({"pwm-fan": "3"}, None), ({"thermal-devfreq-0": "unreadable"}, None), ({}, None),
])
def test_a_board_tells_whether_it_is_slowed_down(tmp_path: Path, devices: dict[str, str], told: float | None) -> None:
    for number, (kind, state) in enumerate(devices.items()):
        device = tmp_path / "class" / "thermal" / f"cooling_device{number}"
        device.mkdir(parents=True)
        (device / "type").write_text(f"{kind}\n")
        (device / "cur_state").write_text(f"{state}\n")
    assert BoardGauges(dict, tmp_path).read().get("throttled") == told


def test_an_alarm_stands_in_every_window_until_it_ends_or_its_process_does() -> None:
    alarms = StandingAlarms()
    alarms.note("gate", ipc.Raised("front", True, "drift", "luma 0.9"))
    alarms.note("gate", ipc.Raised("rear", True, "drift", "blur 0.5"))
    alarms.note("yard", ipc.Raised("", True, "age.high", ""))
    alarms.note("gate", ipc.Raised("rear", False, "drift", ""))
    made = windows()
    first, second = (made.take(110.0 + i, 0.0, {}, alarms=alarms.now())[0] for i in range(2))
    assert first.alarms == second.alarms == (Alarm("gate", "front", "drift", "luma 0.9"), Alarm("yard", "", "age.high", ""))
    alarms.forget("gate")
    assert alarms.now() == (Alarm("yard", "", "age.high", ""),)


def test_a_flood_of_alarms_is_bounded() -> None:
    alarms = StandingAlarms()
    for i in range(10 * MAX_STANDING):
        alarms.note("gate", ipc.Raised(f"cam{i}", True, "drift", "x" * 5000))
    assert len(alarms.now()) == MAX_STANDING
    assert all(len(alarm.detail) <= 200 for alarm in alarms.now())


def test_headroom_and_watts_of_a_recorded_tree(tmp_path: Path) -> None:
    zone, chip = tmp_path / "sys/class/thermal/thermal_zone0", tmp_path / "sys/class/hwmon/hwmon1"
    write(zone, {"type": "soc-thermal", "temp": 78000, "trip_point_0_type": "passive", "trip_point_0_temp": 95000})
    write(chip, {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1800})
    gauges = BoardGauges(dict, tmp_path / "sys").read()
    assert gauges["headroom_c"] == 17.0
    assert gauges["power_w"] == pytest.approx(9.0)
    assert gauges["headroom_pct"] == pytest.approx(100 * 17 / 70)
    write(zone, {"temp": 99000})
    (chip / "in1_label").unlink()
    gauges = BoardGauges(dict, tmp_path / "sys").read()
    assert (gauges["headroom_c"], gauges["headroom_pct"]) == (-4.0, 0.0)
    assert "power_w" not in gauges, "what the kernel does not tell is not made up"
