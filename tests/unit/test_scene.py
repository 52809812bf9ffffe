"""The demo's video and stills: the truth that everything later is scored against must itself be true."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from jetfleet_contract.errors import InputError
from jetfleet_contract.similarity import iou
from jetfleet_host.demo import labels, scene


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> scene.Video:
    return scene.make_video(tmp_path_factory.mktemp("scene"), seconds=0.8, seed=3)


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame)


def test_each_frame_of_the_file_has_its_truth(video: scene.Video) -> None:
    frames = frames_of(video.path)
    assert len(frames) == len(video.truth.frames) == 20
    assert all(frame.shape == (scene.HEIGHT, scene.WIDTH, 3) for frame in frames)
    assert all(len(boxes) == scene.LANES for boxes in video.truth.frames)


def test_boxes_lie_inside_and_never_overlap(video: scene.Video) -> None:
    for boxes in video.truth.frames:
        for i, box in enumerate(boxes):
            x0, y0, x1, y1 = box.box
            assert 0 <= x0 < x1 <= scene.WIDTH
            assert 0 <= y0 < y1 <= scene.HEIGHT
            assert all(iou(box.box, other.box) == 0 for other in boxes[i + 1:])


def test_one_frame_can_be_shown(video: scene.Video) -> None:
    assert np.array_equal(video.frame(7), frames_of(video.path)[7])
    with pytest.raises(InputError) as caught:
        video.frame(20)
    assert caught.value.code == "demo.frame"


def test_labels_move(video: scene.Video) -> None:
    first, later = video.truth.frames[0], video.truth.frames[3]
    assert [box.text for box in first] == [box.text for box in later]
    assert any(a.box != b.box for a, b in zip(first, later, strict=True))


def test_the_same_seed_gives_the_same_video(video: scene.Video, tmp_path: Path) -> None:
    again = scene.make_video(tmp_path, seconds=0.8, seed=3)
    assert again.truth == video.truth
    assert again.path.read_bytes() == video.path.read_bytes()
    assert scene.make_video(tmp_path, seconds=0.8, seed=4).truth != video.truth


def test_a_video_that_stands_there_is_not_made_again(video: scene.Video) -> None:
    before = video.path.stat().st_mtime_ns
    again = scene.make_video(video.path.parent, seconds=0.8, seed=3)
    assert again == video
    assert again.path.stat().st_mtime_ns == before


def test_ink_stands_inside_its_box() -> None:
    rng = random.Random(1)
    for _ in range(20):
        label = labels.random_label(rng, rng.choice(labels.TEXTS))
        patch = labels.draw_label(label, 600, 90)
        canvas = np.full((patch.height, patch.width, 3), label.ground or (128, 128, 128), np.uint8)
        plain = canvas.copy()
        patch.paste(canvas, 0, 0)
        ys, xs = np.nonzero(np.abs(canvas.astype(int) - plain).max(axis=2) > 15)
        x0, y0, x1, y1 = patch.ink
        slack = 4  # outline and blur
        assert x0 - slack <= xs.min() <= x0 + slack
        assert x1 - slack <= xs.max() + 1 <= x1 + slack
        assert y0 - slack <= ys.min() <= y0 + slack
        assert y1 - slack <= ys.max() + 1 <= y1 + slack


def test_a_turned_label_is_the_upright_one_by_180_degrees() -> None:
    upright = labels.Label("GATE A12", labels.FONTS[0], 24, 0, (10, 10, 10), (240, 240, 240))
    turned = labels.Label("GATE A12", labels.FONTS[0], 24, 180, (10, 10, 10), (240, 240, 240))
    assert np.array_equal(labels.draw_label(turned, 600, 90).colour, labels.draw_label(upright, 600, 90).colour[::-1, ::-1])


def test_a_label_too_wide_is_drawn_smaller() -> None:
    label = labels.Label("HANDLE WITH CARE", labels.FONTS[1], 44, 0, (0, 0, 0), (255, 255, 255))
    assert labels.draw_label(label, 250, 90).width <= 250


def test_labelled_stills_are_in_the_builders_format(tmp_path: Path) -> None:
    scene.labelled_images(tmp_path / "stills", 3, seed=5)
    listed = json.loads((tmp_path / "stills" / "labels.json").read_text())
    assert sorted(listed) == sorted(p.name for p in (tmp_path / "stills").glob("*.png"))
    for boxes in listed.values():
        assert len(boxes) == scene.LANES
        assert all(box["label"] == "text" and len(box["box"]) == 4 for box in boxes)


def test_orientation_crops_come_in_two_equal_classes(tmp_path: Path) -> None:
    folder = scene.orientation_crops(tmp_path / "lines", 12, seed=5)
    assert [len(list((folder / turn).glob("*.png"))) for turn in ("0", "180")] == [6, 6]
    for path in folder.glob("*/*.png"):
        crop = cv2.imread(str(path))
        assert crop is not None
        assert min(crop.shape[:2]) > 5
