"""Heat and power as the kernel tells them, over a constructed Orin's tree, this machine's own, and trees that lack or garble things."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_trees import orin, write

from jetfleet_agent.power import Clock, Power, PowerMode, Rail, read_mode, read_over_currents, read_power
from jetfleet_agent.thermal import Cooling, Thermal, Zone, read_thermal


def test_an_orins_heat(tmp_path: Path) -> None:
    thermal = read_thermal(orin(tmp_path, celsius=60.0) / "sys")
    assert thermal.zones == (Zone("cpu-thermal", 60.0, 99.0, 104.5), Zone("gpu-thermal", 58.5, 95.0, None))
    assert thermal.hottest_c == 60.0
    assert thermal.tightest == thermal.zones[1], "the nearest to its own throttling point, not the hottest"
    assert thermal.tightest.headroom_c == 36.5
    assert thermal.slowing == (Cooling("cpu-throttle-alert", 0, 2),), "a fan costs no speed"
    assert thermal.throttling == ()
    assert read_thermal(orin(tmp_path, throttled=1) / "sys").throttling == ("cpu-throttle-alert",)


def test_an_orins_power(tmp_path: Path) -> None:
    power = read_power(orin(tmp_path, over_currents=7))
    assert power.rails == (Rail("VDD_IN", 9.0), Rail("VDD_CPU_GPU_CV", 3.0))
    assert power.total_w == 9.0
    assert power.over_currents == {"ina3221.curr1_crit_alarm": 0, "soctherm_oc.oc1_event_cnt": 0, "soctherm_oc.oc3_event_cnt": 7}
    assert power.over_current_events == read_over_currents(tmp_path / "sys") == 7
    assert power.clocks == (Clock("cpu.policy0", 1190400, 1344000, 1728000), Clock("17000000.gpu", 306000000, 1020000000, 1020000000))
    assert [clock.capped for clock in power.clocks] == [True, False]
    assert power.mode == PowerMode(1, "25W", "MAXN_SUPER"), "the best mode is neither the first nor the last number"


def test_unknown_modes_and_boards_are_normal(tmp_path: Path) -> None:
    orin(tmp_path, mode=12)
    assert read_mode(tmp_path) == PowerMode(12, "", "MAXN_SUPER")
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert read_mode(tmp_path) == PowerMode(12)
    write(tmp_path, {"var/lib/nvpmodel/status": "garbage"})
    assert read_mode(tmp_path) is None


@pytest.mark.parametrize("root", ["/", "/nowhere"])
def test_this_machine_and_none(root: str) -> None:
    thermal, power = read_thermal(Path(root) / "sys"), read_power(Path(root))
    assert all(-40 < zone.celsius < 200 for zone in thermal.zones)
    assert all(rail.watts == rail.watts and rail.name for rail in power.rails)
    if root == "/nowhere":
        assert (thermal, power) == (Thermal(), Power())
        assert (thermal.tightest, thermal.hottest_c, power.total_w) == (None, None, None)


def test_a_zone_with_only_a_critical_point_is_limited_by_it(tmp_path: Path) -> None:
    folder = "class/thermal/thermal_zone0"
    write(tmp_path, {f"{folder}/type": "x", f"{folder}/temp": 90000, f"{folder}/trip_point_0_type": "critical",
                     f"{folder}/trip_point_0_temp": 100000, f"{folder}/trip_point_1_type": "passive", f"{folder}/trip_point_1_temp": 0})
    (zone,) = read_thermal(tmp_path).zones
    assert (zone.limit_c, zone.headroom_c) == (100.0, 10.0)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_file_breaks_the_readers(tmp_path_factory: pytest.TempPathFactory, first: bytes, second: bytes) -> None:
    root = orin(tmp_path_factory.mktemp("tree"))
    for number, path in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        path.write_bytes(first if number % 2 else second)
    read_thermal(root / "sys")
    read_power(root)
