"""The demo's video: photographs that scikit-image ships, with printed labels of known text moving through them.

Everything follows from a seed, so the truth is known for every frame: which text stands where, and which way up.
Truth boxes are what a DB text detector calls one line: the ink's box grown by `LINE_MARGIN` of its height.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract.errors import IncompatibleError, InputError, StorageError
from jetfleet_contract.messages import Message

from .labels import TEXTS, Patch, draw_label, random_label

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

WIDTH, HEIGHT, FPS = 640, 480, 25
SECONDS = 15
LANES = 5
LINE_MARGIN = 0.26
VIDEO_PHOTOS = ("rocket.jpg", "coffee.png", "motorcycle_left.png", "astronaut.png", "camera.png")
STILL_PHOTOS = ("chelsea.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_right.png", "retina.jpg",
                "coffee.png", "rocket.jpg", "grass.png", "astronaut.png")


class TruthBox(Message, frozen=True):
    """One label on one frame: its text, its line box (x0, y0, x1, y1) in pixels, and its turn: 0 or 180 degrees."""

    text: str
    box: tuple[float, float, float, float]
    turn: int


class Truth(Message, frozen=True):
    """The truth of a whole video: `frames[i]` belongs to frame i of the file."""

    width: int
    height: int
    fps: int
    frames: tuple[tuple[TruthBox, ...], ...]


@dataclass(frozen=True)
class Video:
    """A video file with its truth."""

    path: Path
    truth: Truth

    def frame(self, position: int) -> Image:
        """Frame `position` of the file, (h, w, 3) uint8 BGR. InputError `demo.frame` when it cannot be read."""
        import cv2
        import numpy as np

        capture = cv2.VideoCapture(str(self.path))
        # Read up to it: seeking in MPEG-4 lands on key frames with some builds.
        good = all(capture.grab() for _ in range(position + 1))
        image = capture.retrieve()[1] if good else None
        capture.release()
        if image is None:
            raise InputError("demo.frame", f"frame {position} of the demo's video cannot be read", where=str(self.path),
                             remedy="delete that file and run again")
        return np.asarray(image, np.uint8)


@dataclass(frozen=True)
class _Mover:
    """A label patch that bounces along its lane: position is a triangle wave, so it never leaves the frame."""

    patch: Patch
    start: float
    speed: float
    y: int

    def at(self, frame: int) -> tuple[int, int]:
        room = WIDTH - self.patch.width
        phase = (self.start + self.speed * frame) % (2 * room) if room > 0 else 0.0
        return round(phase if phase <= room else 2 * room - phase), self.y


def make_video(folder: Path, *, seconds: float = SECONDS, seed: int = 7) -> Video:
    """Write a video (MPEG-4, 640x480, 25 fps, some 4 MB) and its truth (JSON) into `folder`, unless they stand there already.

    Raises:
        IncompatibleError: `demo.photos` when scikit-image's pictures are missing, `demo.video` when OpenCV cannot write.
        StorageError: `demo.disk` when the folder cannot be written.
    """
    count = round(seconds * FPS)
    stem = f"scene-{seed}-{count}"
    video, truth = folder / f"{stem}.mp4", folder / f"{stem}.json"
    if video.is_file() and truth.is_file():
        return Video(video, load_truth(truth))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_video(video, truth, count, seed)
    except OSError as error:
        raise StorageError("demo.disk", f"cannot write the demo's video: {error}", where=str(folder),
                           remedy="free some 10 MB there, or choose another folder with --out") from None


def load_truth(path: Path) -> Truth:
    """Read the JSON that `make_video` wrote beside a video."""
    return msgspec.json.decode(path.read_bytes(), type=Truth)


def labelled_images(folder: Path, n: int, seed: int) -> Path:
    """Write `n` labelled stills and ``labels.json`` ({image: [{"label": "text", "box": [...]}]}); returns `folder`.

    For calibration and evaluation: other photographs and other labels than the video's.
    """
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, list[dict[str, object]]] = {}
    for i in range(n):
        rng = _rng(seed, "still", i)
        background = _crop(_photo(STILL_PHOTOS[i % len(STILL_PHOTOS)]), rng.random(), rng.random())
        frame, truth = _compose(background, _movers(rng), rng.randrange(1000))
        name = f"still{i:03d}.png"
        cv2.imwrite(str(folder / name), frame)
        labels[name] = [{"label": "text", "box": list(box.box)} for box in truth]
    (folder / "labels.json").write_text(json.dumps(labels, indent=1, sort_keys=True), encoding="utf-8")
    return folder


def orientation_crops(folder: Path, n: int, seed: int) -> Path:
    """Write `n` line crops into class folders ``0/`` and ``180/``, each line once each way up; returns `folder`.

    Crops are cut as a detector's crops are: the line box, a few pixels off either way.
    """
    import cv2

    for turn in (0, 180):
        (folder / str(turn)).mkdir(parents=True, exist_ok=True)
    made = 0
    for i in range(n):
        rng = _rng(seed, "crop", i)
        background = _crop(_photo(STILL_PHOTOS[i % len(STILL_PHOTOS)]), rng.random(), rng.random())
        frame, truth = _compose(background, _movers(rng), rng.randrange(1000))
        for box in truth:
            if made == n:
                return folder
            upright = _cut(frame, box, rng)
            if box.turn:
                upright = cv2.rotate(upright, cv2.ROTATE_180)
            turn = (0, 180)[made % 2]
            crop = cv2.rotate(upright, cv2.ROTATE_180) if turn else upright
            cv2.imwrite(str(folder / str(turn) / f"line{made:04d}.png"), crop)
            made += 1
    return folder


def _cut(frame: Image, box: TruthBox, rng: random.Random) -> Image:
    x0, y0, x1, y1 = (round(value) + rng.randint(-2, 2) for value in box.box)
    return frame[max(y0, 0):max(y1, 1), max(x0, 0):max(x1, 1)]


def _rng(seed: int, *purpose: object) -> random.Random:
    return random.Random(f"{seed}/{purpose}")  # noqa: S311  a reproducible picture, no secret


def _write_video(video: Path, truth: Path, count: int, seed: int) -> Video:
    import cv2

    partial = video.with_suffix(".part.mp4")
    # MPEG-4 part 2: a ninth of Motion JPEG's bytes here (4.2 against 38 MB) and decoded in 1.0 ms a frame instead of 2.6.
    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), float(FPS), (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise IncompatibleError("demo.video", "this OpenCV cannot write MPEG-4", where=str(partial),
                                remedy="install opencv-python-headless from PyPI: its wheels carry FFmpeg")
    boxes = []
    for frame, found in _frames(count, seed):
        writer.write(frame)
        boxes.append(found)
    writer.release()
    whole = Truth(WIDTH, HEIGHT, FPS, tuple(boxes))
    truth.write_bytes(msgspec.json.encode(whole))
    partial.replace(video)  # last: a video without its truth never stands there
    return Video(video, whole)


def _frames(count: int, seed: int) -> Iterator[tuple[Image, tuple[TruthBox, ...]]]:
    """Scenes of equal length: one photograph each, panned slowly, five labels in their lanes."""
    per_scene = -(-count // len(VIDEO_PHOTOS))
    for scene, name in enumerate(VIDEO_PHOTOS):
        rng = _rng(seed, "scene", scene)
        photo, movers, drift = _photo(name), _movers(rng), rng.random()
        for i in range(min(per_scene, count - scene * per_scene)):
            share = i / max(per_scene - 1, 1)
            yield _compose(_crop(photo, 0.15 + 0.7 * share, abs(drift - share)), movers, i)


def _movers(rng: random.Random) -> list[_Mover]:
    lane = HEIGHT / LANES
    movers = []
    for i, text in enumerate(rng.sample(TEXTS, LANES)):
        patch = draw_label(random_label(rng, text), WIDTH - 40, int(lane) - 6)
        slack = int(lane) - 4 - patch.height
        top = round(i * lane) + 2 + (rng.randrange(slack) if slack > 0 else 0)
        movers.append(_Mover(patch, rng.uniform(0, 2 * WIDTH), rng.uniform(1.0, 4.0), top))
    return movers


def _compose(background: Image, movers: Sequence[_Mover], frame: int) -> tuple[Image, tuple[TruthBox, ...]]:
    picture = background.copy()
    truth = []
    for mover in movers:
        x, y = mover.at(frame)
        mover.patch.paste(picture, x, y)
        truth.append(_truth(mover.patch, x, y))
    return picture, tuple(truth)


def _truth(patch: Patch, x: int, y: int) -> TruthBox:
    x0, y0, x1, y1 = patch.ink
    margin = LINE_MARGIN * (y1 - y0)
    box = (max(x + x0 - margin, 0.0), max(y + y0 - margin, 0.0), min(x + x1 + margin, float(WIDTH)), min(y + y1 + margin, float(HEIGHT)))
    return TruthBox(patch.label.text, tuple(round(value, 1) for value in box), patch.label.turn)  # type: ignore[arg-type]


def _photo(name: str) -> Image:
    """One of scikit-image's pictures, scaled so that a 640x480 window can wander over it."""
    import cv2
    import numpy as np

    try:
        import skimage
    except ImportError:
        raise IncompatibleError("demo.photos", "the demo's photographs come with scikit-image, which is not installed",
                                remedy="pip install 'jetfleet[demo]'") from None
    path = Path(skimage.__file__).parent / "data" / name
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise IncompatibleError("demo.photos", f"scikit-image has no readable picture {name}", where=str(path),
                                remedy="install scikit-image as the constraints file pins it")
    scale = 1.2 * max(WIDTH / image.shape[1], HEIGHT / image.shape[0])
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8)


def _crop(photo: Image, across: float, down: float) -> Image:
    x = round(across * (photo.shape[1] - WIDTH))
    y = round(down * (photo.shape[0] - HEIGHT))
    return photo[y:y + HEIGHT, x:x + WIDTH]

