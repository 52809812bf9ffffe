"""The demo's pictures: written, of the promised size, showing what they were given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from jetfleet_contract.predictions import Detection
from jetfleet_host.demo import plots
from jetfleet_host.demo.scene import TruthBox


def points(device: str) -> list[plots.LatencyPoint]:
    return [plots.LatencyPoint(device, stage, at, 5.0 + at, 9.0 + at) for stage in ("infer", "total") for at in (0.0, 5.0, 10.0)]


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(image)


def test_latency_plot_has_a_panel_for_every_device(tmp_path: Path) -> None:
    one = plots.latency_plot(tmp_path / "one.png", points("a"), [], title="t", notes={})
    marks = [plots.SwapMark("b", 5.0, "v2 committed", "committed"), plots.SwapMark("b", 9.0, "v3 refused", "refused")]
    two = plots.latency_plot(tmp_path / "two.png", [*points("a"), *points("b")], marks, title="t", notes={"a": "cpu-x86"})
    assert read(two).shape[0] > read(one).shape[0] + 150
    assert two.stat().st_size < 400_000


def test_a_device_without_telemetry_still_has_its_panel(tmp_path: Path) -> None:
    path = plots.latency_plot(tmp_path / "p.png", points("a"), [], title="t", notes={"a": "", "silent": "never answered"})
    assert read(path).shape[0] > read(plots.latency_plot(tmp_path / "q.png", points("a"), [], title="t", notes={})).shape[0]


def test_annotated_frame_draws_both_boxes(tmp_path: Path) -> None:
    frame = np.full((480, 640, 3), 90, np.uint8)
    truth = [TruthBox("EXIT", (100.0, 100.0, 200.0, 140.0), 0)]
    found = [Detection("", 0.9, (300.0, 300.0, 400.0, 340.0))]
    bare = read(plots.annotated_frame(tmp_path / "bare.png", frame, [], [], caption="c"))
    drawn = read(plots.annotated_frame(tmp_path / "drawn.png", frame, truth, found, caption="c"))
    assert bare.shape == drawn.shape
    ys, xs = np.nonzero(np.abs(bare.astype(int) - drawn).max(axis=2) > 60)
    scale = drawn.shape[1] / 640
    assert xs.min() < 110 * scale
    assert xs.max() > 390 * scale
    assert ys.max() > 330 * scale
