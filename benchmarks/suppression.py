"""Suppression on the CPU: ours, class by class, beside OpenCV's batched one and the loop in numpy, interleaved rounds in one process.

Candidates are clusters of boxes around things, as a head gives them, over 640 x 640. All three must keep the same, in the same order. One
thread; figures are the medians of the rounds. The loop's include finding its candidates in a head.

    python benchmarks/suppression.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decode_twin import decode
from jetfleet_agent.pipeline.tasks.yolo_outputs import Candidates, suppress
from jetfleet_contract.decode_arguments import head_rules

HERE = Path(__file__).resolve().parent
IOU, MOST, SIDE, EACH = 0.45, 300, 640, 8
CASES = ((30, 3), (100, 5), (300, 12), (300, 80), (2000, 12), (2000, 80))

Way = Callable[[], npt.NDArray[Any]]


def candidates(count: int, classes: int) -> Candidates:
    """`EACH` boxes a thing, the last thing's fewer, in the order of their anchors."""
    rng = np.random.default_rng(count + classes)
    thing = rng.permutation(np.arange(count) // EACH)
    middles, sizes = rng.uniform(0, SIDE, (count, 2)), rng.uniform(30, 160, (count, 2))
    kinds = rng.integers(0, classes, count).astype(np.int32)
    at = middles[thing] + rng.normal(0, 4, (count, 2))
    half = sizes[thing] * rng.uniform(0.45, 0.55, (count, 2))
    boxes = np.concatenate([at - half, at + half], axis=1).clip(0, SIDE).astype(np.float32)  # OpenCV's batched way errs below 0
    return Candidates(boxes, rng.uniform(0.25, 1, count).astype(np.float32), kinds[thing], np.empty((count, 0), np.float32))


def ways(found: Candidates, classes: int) -> dict[str, Way]:
    """Each gives the survivors' indices."""
    def batched() -> npt.NDArray[Any]:
        rects: Any = found.boxes.astype(np.float64)
        rects[:, 2:] -= rects[:, :2]
        scores: Any = found.scores
        kinds: Any = found.classes
        return np.asarray(cv2.dnn.NMSBoxesBatched(rects, scores, kinds, 0.0, IOU)).reshape(-1)[:MOST]

    count = len(found.scores)
    head = np.zeros((1, count, 4 + classes), np.float32)
    head[0, :, :2], head[0, :, 2:4] = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2, found.boxes[:, 2:] - found.boxes[:, :2]
    head[0, np.arange(count), 4 + found.classes] = found.scores
    rules = head_rules("v8-rows", "f32", head.shape, classes=classes, threshold=0.0, iou=IOU, most=MOST)

    def looped() -> npt.NDArray[Any]:
        record = decode(head, rules)[0]
        return np.asarray(record["slots"]["anchor"][:record["kept"]])

    return {"ours": lambda: suppress(found, min_iou=IOU, most=MOST, agnostic=False), "NMSBoxesBatched": batched, "numpy (the twin)": looped}


def measured(rivals: dict[str, Way], rounds: int) -> dict[str, float]:
    """Milliseconds a call, the median; every round asks each in turn."""
    took: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, way in rivals.items():
            began = time.perf_counter()
            way()
            took[name].append((time.perf_counter() - began) * 1e3)
    return {name: round(statistics.median(times), 3) for name, times in took.items()}


def main() -> None:
    """Compare, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 5 if parser.parse_args().quick else 60
    cv2.setNumThreads(1)
    rows = []
    for count, classes in CASES:
        found = candidates(count, classes)
        rivals = ways(found, classes)
        kept = {name: way().tolist() for name, way in rivals.items()}
        rows.append({"candidates": count, "classes": classes, "kept": len(kept["ours"]),
                     "agree": [name for name in kept if kept[name] == kept["ours"]], "ms": measured(rivals, rounds)})
    names = list(rows[0]["ms"])  # type: ignore[call-overload]
    print(f"| candidates | classes | kept | {' | '.join(f'{name}, ms' for name in names)} |\n|{'---|' * (3 + len(names))}")
    for row in rows:
        print(f"| {row['candidates']} | {row['classes']} | {row['kept']} | {' | '.join(str(row['ms'][name]) for name in names)} |")  # type: ignore[index]
        if row["agree"] != names:
            raise SystemExit(f"not the same survivors: only {row['agree']} agree")
    (HERE / "results/suppression.json").write_text(json.dumps({"opencv": cv2.__version__, "rounds": rounds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
