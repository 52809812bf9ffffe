"""Bytes of an update, and the speed of applying it: jetfleet's deltas beside zstd, xdelta3, bsdiff, casync and zchunk on a real fine-tune.

    python benchmarks/deltas.py --torch PYTHON      trains first (minutes); PYTHON is an interpreter with torch==2.13.0 and opencv
    python benchmarks/deltas.py                     the same with what was trained before, or with this interpreter's torch
    python benchmarks/deltas.py --quick             no bsdiff, fp16 and int8 alone: for a look, not for the record

Every delta of ours was applied by the board's own program and compared before its size counts. A peer that is not done in time is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fine_tune import characters
from fine_tuned_files import write_files

from jetfleet_host.deltas.making import make_delta

HERE = Path(__file__).resolve().parent
CACHE = HERE / "cache" / "deltas"
CASES = ("lr1e-5", "lr1e-4", "contiguous", "re-export")
KINDS = ("fp32", "fp16", "int8")
TARGETS = {("lr1e-5", "fp16"): 0.35, ("lr1e-5", "int8"): 0.15, ("lr1e-4", "fp16"): 0.6, ("lr1e-4", "int8"): 0.35}
APPLY_ROUNDS = 5
SMALL_PARENT = """
import os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - begun, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""  # a child's peak begins with what its parent had when it forked: this one has little


@dataclass
class Row:
    """One (case, kind): bytes by method, None where a peer did not finish; ours with its method, speed in MB/s and peak memory in MB."""

    case: str
    kind: str
    full: int
    ours: int
    method: str
    peers: dict[str, int | None] = field(default_factory=dict)
    made_s: float = 0.0
    apply_mb_s: float = 0.0
    apply_s: float = 0.0
    peak_mb: float = 0.0

    @property
    def best(self) -> tuple[str, int]:
        return min(((name, size) for name, size in self.peers.items() if size is not None), key=lambda pair: pair[1])


def train(python: str, quick: bool) -> None:
    """Have every state in the cache."""
    done = subprocess.run([python, str(HERE / "fine_tune.py"), str(CACHE), *(["--quick"] if quick else [])], check=False)
    if done.returncode != 0:
        raise SystemExit("deltas: the training failed; give an interpreter that has torch with --torch (pip install torch==2.13.0)")


def write_states(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each state; int8 scales are calibrated anew on the pictures that the state was trained with."""
    first = characters(64, 1, second_camera=False)[0]
    second = characters(64, 2, second_camera=True)[0]
    files = {}
    for state in ("base", *CASES[:3]):
        arrays = dict(np.load(CACHE / f"{state}.npz"))
        files[state], _ = write_files(arrays, second if state.startswith("lr") else first, folder / state)
    files["re-export"], _ = write_files(dict(np.load(CACHE / "base.npz")), first, folder / "re-export", reverse=True)
    return files


# --- peers -----------------------------------------------------------------------------------------------------


Peer = Callable[[Path, Path, Path, float], int]


def run(*command: str | Path, limit: float) -> str:
    """One command's output. TimeoutExpired after `limit` seconds."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=limit).stdout


def zstd(_base: Path, target: Path, folder: Path, limit: float) -> int:
    run("zstd", "-q", "-19", "-f", target, "-o", folder / "out", limit=limit)
    return (folder / "out").stat().st_size


def zstd_patch(base: Path, target: Path, folder: Path, limit: float) -> int:
    run("zstd", "-q", "-19", "--long=27", "-f", f"--patch-from={base}", target, "-o", folder / "out", limit=limit)
    return (folder / "out").stat().st_size


def xdelta3(base: Path, target: Path, folder: Path, limit: float) -> int:
    run("xdelta3", "-9", "-e", "-f", "-B", str(max(1 << 20, base.stat().st_size)), "-s", base, target, folder / "out", limit=limit)
    return (folder / "out").stat().st_size


def bsdiff(base: Path, target: Path, folder: Path, limit: float) -> int:
    run("bsdiff", base, target, folder / "out", limit=limit)
    return (folder / "out").stat().st_size


def casync(base: Path, target: Path, folder: Path, limit: float) -> int:
    """New chunks of the store, and the index."""
    store = folder / "store.castr"
    run("casync", "make", f"--store={store}", folder / "base.caibx", base, limit=limit)
    before = held(store)
    run("casync", "make", f"--store={store}", folder / "target.caibx", target, limit=limit)
    return held(store) - before + (folder / "target.caibx").stat().st_size


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def zchunk(base: Path, target: Path, folder: Path, limit: float) -> int:
    """What `zckdl` would fetch: the new chunks and the header."""
    for name, path in (("base", base), ("target", target)):
        run("zck", "-o", folder / f"{name}.zck", path, limit=limit)
    said = run("zck_delta_size", folder / "base.zck", folder / "target.zck", limit=limit)
    return int(next(line for line in said.splitlines() if "Would download" in line).split("Would download")[1].split()[0])


PEERS: dict[str, Peer] = {"zstd -19": zstd, "zstd --patch-from": zstd_patch, "xdelta3 -9": xdelta3, "bsdiff": bsdiff, "casync": casync,
                          "zchunk": zchunk}


def beside(row: Row, base: Path, target: Path, limit: float, without: tuple[str, ...]) -> None:
    for name, peer in PEERS.items():
        row.peers[name] = None
        if name in without or shutil.which(name.split()[0].replace("zchunk", "zck")) is None:
            continue
        with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as folder:
            try:
                row.peers[name] = peer(base, target, Path(folder), limit)
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                print(f"deltas: {name} on {row.case} {row.kind}: {type(error).__name__}", file=sys.stderr)


# --- applying --------------------------------------------------------------------------------------------------


def applied(base: Path, delta: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak MB of the board's program on one delta."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-m", "jetfleet_agent.patching", str(base), str(delta), str(out)]
    parent = [sys.executable, "-c", SMALL_PARENT, *command]
    said = subprocess.run(parent, env=environment, capture_output=True, text=True, check=True).stdout
    seconds, peak_kb, code = said.split()
    if code != "0":
        raise SystemExit(f"deltas: the board's program ended with {code}")
    return float(seconds), float(peak_kb) / 1024


def measure_apply(row: Row, base: Path, delta: Path, start_s: float, folder: Path) -> None:
    runs = [applied(base, delta, folder / "target") for _ in range(APPLY_ROUNDS)]
    seconds = sorted(took for took, _ in runs)[len(runs) // 2]
    row.apply_s, row.peak_mb = seconds, max(peak for _, peak in runs)
    row.apply_mb_s = row.full / 1e6 / max(seconds - start_s, 1e-3)


def start_of_program(folder: Path) -> float:
    """Seconds that the program takes for next to nothing: Python and its imports."""
    (folder / "a").write_bytes(bytes(4096))
    (folder / "b").write_bytes(bytes(4096) + b"b")
    make_delta(folder / "a", folder / "b", folder / "d")
    return min(applied(folder / "a", folder / "d", folder / "out")[0] for _ in range(APPLY_ROUNDS))


# --- the table -------------------------------------------------------------------------------------------------


def compare(files: dict[str, dict[str, Path]], kinds: tuple[str, ...], limit: float, without: tuple[str, ...]) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as name:
        folder = Path(name)
        start_s = start_of_program(folder)
        for case in CASES:
            for kind in kinds:
                base, target, out = files["base"][kind], files[case][kind], folder / "delta"
                print(f"deltas: {case} {kind}", file=sys.stderr, flush=True)
                made = make_delta(base, target, out)
                row = Row(case, kind, made.full, made.size, made.chosen or "full", made_s=sum(a.seconds for a in made.attempts))
                if made.chosen:
                    measure_apply(row, base, out, start_s, folder)
                beside(row, base, target, limit, without)
                rows.append(row)
                save(rows, start_s)
    return rows


def save(rows: list[Row], start_s: float) -> None:
    """Keep what there is after each row: a long run that is stopped loses nothing."""
    (HERE / "results").mkdir(exist_ok=True)
    record = {"start_s": start_s, "rows": [asdict(row) for row in rows]}
    (HERE / "results" / "deltas.json").write_text(json.dumps(record, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    names = list(PEERS)
    said = "Bytes that a board gets, MB. Ratio: ours over the best peer, and over the best without bsdiff, which alone subtracts bytes."
    lines = [said, "",
             f"| change | file | full | {' | '.join(names)} | **jetfleet** | ratio | without bsdiff | target | apply MB/s | peak MB |",
             "|---|---|" + "---:|" * (len(names) + 7)]
    for row in rows:
        cells = [mb(row.peers[name]) for name in names]
        others = min((size for name, size in row.peers.items() if size is not None and name != "bsdiff"), default=0)
        target = TARGETS.get((row.case, row.kind), 1.0 if row.case == "contiguous" else None)
        ratios = f"{row.ours / row.best[1]:.3f} | {row.ours / max(1, others):.3f} | {'' if target is None else target}"
        lines.append(f"| {row.case} | {row.kind} | {mb(row.full)} | {' | '.join(cells)} | **{mb(row.ours)}** | {ratios} | "
                     f"{row.apply_mb_s:.0f} | {row.peak_mb:.0f} |")
    return "\n".join(lines)


def mb(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e6:.2f}" if size >= 100_000 else f"{size / 1e6:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no bsdiff, fp16 and int8 alone, a tenth of the training")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="an interpreter with torch and opencv, for the training")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which files")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one peer may take for one file")
    arguments: Any = parser.parse_args()
    train(arguments.torch, arguments.quick)
    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as folder:
        files = write_states(Path(folder))
        kinds = ("fp16", "int8") if arguments.quick else tuple(arguments.kinds)
        rows = compare(files, kinds, arguments.limit, ("bsdiff",) if arguments.quick else ())
    print(table(rows))


if __name__ == "__main__":
    main()
