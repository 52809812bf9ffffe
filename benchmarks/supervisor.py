"""How little the supervisor costs when nothing happens: memory and processor time of a real ``jetfleet-agent run``.

    python benchmarks/supervisor.py [--seconds 60] [--quick] [--out benchmarks/results/supervisor.json]

A real broker (mosquitto, else the embedded one), a real agent process with the default telemetry window of 10 s. Measured twice: with no
app (idle), and with one app whose results pass through the supervisor at 25 frames a second. RSS is the supervisor's own, without its
pipeline; CPU is its user and system time over wall time, as a share of one core. The peer is a Python process that does nothing but
hold the same MQTT library connected.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

LIMIT_RSS_MB = 80.0
LIMIT_CPU_PCT = 3.0
PEER = """
import sys, threading
from paho.mqtt.client import CallbackAPIVersion, Client
client = Client(CallbackAPIVersion.VERSION2, "peer")
client.connect("127.0.0.1", int(sys.argv[1]))
client.subscribe("jf/#")
client.loop_forever()
"""


def watch(pid: int, seconds: float, every_s: float = 1.0) -> dict[str, float]:
    """RSS and CPU of one process over `seconds`, sampled every `every_s`."""
    import psutil

    process = psutil.Process(pid)
    began, times = time.monotonic(), process.cpu_times()
    sizes = [process.memory_info().rss / 1e6]
    while time.monotonic() - began < seconds:
        time.sleep(min(every_s, seconds))
        sizes.append(process.memory_info().rss / 1e6)
    wall, after = time.monotonic() - began, process.cpu_times()
    used = after.user + after.system - times.user - times.system
    return {"rss_mb_median": statistics.median(sizes), "rss_mb_max": max(sizes), "cpu_pct": max(100.0 * used / wall, 0.0), "seconds": wall,
            "threads": float(process.num_threads())}


def measure(seconds: float) -> dict[str, Any]:
    """All rows, one process after the other."""
    from brokers import embedded, mosquitto, until
    from fleet_rig import AgentProcess, HostRig, app_spec

    has_mosquitto = shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()
    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as name, (mosquitto() if has_mosquitto else embedded()) as broker:
        folder = Path(name)
        host = HostRig(folder / "host", broker.port)
        host.publish_meta()
        agent = AgentProcess(folder / "board", "bench-1", broker.port, host.project.root_file)
        agent.config.write_text(agent.config.read_text().replace("window_s = 0.5", "window_s = 10.0"))
        agent.start()
        peer = subprocess.Popen([sys.executable, "-c", PEER, str(broker.port)])
        try:
            until(lambda: "bench-1" in host.births, "the agent's birth", 60)
            time.sleep(3.0)  # imports and the first window are not idle
            rows = {"supervisor, no app": watch(agent.pid, seconds), "peer: idle paho client": watch(peer.pid, min(seconds, 10.0))}
            outcome = host.outcome(host.deploy("bench-1", app_spec(host.publish("1"), "1", fps=25.0)), deadline_s=120)
            if outcome.outcome != "committed":
                raise SystemExit(f"the bench's model was not installed: {outcome}")
            time.sleep(2.0)
            before = len(host.results)
            rows["supervisor, one app at 25 fps"] = watch(agent.pid, seconds)
            rows["supervisor, one app at 25 fps"]["results_per_s"] = (len(host.results) - before) / seconds
            agent.stop()
        finally:
            peer.kill()
            peer.wait()
            if agent.process is not None and agent.process.poll() is None:
                agent.process.kill()
            host.stop()
    return {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "kernel": platform.release(),
            "broker": "mosquitto" if has_mosquitto else "embedded", "rows": rows,
            "limits": {"rss_mb": LIMIT_RSS_MB, "cpu_pct": LIMIT_CPU_PCT},
            "met": rows["supervisor, no app"]["rss_mb_max"] <= LIMIT_RSS_MB and rows["supervisor, no app"]["cpu_pct"] <= LIMIT_CPU_PCT}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="8 s a row")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "supervisor.json")
    parsed = parser.parse_args()
    result = measure(8.0 if parsed.quick else parsed.seconds)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    parsed.out.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    print("| what | RSS MB, median | max | CPU, % of one core |\n|---|---:|---:|---:|")
    for name, row in result["rows"].items():
        print(f"| {name} | {row['rss_mb_median']:.1f} | {row['rss_mb_max']:.1f} | {row['cpu_pct']:.2f} |")
    print(f"\nTargets: {LIMIT_RSS_MB:.0f} MB, {LIMIT_CPU_PCT:.0f} % of one core, idle: {'met' if result['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
