"""The demo's bundles: built once on this machine, then taken from the cache.

    text-detector     1.0.0   PP-OCRv4's detector at 512x384, as it is: fp32
                      2.0.0   the same at 640x480, which finds smaller print, and compressed: int8 and its uint8 twin
                      3.0.0   at 640x480 with spoiled weights: the bad one
    text-orientation  1.0.0   PP-OCR's line classifier, fed by the detector
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Literal

from jetfleet_contract import __version__
from jetfleet_contract.bundle import InputSpec, TaskSpec

from .models import text_detector, text_orientation
from .narration import Advance
from .observations import ORIENT, TEXT
from .scene import labelled_images, orientation_crops
from .spoiled import spoil
from .summary import BAD, BETTER, GOOD

TARGETS = ("cpu-x86", "cpu-arm64", "orin-nano")
STILLS, LINES, SEED = 40, 120, 11
MAX_DROP = 1.0  # points; the 40 stills hold 200 labels, so one label is half a point
STAGES = ("read", "prepare", "reference", "calibrate", "sensitivity", "int8", "score", "write", "latency")
HALF = (0.5, 0.5, 0.5)
RUNTIMES = ("numpy", "onnx", "onnxruntime", "openvino", "opencv-python-headless")


@dataclass(frozen=True)
class Catalogue:
    """Bundle folders by (app, version), in the order in which they are published."""

    bundles: dict[tuple[str, str], Path]


@dataclass(frozen=True)
class Entry:
    """One bundle to build: the app it is for, its name and version, model file, data folder and task."""

    app: str
    name: str
    version: str
    model: Path
    data: Path
    task: TaskSpec
    methods: tuple[Literal["fp16", "int8"], ...] = ()


def make_catalogue(cache: Path, advance: Advance) -> Catalogue:
    """Fetch the models, render the data and build what the cache does not hold.

    Args:
        cache: the user's cache folder. advance: told how far it is.

    Raises:
        TransportError, InputError: a model cannot be had. What the builder raises.
    """
    entries = _entries(cache)
    bundles = {}
    for i, entry in enumerate(entries):
        title = f"{entry.name} {entry.version}"
        advance(i / len(entries), title)
        bundles[entry.app, entry.version] = _built(cache, entry, _Stages(advance, title, i, len(entries)))
    return Catalogue(bundles)


def _entries(cache: Path) -> list[Entry]:
    detector, orientation = text_detector(cache), text_orientation(cache)
    bad = cache / "models" / "ppocrv4_det_weak.onnx"
    if not bad.is_file():
        spoil(detector, bad.with_suffix(".part")).replace(bad)
    stills = _rendered(cache / "demo" / f"stills-{SEED}-{STILLS}", lambda folder: labelled_images(folder, STILLS, SEED))
    lines = _rendered(cache / "demo" / f"lines-{SEED}-{LINES}", lambda folder: orientation_crops(folder, LINES, SEED))
    return [
        Entry(TEXT, "text-detector", GOOD, detector, stills, _detect_task(512, 384)),
        Entry(ORIENT, "text-orientation", GOOD, orientation, lines, _orientation_task()),
        Entry(TEXT, "text-detector", BETTER, detector, stills, _detect_task(640, 480), ("int8",)),
        Entry(TEXT, "text-detector", BAD, bad, stills, _detect_task(640, 480)),
    ]


def _detect_task(width: int, height: int) -> TaskSpec:
    return TaskSpec("detect-db", InputSpec("x", width, height, "bgr", "stretch", mean=HALF, std=HALF), ("text",))


def _orientation_task() -> TaskSpec:
    # Stretched, not letterboxed: 98 % right instead of 91 % on the demo's own lines.
    return TaskSpec("classify", InputSpec("x", 192, 48, "bgr", "stretch", mean=HALF, std=HALF), ("0", "180"))


def _rendered(folder: Path, render: Callable[[Path], Path]) -> Path:
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        render(partial).rename(folder)
    return folder


def _built(cache: Path, entry: Entry, tell: _Stages) -> Path:
    bundle = cache / "demo" / "bundles" / f"{entry.name}-{entry.version}-{_key(entry)}"
    if bundle.is_dir():
        return bundle
    bundle.parent.mkdir(parents=True, exist_ok=True)
    partial = bundle.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    _build(entry, partial, cache / "demo" / "stages", tell)
    partial.rename(bundle)
    return bundle


def _build(entry: Entry, out: Path, stages: Path, tell: _Stages) -> None:
    """What `jetfleet build` does, with fewer calibration images and no timings: the boards measure for themselves anyway."""
    from jetfleet_host.compress.building import build
    from jetfleet_host.compress.recipe import Job, Recipe

    shape = (1, 3, entry.task.input.height, entry.task.input.width)
    recipe = Recipe(entry.name, entry.version, TARGETS, entry.task, shape, entry.methods, max_drop=MAX_DROP, calibration_images=12,
                    probe_images=6, latency_rounds=0)
    build(Job(entry.model, entry.data, out, stages), recipe, tell.stage)


class _Stages:
    """Turns the builder's stages into the share of the whole and a text."""

    def __init__(self, advance: Advance, title: str, index: int, count: int) -> None:
        self._advance = advance
        self._title = title
        self._index = index
        self._count = count

    def stage(self, name: str, done: int, of: int) -> None:
        place = STAGES.index(name) if name in STAGES else 0
        within = (place + done / max(of, 1)) / len(STAGES)
        self._advance((self._index + min(within, 1.0)) / self._count, f"{self._title}: {name}")


def _key(entry: Entry) -> str:
    """What a bundle depends on: model, task, our version, the runtimes and the machine that measured it."""
    parts = [hashlib.sha256(entry.model.read_bytes()).hexdigest(), repr(entry.task), repr(entry.methods), entry.data.name,
             __version__, _machine(),
             *(f"{name} {package_version(name)}" for name in RUNTIMES)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), "") if cpuinfo.is_file() else ""
    return f"{platform.machine()} {model}"
