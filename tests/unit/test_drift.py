"""Drift: the index over histograms, what chance gives taken off, and the alarm's patience."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.drift import DriftWatch
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.image_stats import luma_and_blur
from jetfleet_contract.app_config import Drift
from jetfleet_contract.drift import (
    MIN_FRAMES,
    DriftReference,
    DriftState,
    Seen,
    counts_in,
    histogram,
    judge,
    reference_of,
    stability,
    step,
    worst,
)
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import sketch_of

positive = st.floats(min_value=0.01, max_value=1e5)


def answers_of(rng: random.Random, frames: int, mean_score: float, labels: str = "ab") -> list[tuple[Detection, ...]]:
    return [tuple(Detection(rng.choice(labels), min(max(rng.gauss(mean_score, 0.08), 0.05), 1.0), (0, 0, 9, 9))
                  for _ in range(rng.randint(1, 4))) for _ in range(frames)]


def images_of(rng: random.Random, frames: int, luma: float) -> list[tuple[float, float]]:
    return [(rng.gauss(luma, 15), abs(rng.gauss(400, 90))) for _ in range(frames)]


def seen_of(images: list[tuple[float, float]], answers: list[tuple[Detection, ...]]) -> Seen:
    labels: dict[str, int] = {}
    for answer in answers:
        for item in answer:
            labels[item.label] = labels.get(item.label, 0) + 1
    values = {"luma": [a for a, _ in images], "blur": [b for _, b in images], "answers": [float(len(a)) for a in answers],
              "score": [item.score for answer in answers for item in answer]}
    return Seen(len(images), {name: sketch_of(sample) for name, sample in values.items()}, labels)


@pytest.fixture
def reference() -> DriftReference:
    rng = random.Random(7)
    made = reference_of(images_of(rng, 60, 120), answers_of(rng, 60, 0.8))
    assert made is not None
    return made


@given(st.lists(positive, min_size=1, max_size=200))
def test_a_histogram_holds_every_value_once(values: list[float]) -> None:
    made = histogram(values)
    assert made is not None
    assert made.count == len(values)
    assert list(made.edges) == sorted(set(made.edges))
    assert sum(made.shares) == pytest.approx(1.0)
    assert len(made.shares) == len(made.edges) + 1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=100))
def test_whole_numbers_keep_their_bin_in_a_sketch(values: list[int]) -> None:
    """A sketch knows a value to one per cent only; an edge that equals a whole number would lose half of them."""
    sample = [float(v) for v in values]
    made = histogram(sample)
    assert made is not None
    shares = [count / len(values) for count in counts_in(sketch_of(sample), made.edges)]
    assert shares == pytest.approx(list(made.shares))


@given(st.lists(st.one_of(positive, st.floats(min_value=0.97, max_value=1.0)), min_size=1, max_size=100))
def test_a_window_of_the_reference_itself_fills_the_bins_alike(values: list[float]) -> None:
    made = histogram(values)
    assert made is not None
    assert [count / len(values) for count in counts_in(sketch_of(values), made.edges)] == pytest.approx(list(made.shares))


def test_a_model_that_is_sure_of_everything_is_no_drift() -> None:
    """Scores of 0.99 and over lie within a sketch's error of each other."""
    def surely(seed: int) -> list[tuple[Detection, ...]]:
        rng = random.Random(seed)
        return [(Detection("a", 1.0 - 10 ** rng.uniform(-6, -1)),) for _ in range(120)]

    made = reference_of([(100.0, 100.0)] * 120, surely(1))
    assert made is not None
    indices = judge(made, seen_of([(100.0, 100.0)] * 120, surely(2)))
    assert indices is not None
    assert worst(indices)[1] < 0.2, indices


@given(st.lists(st.integers(1, 500), min_size=2, max_size=12), st.integers(1, 10_000))
def test_the_index_of_the_same_shares_is_nothing(counts: list[int], draws: int) -> None:
    total = sum(counts)
    found = stability([count / total for count in counts], counts, draws=draws, reference_draws=total)
    assert found == pytest.approx(0.0, abs=0.05)


@given(st.lists(st.integers(0, 500), min_size=3, max_size=3).filter(any))
def test_the_index_is_never_negative_and_finite(counts: list[int]) -> None:
    assert 0.0 <= stability([0.5, 0.5, 0.0], counts, draws=100, reference_draws=100) < 50.0


def test_the_same_scene_raises_no_alarm_and_a_darker_one_does(reference: DriftReference) -> None:
    rng = random.Random(1)
    for _ in range(200):
        same = judge(reference, seen_of(images_of(rng, 150, 120), answers_of(rng, 150, 0.8)))
        assert same is not None
        assert worst(same)[1] < 0.2, same
    dark = judge(reference, seen_of(images_of(rng, 150, 60), answers_of(rng, 150, 0.8)))
    assert dark is not None
    assert worst(dark)[0] == "luma"
    assert dark["luma"] > 1.0
    assert dark["score"] < 0.2


def test_lower_scores_other_labels_and_silence_are_seen(reference: DriftReference) -> None:
    rng = random.Random(2)
    images = images_of(rng, 150, 120)
    weak = judge(reference, seen_of(images, answers_of(rng, 150, 0.5)))
    other = judge(reference, seen_of(images, answers_of(rng, 150, 0.8, labels="bc")))
    silent = judge(reference, seen_of(images, [()] * 150))
    assert weak is not None
    assert other is not None
    assert silent is not None
    assert worst(weak)[0] == "score"
    assert worst(other)[0] == "labels"
    assert worst(silent)[0] == "answers"
    assert "score" not in silent


def test_too_few_frames_say_nothing(reference: DriftReference) -> None:
    rng = random.Random(3)
    assert judge(reference, seen_of(images_of(rng, MIN_FRAMES - 1, 10), answers_of(rng, MIN_FRAMES - 1, 0.1))) is None


def test_no_images_make_no_reference() -> None:
    assert reference_of([], []) is None
    assert reference_of([(1.0, 1.0)], []) is None


def test_many_labels_are_bounded() -> None:
    answers = [(Detection(f"label{i}", 0.9),) for i in range(500)]
    made = reference_of([(1.0, 1.0)] * 500, answers)
    assert made is not None
    assert len(made.labels) <= 65
    assert sum(made.labels.values()) == pytest.approx(1.0)


def test_the_alarm_needs_windows_in_a_row_to_begin_and_to_end() -> None:
    spec = Drift(threshold=0.2, windows=3)
    state = DriftState()
    said = []
    for index in (0.5, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1):
        state, change = step(state, {"luma": index}, spec)
        said.append(change)
    assert said == [None, None, None, None, None, True, None, None, None, None, None, False, None]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_begin_and_end_alternate(overs: list[bool], windows: int) -> None:
    spec, state = Drift(threshold=0.2, windows=windows), DriftState()
    changes = []
    for over in overs:
        state, change = step(state, {"x": 1.0 if over else 0.0}, spec)
        if change is not None:
            changes.append(change)
    assert changes == [i % 2 == 0 for i in range(len(changes))]


def test_luma_and_sharpness_of_known_frames() -> None:
    import cv2

    rng = np.random.default_rng(5)
    gray = np.full((720, 1280, 3), 100, np.uint8)
    assert luma_and_blur(gray) == pytest.approx((100.0, 0.0))
    noise = rng.integers(0, 256, (720, 1280, 3), np.uint8)
    sharp, soft = luma_and_blur(noise), luma_and_blur(cv2.GaussianBlur(noise, (9, 9), 0))
    assert sharp[0] == pytest.approx(127.5, abs=5)
    assert soft[1] < 0.1 * sharp[1]
    blue = np.zeros((48, 64, 3), np.uint8)
    blue[:, :, 0] = 255
    assert luma_and_blur(blue)[0] == pytest.approx(0.114 * 255)


# --- the step on real frames: the demo's photographs with moving labels, as they are and darkened -------------------------------------


class Recorded:
    """A meter that only counts."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.counted = 0

    def values(self, key: tuple[str, str, str], source: str, values: Mapping[str, float]) -> None:
        assert all(value >= 0 for value in values.values())
        self.names |= set(values)

    def labels(self, key: tuple[str, str, str], source: str, labels: Mapping[str, int]) -> None:
        self.counted += sum(labels.values())


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Frames of the demo's video, some seconds apart in what they show."""
    import cv2

    from jetfleet_host.demo.scene import make_video

    capture = cv2.VideoCapture(str(make_video(tmp_path_factory.mktemp("drift"), seconds=16.0).path))
    frames: list[Any] = []
    while True:
        good, image = capture.read()
        if not good:
            return frames[::4]
        frames.append(image)


def found_in(image: Any) -> tuple[Detection, ...]:
    """A stand-in for a detector, as sure as the picture is bright."""
    luma, _ = luma_and_blur(image)
    return (Detection("text", min(1.0, luma / 255), (0, 0, 9, 9)),) if luma > 40 else ()


def loaded(reference: DriftReference | None, bundle: str = "a", worlds: tuple[DriftReference, ...] = ()) -> Any:
    spec = SimpleNamespace(references=() if reference is None else (reference, *worlds))
    return SimpleNamespace(model=SimpleNamespace(spec=spec), key=(bundle * 64, "1", "v@onnxruntime:fp32"))


def watch(spec: Drift) -> tuple[DriftWatch, list[Raised], Recorded]:
    told: list[Raised] = []
    record = Recorded()
    watching = DriftWatch(told.append, record)
    watching.configure(AppConfig(drift=spec))
    return watching, told, record


def play(watching: DriftWatch, model: Any, images: list[Any], began: float, seconds: float) -> float:
    """Ten frames a second, the images over and over."""
    for index in range(round(10 * seconds)):
        image = images[index % len(images)]
        frame = Frame("front", index, -1, image, began, 0.0)
        frame.detections = found_in(image)
        began += 0.1
        watching.take(frame, model, began)
    return began


def test_a_darkened_video_raises_the_alarm_and_daylight_ends_it(shots: list[Any]) -> None:
    made = reference_of([luma_and_blur(image) for image in shots[::2]], [found_in(image) for image in shots[::2]])
    watching, told, record = watch(Drift(window_s=10.0, windows=3))
    now = play(watching, loaded(made), shots[1::2], 0.0, 120.0)
    assert told == [], "the scene that the reference was made of"
    dark = [(image * 0.35).astype(np.uint8) for image in shots]
    now = play(watching, loaded(made), dark, now, 60.0)
    assert [(event.source, event.up, event.code) for event in told] == [("front", True, "drift")]
    assert watching.gauges()["drift.front"] > 0.2
    play(watching, loaded(made), shots, now, 60.0)
    assert [event.up for event in told] == [True, False]
    assert record.names == {"luma", "blur", "answers", "score"}
    assert record.counted > 0


def test_a_bundle_of_day_and_night_takes_either_and_no_third(shots: list[Any]) -> None:
    def made(images: list[Any]) -> DriftReference:
        found = reference_of([luma_and_blur(image) for image in images], [found_in(image) for image in images])
        assert found is not None
        return found

    night = [(image * 0.35).astype(np.uint8) for image in shots]
    both = loaded(made(shots[::2] + night[::2]), worlds=(made(shots[::2]), made(night[::2])))
    watching, told, _ = watch(Drift(window_s=10.0, windows=2))
    now = play(watching, both, night[1::2], 0.0, 60.0)
    now = play(watching, both, shots[1::2], now, 60.0)
    assert told == []
    play(watching, both, [(image * 0.1).astype(np.uint8) for image in shots], now, 60.0)
    assert [event.code for event in told] == ["drift"]


def test_a_camera_can_be_its_own_reference(shots: list[Any]) -> None:
    watching, told, _ = watch(Drift(reference="camera", window_s=10.0, windows=2))
    now = play(watching, loaded(None), shots, 0.0, 100.0)
    assert told == []
    play(watching, loaded(None), [(image * 0.3).astype(np.uint8) for image in shots], now, 40.0)
    assert [event.code for event in told] == ["drift"]


def test_a_bundle_without_a_reference_says_so_once(shots: list[Any]) -> None:
    watching, told, _ = watch(Drift(window_s=10.0))
    play(watching, loaded(None), shots[:5], 0.0, 60.0)
    assert [(event.up, event.code) for event in told] == [(True, "drift.no-reference")]


def test_other_settings_end_the_alarm_and_none_looks_at_nothing(shots: list[Any]) -> None:
    made = reference_of([luma_and_blur(image) for image in shots], [found_in(image) for image in shots])
    watching, told, record = watch(Drift(window_s=10.0, windows=1))
    play(watching, loaded(made), [(image * 0.2).astype(np.uint8) for image in shots], 0.0, 20.0)
    watching.configure(AppConfig())
    assert [event.up for event in told] == [True, False]
    record.names.clear()
    play(watching, loaded(made), shots, 50.0, 5.0)
    assert not record.names
