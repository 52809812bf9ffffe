"""A canary rollout to fleets of virtual devices, with the simulator's default faults on and with none: time, bytes, processor, loss.

    python benchmarks/fleet.py
    python benchmarks/fleet.py --quick --broker embedded
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = (100, 300, 1000)
QUICK = (40,)


def rehearse(devices: int, broker: str, *options: str) -> dict[str, Any]:
    """One run of `jetfleet sim`; its outcome, whether something was lost or not."""
    command = [sys.executable, "-m", "jetfleet_host", "sim", "--devices", str(devices), "--json", *options]
    done = subprocess.run([*command, *(["--mosquitto"] if broker == "mosquitto" else [])], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"the run of {devices} devices did not come to its end:\n{done.stderr[-3000:]}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def row(name: str, outcome: dict[str, Any]) -> str:
    """One line of the table."""
    waves = [one for one in outcome["waves"] if one["rollout"] == outcome["rollouts"][-1]["id"]]
    serve, sim = outcome["usage"]["serve"], outcome["usage"]["sim"]
    faults = outcome["faults"]
    died = faults.get("kill", 0) + faults.get("power-cut", 0)
    return (f"| {outcome['devices']} | {name} | {outcome['rollout_seconds']:.0f} | {max(one['p50_s'] for one in waves):.1f} / "
            f"{max(one['p99_s'] for one in waves):.1f} | {died} | {outcome['delivery']['ratio_to_one_copy_each']:.4f} | "
            f"{serve['cpu_s']:.0f} / {serve['rss_mb']:.0f} | {sim['cpu_s']:.0f} | {outcome['usage']['broker']['rss_mb']:.0f} | "
            f"{'something' if outcome['lost'] else 'nothing'} |")


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} devices only")
    parser.add_argument("--broker", choices=("mosquitto", "embedded"), default="")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "fleet.json")
    parsed = parser.parse_args()
    has_mosquitto = shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()
    broker = parsed.broker or ("mosquitto" if has_mosquitto else "embedded")
    runs = [(name, rehearse(devices, broker, *options)) for devices in (QUICK if parsed.quick else SIZES)
            for name, options in (("none", ["--calm"]), ("default mix", []))]
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "kernel": platform.release(),
             "broker": broker, "runs": [{"faults_on": name, **outcome} for name, outcome in runs]}
    parsed.out.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    print(f"Broker: {broker}. Four waves, 256 KiB a version; all processes share this machine. A device's time is from the host's issue to "
          "its own outcome, in the slowest wave.\n")
    print("| devices | faults | rollout s | a device p50 / p99 s | agents killed, power cut | host's bytes, of one copy each | "
          "host CPU s / RSS MB | simulator CPU s | broker RSS MB | lost |\n|---:|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for name, outcome in runs:
        print(row(name, outcome))
    if any(outcome["lost"] for _, outcome in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
