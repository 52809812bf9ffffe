"""File trees as the kernel and nvpmodel make them, constructed (not recorded) after public documentation: names, units and layout of a
Jetson Orin as NVIDIA's developer guide, Linux's hwmon and thermal documents and L4T's soctherm driver state them. Values are made up."""

from __future__ import annotations

from pathlib import Path

_NVPMODEL_CONF = """\
< PARAM TYPE=CLOCK NAME=CPU_A78_0 >
MAX_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq

< POWER_MODEL ID=0 NAME=15W >
CPU_A78_0 MAX_FREQ 1497600
GPU MAX_FREQ 612000000
EMC MAX_FREQ 2133000000

< POWER_MODEL ID=1 NAME=25W >
CPU_A78_0 MAX_FREQ 1344000
GPU MAX_FREQ 918000000
EMC MAX_FREQ 0

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_A78_0 MAX_FREQ -1
GPU MAX_FREQ -1
EMC MAX_FREQ 0

< POWER_MODEL ID=3 NAME=7W >
CPU_A78_0 MAX_FREQ 960000
GPU MAX_FREQ 408000000
EMC MAX_FREQ 2133000000

< PM_CONFIG DEFAULT=1 >
"""


def write(root: Path, files: dict[str, object]) -> Path:
    """Each file with its text and a newline; returns `root`."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def orin(root: Path, *, celsius: float = 52.5, throttled: int = 0, over_currents: int = 0, mode: int = 1) -> Path:
    """A board's root folder with ``sys``, ``var/lib/nvpmodel`` and ``etc/nvpmodel.conf``."""
    hwmon, thermal = "sys/class/hwmon", "sys/class/thermal"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/nvpmodel.conf").write_text(_NVPMODEL_CONF)
    return write(root, {
        f"{thermal}/thermal_zone0/type": "cpu-thermal", f"{thermal}/thermal_zone0/temp": round(celsius * 1000),
        f"{thermal}/thermal_zone0/trip_point_0_type": "critical", f"{thermal}/thermal_zone0/trip_point_0_temp": 104500,
        f"{thermal}/thermal_zone0/trip_point_1_type": "passive", f"{thermal}/thermal_zone0/trip_point_1_temp": 99000,
        f"{thermal}/thermal_zone0/trip_point_2_type": "active", f"{thermal}/thermal_zone0/trip_point_2_temp": 50000,
        f"{thermal}/thermal_zone1/type": "gpu-thermal", f"{thermal}/thermal_zone1/temp": round(celsius * 1000) - 1500,
        f"{thermal}/thermal_zone1/trip_point_0_type": "passive", f"{thermal}/thermal_zone1/trip_point_0_temp": 95000,
        f"{thermal}/thermal_zone2/type": "cv0-thermal", f"{thermal}/thermal_zone2/temp": -256000,
        f"{thermal}/cooling_device0/type": "pwm-fan", f"{thermal}/cooling_device0/cur_state": 3,
        f"{thermal}/cooling_device1/type": "cpu-throttle-alert", f"{thermal}/cooling_device1/cur_state": throttled,
        f"{thermal}/cooling_device1/max_state": 2,
        f"{hwmon}/hwmon1/name": "ina3221",
        f"{hwmon}/hwmon1/in1_label": "VDD_IN", f"{hwmon}/hwmon1/in1_input": 5000, f"{hwmon}/hwmon1/curr1_input": 1800,
        f"{hwmon}/hwmon1/curr1_crit_alarm": 0,
        f"{hwmon}/hwmon1/in2_label": "VDD_CPU_GPU_CV", f"{hwmon}/hwmon1/in2_input": 5000, f"{hwmon}/hwmon1/curr2_input": 600,
        f"{hwmon}/hwmon1/in7_label": "sum of shunt voltages", f"{hwmon}/hwmon1/in7_input": 12,
        f"{hwmon}/hwmon3/name": "soctherm_oc", f"{hwmon}/hwmon3/oc1_event_cnt": 0, f"{hwmon}/hwmon3/oc3_event_cnt": over_currents,
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1190400,
        "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": 1344000,
        "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": 1728000,
        "sys/class/devfreq/17000000.gpu/cur_freq": 306000000, "sys/class/devfreq/17000000.gpu/max_freq": 1020000000,
        "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1020000000",
        "var/lib/nvpmodel/status": f"pmode:{mode:04d}",
    })
