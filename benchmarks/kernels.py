"""Every kernel beside a chain of separate ones, counted from their machine code: no GPU runs anything here.

1080p into a 640x640 letterbox on the Orin Nano Super as its board file has it. `compute` is the machine instructions of a thread inside the
picture x threads / (SMs x 128 lanes x clock), `integer` those among them that run on the integer lanes, of which there are half as many,
`accesses` its loads and stores, for which there are 16 units; `bytes` is what must be read and written (touched rows, the band written
once) at the memory's peak. A kernel cannot be faster than the largest of them. `all` counts every instruction of the kernel, the path of
the picture's edge too.

    python benchmarks/kernels.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path

import msgspec
from sass import Instruction, a_load, disassembled, disassembler, loops, paths

from jetfleet_contract.kernels import HEAD_VARIANTS, VARIANTS, HeadVariant, PixelFormat
from jetfleet_host.kernels.building import open_compiler, source
from jetfleet_host.kernels.toolchains import default_cache

HERE = Path(__file__).resolve().parent
SM, CUDA = 87, 12
WIDTH, HEIGHT, SIDE = 1920, 1080, 640
INNER = SIDE * HEIGHT // WIDTH
PIXELS = SIDE * INNER
TOUCHED = min(HEIGHT, 2 * INNER)
PIXEL_BYTES = {"nv12": 1.5, "yuyv": 2, "bgr": 3, "rgba": 4, "gray": 1}
READ = {**{name: TOUCHED * WIDTH * size for name, size in PIXEL_BYTES.items()},
        "nv12": TOUCHED * WIDTH + min(HEIGHT // 2, TOUCHED) * WIDTH}  # two rows of the tensor share a row of chroma, at most
ELEMENT_BYTES = {"f32": 4, "f16": 2, "i8": 1}
CHAINS: tuple[PixelFormat, ...] = ("nv12", "yuyv", "bgr", "rgba")
A_THREAD = 4  # pixels that a fused kernel's thread makes
STORES = 3  # vector stores of a thread inside the picture


CLASSES = 80
ANCHORS = {"v5": 25_200, "v8": 8400, "v8-rows": 8400}  # of a head for 640x640
BEFORE = {"v5": 5, "v8": 4, "v8-rows": 4}  # numbers of an anchor before its classes


class Rates(msgspec.Struct, frozen=True):
    """The board, a second: instructions of all lanes, of the integer lanes and of the load and store units, and bytes."""

    lanes: float
    integer: float
    accesses: float
    bytes: float


class Counted(msgspec.Struct, frozen=True):
    """One kernel: instructions an output pixel, and its bounds in microseconds. `every`: with what a thread inside the picture skips."""

    kernel: str
    per_pixel: float
    every: float
    compute_us: float
    integer_us: float
    accesses_us: float
    bytes_us: float

    @property
    def bounds(self) -> dict[str, float]:
        return {"compute": self.compute_us, "integer": self.integer_us, "accesses": self.accesses_us, "bytes": self.bytes_us}

    @property
    def bound_us(self) -> float:
        return max(self.bounds.values())


class Scanned(msgspec.Struct, frozen=True):
    """A kernel that looks through a head: instructions for each class's score, and the bounds of a head without a detection."""

    kernel: str
    anchors: int
    a_score: float
    compute_us: float
    bytes_us: float


def main() -> None:
    """Compile for sm_87, count, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: nothing is timed")
    parser.parse_args()
    board = tomllib.loads((HERE.parent / "firmware_configs/orin-nano.toml").read_text())
    mode = next(mode for mode in board["power_modes"] if mode["name"] == "MAXN_SUPER")
    lanes = board["gpu"]["sm_count"] * 128 * mode["gpu_mhz"] * 1e6
    rates = Rates(lanes, lanes / 2, lanes / 8, mode["memory_gb_s"] * 1e9)
    cache = default_cache()
    compiler = open_compiler(CUDA, cache, True, lambda line: print(f"kernels: {line}", file=sys.stderr))
    tool = disassembler(cache.parent / "nvdisasm")
    code = disassembled(tool, compiler.compile(source(), "kernels.cu", SM))
    fused = {variant.name: _fused(code[variant.name], variant.name, variant.pixels, variant.type, rates)
             for variant in VARIANTS if variant.pixels is not None}
    chain = disassembled(tool, compiler.compile((HERE / "unfused.cu").read_text(), "unfused.cu", SM))
    parts = {(pixels, kind): _chain(chain, pixels, kind, rates) for pixels in CHAINS for kind in ELEMENT_BYTES}
    scans = [_scan(code[variant.name], variant, rates) for variant in HEAD_VARIANTS if variant.step == "scan"]
    others = {name: body for name, body in sorted(code.items()) if name not in {*fused, *(row.kernel for row in scans)}}
    _print(fused, parts, scans, others)
    kept = {"board": "orin-nano, MAXN_SUPER", "nvrtc": compiler.version, "sm": SM, "measured": False, "lanes_per_s": rates.lanes,
            "bytes_per_s": rates.bytes, "kernels": [{**msgspec.to_builtins(row), "bound_us": row.bound_us} for row in fused.values()],
            "chains": {f"{pixels}_nchw_{kind}": [msgspec.to_builtins(row) for row in rows] for (pixels, kind), rows in parts.items()},
            "scans": [msgspec.to_builtins(row) for row in scans],
            "others": {name: {"instructions": len(body), "loops": bool(loops(body))} for name, body in others.items()}}
    (HERE / "results/kernels.json").write_text(json.dumps(kept, indent=2) + "\n")


def _fused(body: list[Instruction], name: str, pixels: PixelFormat, kind: str, rates: Rates) -> Counted:
    inside = min((way for way in paths(body) if way.stores == STORES), key=lambda way: len(way.instructions))
    threads, moved = PIXELS / A_THREAD, READ[pixels] + PIXELS * 3 * ELEMENT_BYTES[kind]
    return Counted(name, len(inside.instructions) / A_THREAD, len(body) / A_THREAD, len(inside.instructions) * threads / rates.lanes * 1e6,
                   inside.integer * threads / rates.integer * 1e6, inside.accesses * threads / rates.accesses * 1e6,
                   moved / rates.bytes * 1e6)


def _chain(code: dict[str, list[Instruction]], pixels: PixelFormat, kind: str, rates: Rates) -> list[Counted]:
    frame, small = WIDTH * HEIGHT, PIXELS * 3
    steps = [(f"convert_{pixels}", frame, frame * PIXEL_BYTES[pixels] + frame * 3)] if pixels != "bgr" else []
    steps += [("resize", PIXELS, TOUCHED * WIDTH * 3 + small), (f"normalise_nchw_{kind}", PIXELS, small + small * ELEMENT_BYTES[kind])]
    rows = []
    for name, threads, moved in steps:
        longest = max(paths(code[name]), key=lambda way: len(way.instructions))
        count = len(longest.instructions)
        rows.append(Counted(name, count * threads / PIXELS, len(code[name]) * threads / PIXELS, count * threads / rates.lanes * 1e6,
                            longest.integer * threads / rates.integer * 1e6, longest.accesses * threads / rates.accesses * 1e6,
                            moved / rates.bytes * 1e6))
    return rows


def _scan(body: list[Instruction], variant: HeadVariant, rates: Rates) -> Scanned:
    before, each = a_load(body)
    anchors, size = ANCHORS[variant.head], ELEMENT_BYTES[variant.type]
    moved = anchors * (BEFORE[variant.head] + CLASSES) * size
    return Scanned(variant.name, anchors, each, anchors * (before + each * CLASSES) / rates.lanes * 1e6, moved / rates.bytes * 1e6)


def _print(fused: dict[str, Counted], parts: dict[tuple[PixelFormat, str], list[Counted]], scans: list[Scanned],
           others: dict[str, list[Instruction]]) -> None:
    print("| fused kernel | instructions an output pixel | all | compute, us | integer, us | accesses, us | bytes, us | bound by | "
          "compute / bytes |\n|---|---|---|---|---|---|---|---|---|")
    for row in fused.values():
        by, name = max(row.bounds, key=row.bounds.__getitem__), row.kernel.removeprefix("jf_preprocess_")
        print(f"| {name} | {row.per_pixel:.0f} | {row.every:.0f} | {row.compute_us:.1f} | {row.integer_us:.1f} | {row.accesses_us:.1f} | "
              f"{row.bytes_us:.1f} | {by} | {row.compute_us / row.bytes_us:.2f} |")
    over = [row.kernel for row in fused.values() if row.bound_us > row.bytes_us]
    print(f"\n{len(fused) - len(over)} of {len(fused)} kernels are bound by bytes, not by instructions"
          f"{'; the others: ' + ', '.join(over) if over else ''}.\n")
    print("| chain, NCHW | launches | instructions an output pixel | its bound, us | its bytes, us | the fused kernel's bound, us | "
          "by bound | by bytes alone |\n|---|---|---|---|---|---|---|---|")
    for (pixels, kind), rows in parts.items():
        bound, moved = sum(row.bound_us for row in rows), sum(row.bytes_us for row in rows)
        one = fused[f"jf_preprocess_{pixels}_nchw_{kind}"]
        count = sum(row.per_pixel for row in rows)
        print(f"| {pixels} {kind} | {len(rows)} | {count:.0f} | {bound:.1f} | {moved:.1f} | {one.bound_us:.1f} | "
              f"{bound / one.bound_us:.1f}x | {moved / one.bound_us:.1f}x |")
    print("\n| scan of a YOLO head, 640x640, 80 classes | anchors | instructions a score | compute, us | bytes, us | compute / bytes |\n"
          "|---|---|---|---|---|---|")
    for scan in scans:
        print(f"| {scan.kernel.removeprefix('jf_decode_scan_')} | {scan.anchors} | {scan.a_score:.1f} | {scan.compute_us:.1f} | "
              f"{scan.bytes_us:.1f} | {scan.compute_us / scan.bytes_us:.2f} |")
    print("\n| other kernel | instructions | |\n|---|---|---|")
    for name, body in others.items():
        print(f"| {name} | {len(body)} | {'loops' if loops(body) else 'no loop'} |")


if __name__ == "__main__":
    main()
