"""The fused pre-processing kernel beside a chain of three, counted from their machine code: no GPU runs anything here.

1080p NV12 into a 640x640 letterbox, float16, on the Orin Nano Super as its board file has it. `compute` is machine instructions x threads /
(SMs x 128 lanes x clock), with every instruction of the kernel counted once, its edge path and padding too; `bytes` is what must be read
and written (touched rows, the band written once) at the memory's peak. A kernel cannot be faster than the larger of both.

    python benchmarks/kernels.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path

import msgspec

from jetfleet_contract.cubins import read_cubin
from jetfleet_contract.kernels import FORMATS
from jetfleet_host.kernels.building import SOURCE, open_compiler, source
from jetfleet_host.kernels.toolchains import default_cache

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT, SIDE = 1920, 1080, 640
INNER = SIDE * HEIGHT // WIDTH
READ = {"nv12": min(HEIGHT, 2 * INNER) * WIDTH + min(HEIGHT // 2, 2 * INNER) * WIDTH,
        **{name: min(HEIGHT, 2 * INNER) * WIDTH * size for name, size in (("yuyv", 2), ("bgr", 3), ("rgba", 4), ("gray", 1))}}
CHAIN = {  # threads, bytes read and written
    "convert": (WIDTH * HEIGHT, WIDTH * HEIGHT * 3 // 2 + WIDTH * HEIGHT * 3),
    "resize": (SIDE * INNER, min(HEIGHT, 2 * INNER) * WIDTH * 3 + SIDE * INNER * 3),
    "normalise": (SIDE * INNER, SIDE * INNER * 3 + SIDE * INNER * 3 * 2),
}


class Counted(msgspec.Struct, frozen=True):
    """One kernel's bounds, in microseconds."""

    kernel: str
    per_pixel: float
    compute_us: float
    bytes_us: float

    @property
    def bound(self) -> float:
        return max(self.compute_us, self.bytes_us)


def main() -> None:
    """Compile for sm_87, count, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: nothing is timed")
    parser.parse_args()
    board = tomllib.loads((HERE.parent / "firmware_configs/orin-nano.toml").read_text())
    mode = next(mode for mode in board["power_modes"] if mode["name"] == "MAXN_SUPER")
    lanes, memory = board["gpu"]["sm_count"] * 128 * mode["gpu_mhz"] * 1e6, mode["memory_gb_s"] * 1e9
    compiler = open_compiler(12, default_cache(), True, lambda line: print(f"kernels: {line}", file=sys.stderr))
    fused = read_cubin(compiler.compile(source(), SOURCE, 87))
    chain = read_cubin(compiler.compile((HERE / "unfused.cu").read_text(), "unfused.cu", 87))
    rows = []
    for pixels in FORMATS:
        per_pixel = fused.instructions(f"jf_preprocess_{pixels}_nchw_f16") / 4  # a thread makes four
        moved = READ[pixels] + SIDE * INNER * 3 * 2
        rows.append(Counted(f"fused {pixels}", per_pixel, per_pixel * SIDE * INNER / lanes * 1e6, moved / memory * 1e6))
    parts = [Counted(f"chain nv12: {name}", chain.instructions(name) * threads / (SIDE * INNER),
                     chain.instructions(name) * threads / lanes * 1e6, moved / memory * 1e6) for name, (threads, moved) in CHAIN.items()]
    rows += parts
    print("| kernel | SASS instructions an output pixel | compute, us | bytes, us | compute / bytes |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.kernel} | {row.per_pixel:.0f} | {row.compute_us:.1f} | {row.bytes_us:.1f} | {row.compute_us / row.bytes_us:.2f} |")
    total, moved_us = sum(part.bound for part in parts), sum(part.bytes_us for part in parts)
    print(f"\nNV12: the chain's bound is {total:.1f} us in three launches, the fused kernel's {rows[0].bound:.1f} us in one: "
          f"{total / rows[0].bound:.1f} times. By bytes alone it is {moved_us:.1f} us, {moved_us / rows[0].bound:.1f} times.")
    counted = [{**msgspec.to_builtins(row), "bound_us": row.bound} for row in rows]
    kept = {"board": "orin-nano, MAXN_SUPER", "nvrtc": compiler.version, "sm": 87, "measured": False, "lanes_per_s": lanes,
            "bytes_per_s": memory, "kernels": counted, "chain_bound_us": total, "chain_bytes_us": moved_us}
    (HERE / "results/kernels.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
