"""Pictures of a run: latency by device and stage with the swaps marked, and one frame with truth and answers.

Colours are Okabe and Ito's (2008), which stay apart for colour-blind readers; line style or marker says the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetfleet_contract.predictions import Detection

from .scene import TruthBox

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, INK = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#222222")
STAGES = {"total": (INK, "o"), "infer": (BLUE, "s"), "pre": (GREEN, "^"), "decode": (ORANGE, "D"), "sink": (PURPLE, "v")}
MARKS = {"committed": (GREEN, "-"), "refused": (VERMILION, "--"), "rolled_back": (VERMILION, "-."), "failed": (VERMILION, ":")}


@dataclass(frozen=True)
class LatencyPoint:
    """One stage of one device over one telemetry window; `at` is seconds since the run began."""

    device: str
    stage: str
    at: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class SwapMark:
    """An update's end on a device; `outcome` is the report's: committed, refused, rolled_back or failed."""

    device: str
    at: float
    text: str
    outcome: str


def latency_plot(path: Path, points: Sequence[LatencyPoint], marks: Sequence[SwapMark], *, title: str, notes: dict[str, str]) -> Path:
    """One panel a device: each stage's median (line) up to its p99 (band) over time, updates as vertical lines.

    Args:
        notes: a line for each device's panel (its class, what it chose).
    """
    plt = _pyplot()
    devices = sorted({point.device for point in points} | set(notes))
    figure, axes = plt.subplots(len(devices), 1, sharex=True, sharey=True, squeeze=False, figsize=(10, 1.2 + 2.3 * len(devices)))
    for panel, device in zip(axes[:, 0], devices, strict=True):
        _device_panel(panel, device, [p for p in points if p.device == device], [m for m in marks if m.device == device], notes)
    axes[-1, 0].set_xlabel("seconds since the demo began    (line: median of a window, band: up to its p99)")
    axes[0, 0].set_ylim(top=axes[0, 0].get_ylim()[1] * 3)  # room for the marks' texts
    handles, labels = _legend_of(axes[:, 0])
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.legend(handles, labels, loc="upper right", bbox_to_anchor=(1, 1.005),
                  ncols=len(labels), frameon=False, fontsize=9, handlelength=1.6)
    figure.tight_layout(rect=(0, 0, 1, 1.0))
    return _save(plt, figure, path, dpi=110)


def _device_panel(panel: Any, device: str, points: Sequence[LatencyPoint], marks: Sequence[SwapMark], notes: dict[str, str]) -> None:
    panel.set_yscale("log")
    for stage, (colour, marker) in STAGES.items():
        line = sorted((p for p in points if p.stage == stage), key=lambda p: p.at)
        if not line:
            continue
        at = [p.at for p in line]
        panel.plot(at, [p.p50_ms for p in line], color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=stage)
        panel.fill_between(at, [p.p50_ms for p in line], [p.p99_ms for p in line], color=colour, alpha=0.13, linewidth=0)
    for mark in marks:
        colour, style = MARKS.get(mark.outcome, (INK, ":"))
        panel.axvline(mark.at, color=colour, linestyle=style, linewidth=1.5)
        panel.annotate(mark.text, (mark.at, 0.96), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                       ha="left", va="top", fontsize=8.5, color=colour, fontweight="bold", zorder=5,
                       bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8})
    panel.set_title(f"{device}   {notes.get(device, '')}", loc="left", fontsize=9.5)
    panel.set_ylabel("ms")
    panel.yaxis.set_major_formatter(_plain_numbers())
    panel.grid(axis="y", which="major", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for edge in ("top", "right"):
        panel.spines[edge].set_visible(False)


def _plain_numbers() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _position: f"{value:g}")


def _legend_of(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found.update({label: handle for label, handle in zip(labels, handles, strict=True) if label not in found})
    order = [stage for stage in STAGES if stage in found]
    return [found[stage] for stage in order], order


def annotated_frame(path: Path, frame: NDArray[np.uint8], truth: Sequence[TruthBox], found: Sequence[Detection], *, caption: str) -> Path:
    """One frame (h x w x 3 uint8 BGR): truth dashed with its text, the model's boxes solid with their scores."""
    plt = _pyplot()
    height, width = frame.shape[:2]
    figure = plt.figure(figsize=(width / 72, height / 72 + 0.5))
    panel = figure.add_axes((0, 0, 1, height / (height + 36)))
    panel.imshow(frame[:, :, ::-1], interpolation="lanczos")
    panel.set_axis_off()
    halo = _halo()
    for box in truth:
        x0, y0, x1, y1 = box.box
        panel.add_patch(plt.Rectangle((x0 - 2, y0 - 2), x1 - x0 + 4, y1 - y0 + 4, fill=False, edgecolor=SKY, linewidth=1.8,
                                      linestyle=(0, (4, 2)), path_effects=halo))
        name = f"{box.text}  (upside down)" if box.turn else box.text
        panel.text(x0 - 2, y1 + 5, name, color=SKY, fontsize=9, fontweight="bold", va="top", path_effects=halo)
    for detection in found:
        if detection.box is None:
            continue
        x0, y0, x1, y1 = detection.box
        panel.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=ORANGE, linewidth=1.8, path_effects=halo))
        panel.text(x1 + 3, y0, f"{detection.label} {detection.score:.2f}".strip(), color=ORANGE, fontsize=8.5, fontweight="bold", va="top",
                   path_effects=halo)
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)
    figure.text(0.01, 0.965, caption, fontsize=11, va="center", color=INK)
    figure.text(0.83, 0.965, "- - -  truth", fontsize=11, va="center", ha="right", color=BLUE, fontweight="bold")
    figure.text(0.99, 0.965, "\u2014\u2014  found", fontsize=11, va="center", ha="right", color="#B87A00", fontweight="bold")
    return _save(plt, figure, path, dpi=100)


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3.2, foreground="#000000aa")]


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path, *, dpi: int) -> Path:
    """Save as a PNG of 256 colours: a quarter of the bytes, and the eye does not see it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor="white")
    plt.close(figure)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(path, optimize=True)
    return path
