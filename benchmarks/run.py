"""Runs every benchmark, one process each, one after the other, and writes benchmarks/README.md.

Each script compares with its peer in the same run, prints a markdown table on stdout and keeps its figures in
benchmarks/results/. What a figure means, and every target that was missed with its reason, stands in
benchmarks/notes/TOPIC.md and is put under the table, so that a new run never loses it.

    python benchmarks/run.py                     all of them
    python benchmarks/run.py --quick delivery    one, shorter
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOPICS = {
    "pipeline": "The pipeline against the bare loop",
    "overlap": "Stages beside each other, or one after the other",
    "pipeline_peers": "What each pipeline adds, beside its peers",
    "variants": "Variants: which file, which backend, which precision",
    "preprocess": "Pre-processing: a frame becomes a tensor",
    "suppression": "Suppression of overlapping boxes on the CPU",
    "quantize": "Int8 after training, beside five peers",
    "compress": "Stages that train, beside Torch-Pruning alone",
    "prune_int8": "ResNet-50's shape, pruned and quantized by a build",
    "live": "A live camera that is faster than the model",
    "roofline": "Floors of published networks on published boards",
    "kernels": "The pre-processing kernel, counted without a GPU",
    "shadow": "What a trial costs the champion",
    "swap": "Swapping models between two frames",
    "cascade": "The cascade: a weak model asks the full one",
    "delivery": "50 MB to 1, 4, 16 and 32 receivers",
    "delivery_peers": "50 MB, beside casync and zchunk",
    "delivery_faults": "Lost chunks and a slow reader",
    "delivery_uplink": "A site behind 100 Mbit/s",
    "deltas": "Deltas on a real fine-tune",
    "supervisor": "The supervisor at rest",
    "fleet": "A rollout to a thousand virtual devices, with faults",
}


def machine() -> str:
    """Processor, cores, memory, kernel, Python: what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "?")
    flags = next((line for line in cpuinfo if line.startswith("flags")), "")
    isa = [flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2") if f" {flag}" in flags]
    cores = len(os.sched_getaffinity(0))
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")).split()[1]
    return (f"{model} ({', '.join(isa)}), {cores} cores, {int(memory) / 2**20:.0f} GiB, Linux {platform.release().split('-')[0]}, "
            f"Python {platform.python_version()}")


def section(topic: str, quick: bool) -> str:
    """Run one benchmark and return its part of the page."""
    command = [sys.executable, str(HERE / f"{topic}.py"), *(["--quick"] if quick else [])]
    print(f"benchmarks: {topic} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"benchmarks: {topic} failed:\n{done.stderr[-4000:]}")
    notes = HERE / "notes" / f"{topic}.md"
    shown = f"python benchmarks/{topic}.py{' --quick' if quick else ''}"
    today = dt.datetime.now(tz=dt.timezone.utc).date()
    return "\n".join([
        f"<!-- {topic} -->", f"## {TOPICS[topic]}", "", f"`{shown}`, {today}, on {machine()}.", "",
        done.stdout.strip(), "", notes.read_text().strip() if notes.exists() else "", "<!-- end -->", ""])


def page(old: str, new: dict[str, str]) -> str:
    """The page with the new sections in place of their old ones."""
    intro = ("# Benchmarks\n\nWritten by `make bench`: every table is what its script printed, on the machine that it names, "
             "peers in the same run and interleaved. A missed target stands under its table with the reason.\n")
    sections = []
    for topic in TOPICS:
        begin = old.find(f"<!-- {topic} -->")
        kept = old[begin:old.find("<!-- end -->", begin) + len("<!-- end -->")] + "\n" if begin >= 0 else ""
        sections.append(new.get(topic, kept))
    return intro + "\n" + "\n".join(part for part in sections if part)


def main() -> None:
    """Parse arguments, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", choices=[*TOPICS, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: for a look, not for the record")
    arguments = parser.parse_args()
    target = HERE / "README.md"
    for topic in arguments.topics or list(TOPICS):
        text = section(topic, arguments.quick)
        target.write_text(page(target.read_text() if target.exists() else "", {topic: text}))
    print(target.read_text())


if __name__ == "__main__":
    main()
