"""Floors beside published measurements: the floor has to lie below each, and the ratio says how much of it a network could still win.

    python benchmarks/roofline.py          # writes results/roofline.json and prints the table of notes/roofline.md

Nothing is measured here. Every figure is somebody's, with its source; where the source names no power mode, the fastest one of the board
is taken, which gives the lowest floor. The published engines are of the networks whose shapes are written in this folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convolution_shapes import mobilenet_v2, retinanet
from resnet_shape import resnet50
from yolo_shape import write_yolo

from jetfleet_contract.roofline import Work, floor
from jetfleet_host.boards import load_board
from jetfleet_host.network_work import work_of

HERE = Path(__file__).resolve().parent
MLPERF = "MLPerf Inference v3.1 edge, single stream, {}: JetPack 5.1.1, TensorRT 8.5.2"
ONNXSIM = "onnxsim, scripts/nvidia: TensorRT 10.3, batch 1"
ULTRALYTICS = "Ultralytics documentation, NVIDIA Jetson guide, TensorRT, ms an image"


@dataclass(frozen=True)
class Published:
    """Somebody's measurement: milliseconds at batch 1."""

    network: str
    board: str
    mode: str
    precision: str
    ms: float
    source: str


def _three(network: str, board: str, mode: str, ms: tuple[float, float, float], source: str) -> list[Published]:
    return [Published(network, board, mode, precision, each, source)
            for precision, each in zip(("fp32", "fp16", "int8"), ms, strict=True)]


PUBLISHED = (
    Published("ResNet-50", "agx-orin-64", "MAXN", "int8", 0.636, MLPERF.format("p50")),
    Published("RetinaNet-800", "agx-orin-64", "MAXN", "int8", 11.67, MLPERF.format("p90")),
    Published("ResNet-50", "orin-nx-16", "MAXN", "int8", 1.082, MLPERF.format("p90")),
    Published("RetinaNet-800", "orin-nx-16", "MAXN", "int8", 28.63, MLPERF.format("p90")),
    *_three("ResNet-50", "orin-nano", "MAXN_SUPER", (3.596, 1.814, 1.190), ONNXSIM),
    *_three("MobileNetV2", "orin-nano", "MAXN_SUPER", (1.386, 0.850, 0.781), ONNXSIM),
    *_three("YOLO11n", "orin-nano", "MAXN_SUPER", (7.60, 4.91, 3.91), ULTRALYTICS),
    *_three("YOLO11s", "orin-nano", "MAXN_SUPER", (13.29, 7.30, 5.25), ULTRALYTICS),
    *_three("YOLO11n", "orin-nx-16", "MAXN_SUPER", (8.05, 4.85, 4.37), ULTRALYTICS),
    *_three("YOLO11s", "orin-nx-16", "MAXN_SUPER", (14.13, 7.55, 5.63), ULTRALYTICS),
    *_three("YOLO11n", "agx-orin-64", "MAXN", (3.94, 2.60, 2.45), ULTRALYTICS),
    *_three("YOLO11s", "agx-orin-64", "MAXN", (6.52, 3.68, 3.01), ULTRALYTICS),
    Published("ResNet-50", "agx-xavier", "MAXN", "fp16", 1e3 / 326, "NVIDIA-AI-IOT/torch2trt, jetson_xavier.md: 326 a second"),
    Published("MobileNetV2", "nano", "MAXN", "fp32", 19.53, "iwatake2222, TensorRT sample for MobileNetV2 on Jetson Nano, nvpmodel 0"),
    Published("MobileNetV2", "nano", "MAXN", "fp16", 17.65, "iwatake2222, TensorRT sample for MobileNetV2 on Jetson Nano, nvpmodel 0"),
)


def _yolo(width: float) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(str(write_yolo(Path(folder) / "yolo.onnx", width=width)))


NETWORKS: dict[str, Callable[[], Any]] = {
    "ResNet-50": resnet50, "MobileNetV2": mobilenet_v2, "RetinaNet-800": retinanet,
    "YOLO11n": lambda: _yolo(0.25), "YOLO11s": lambda: _yolo(0.5),
}


def rows() -> list[dict[str, Any]]:
    """One a published figure: it, the floor, and published over floor."""
    works: dict[str, Work] = {}
    found = []
    for one in PUBLISHED:
        work = works.get(one.network) or works.setdefault(one.network, work_of(NETWORKS[one.network]()))
        board = load_board(one.board)
        mode = next(mode for mode in board.power_modes if mode.name == one.mode)
        least = floor(work, board, mode, one.precision)
        if least is None:
            raise SystemExit(f"{one.board} has no peak for {one.precision} in {one.mode}")
        found.append({**asdict(one), "ms": round(one.ms, 3), "floor_ms": round(least.ms, 4), "whole_graph_ms": round(least.whole_ms, 4),
                      "bound": least.bound, "ratio": round(one.ms / least.ms, 2), "gmacs": round(work.macs / 1e9, 3),
                      "mweights": round(work.weights / 1e6, 2)})
    return found


def main() -> None:
    """Write the results and print the table."""
    table = rows()
    (HERE / "results" / "roofline.json").write_text(json.dumps(table, indent=1) + "\n")
    print("| network | board, mode | precision | floor ms | published ms | ratio | bound by |\n|---|---|---|---:|---:|---:|---|")
    for row in table:
        print(f"| {row['network']} | {row['board']}, {row['mode']} | {row['precision']} | {row['floor_ms']:.3f} | {row['ms']:.2f} | "
              f"{row['ratio']:.1f} | {row['bound']} |")


if __name__ == "__main__":
    main()
