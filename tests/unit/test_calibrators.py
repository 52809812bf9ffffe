"""Calibrators: what each rule clips, that histograms stay small, and that ONNX Runtime's own agree where the rule is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.histograms import BINS, Histogram, entropy_magnitude, mse_magnitude


def _histogram(*images: Any) -> Histogram:
    histogram = Histogram()
    for image in images:
        histogram.add(image.astype(np.float32), float(np.abs(image).max()))
    return histogram


def _error(values: Any, magnitude: float) -> float:
    """What symmetric int8 with this magnitude really loses, mean squared."""
    step = magnitude / 127.0
    return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12), st.integers(0, 2**31))
def test_a_histogram_loses_no_value_and_does_not_grow(tops: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [rng.uniform(-top, top, 500) for top in tops]
    histogram = _histogram(*images)
    assert histogram.counts.size == BINS
    assert histogram.counts.sum() + histogram.zeros == 500 * len(images)
    values = np.abs(np.concatenate(images).astype(np.float32)).astype(np.float64)
    edge = BINS // 4 * histogram.width
    assert abs(histogram.counts[:BINS // 4].sum() - np.count_nonzero((values > 0) & (values < edge))) <= np.count_nonzero(
        np.abs(values - edge) < 1e-6 * edge)


@pytest.mark.parametrize("draw", [
    lambda rng: rng.laplace(0, 1, 200_000), lambda rng: rng.normal(0, 3, 200_000), lambda rng: np.maximum(rng.normal(0, 1, 200_000), 0),
    lambda rng: np.concatenate([rng.normal(0, 1, 200_000), [400.0]]), lambda rng: rng.uniform(-1, 1, 200_000),
])
def test_mse_is_as_good_as_the_best_threshold_by_trial(draw: Any) -> None:
    values = draw(np.random.default_rng(5)).astype(np.float32)
    largest = float(np.abs(values).max())
    best = min(_error(values, largest * share) for share in np.geomspace(1 / 128, 1.0, 300))
    assert _error(values, mse_magnitude(_histogram(values))) <= 1.05 * best


def test_entropy_clips_a_far_outlier_and_keeps_a_uniform_range() -> None:
    rng = np.random.default_rng(5)
    body = rng.normal(0, 1, 200_000)
    assert 2.0 < entropy_magnitude(_histogram(np.append(body, 40.0))) < 6.0
    assert entropy_magnitude(_histogram(rng.uniform(-1, 1, 200_000))) > 0.95


def test_the_zeros_of_a_relu_do_not_move_entropy_or_mse() -> None:
    values = np.abs(np.random.default_rng(5).normal(0, 1, 100_000))
    with_zeros = np.concatenate([values, np.zeros(300_000)])
    for rule in (entropy_magnitude, mse_magnitude):
        assert rule(_histogram(with_zeros)) == rule(_histogram(values))


def test_a_tensor_of_zeros_has_magnitude_zero() -> None:
    for rule in (entropy_magnitude, mse_magnitude):
        assert rule(_histogram(np.zeros(100))) == 0.0


def _images() -> list[Any]:
    rng = np.random.default_rng(3)
    return [(scale * rng.laplace(size=(1, 3, 64, 64))).astype(np.float32) for scale in (1.0, 3.0, 0.5)]


class _Reader:
    def __init__(self, images: list[Any]) -> None:
        self._rest = iter(images)

    def get_next(self) -> Any:
        image = next(self._rest, None)
        return None if image is None else {"x": image}


def _onnxruntime_magnitudes(path: Path, images: list[Any], method: str, **options: Any) -> dict[str, float]:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    calibrator = create_calibrator(path, calibrate_method=CalibrationMethod[method],
                                   augmented_model_path=str(path.with_suffix(".aug.onnx")),
                                   extra_options={"symmetric": True, **options})
    calibrator.collect_data(_Reader(images))
    found = calibrator.compute_data()
    return {name: float(max(abs(np.min(data.range_value[0])), abs(np.max(data.range_value[1])))) for name, data in found.data.items()}


@pytest.mark.parametrize(("ours", "theirs", "options", "tolerance"), [
    ("minmax", "MinMax", {}, 1e-6), ("percentile", "Percentile", {"num_bins": 4096, "percentile": 99.9}, 0.02),
])
def test_onnxruntimes_calibrator_finds_the_same(ours: Any, theirs: str, options: Any, tolerance: float, tmp_path: Path) -> None:
    """The percentile is theirs over all values, ours the largest over images: one image, so that both mean the same."""
    model = write_model(tmp_path / "m.onnx", serialized(tiny_models.residual((1, 3, 64, 64))))
    images = _images() if ours == "minmax" else _images()[:1]
    table = calibrate(model, images, calibrator=ours, percentile=99.9)
    expected = _onnxruntime_magnitudes(model.path, images, theirs, **options)
    names = set(expected) & set(table.ranges)
    assert {"x", "stem", "a", "b", "sum"} <= names
    for name in names:
        assert table.ranges[name].magnitude == pytest.approx(expected[name], rel=tolerance), name


@pytest.mark.parametrize("draw", ["laplace", "normal"])
def test_onnxruntimes_entropy_clips_near_ours(draw: str) -> None:
    """Values of both signs: behind a ReLU theirs clips at a quarter of the range, because its histogram counts the zeros."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = getattr(np.random.default_rng(3), draw)(size=200_000).astype(np.float32)
    collector = HistogramCollector("entropy", True, 1024, 255, 99.99, "same")
    collector.collect({"x": values})
    expected = max(abs(float(bound)) for bound in collector.get_entropy_threshold(collector.histogram_dict["x"], 255))
    assert entropy_magnitude(_histogram(values)) == pytest.approx(expected, rel=0.15)


def test_one_outlier_image_widens_percentile_less_than_minmax(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", serialized(tiny_models.residual((1, 3, 64, 64))))
    rng = np.random.default_rng(3)
    image = rng.normal(size=(1, 3, 64, 64)).astype(np.float32)
    image[0, 0, 0, 0] = 50.0
    found = {kind: calibrate(model, [image], calibrator=kind, percentile=99.0).scale("x")
             for kind in ("minmax", "percentile", "entropy", "mse")}
    assert found["minmax"] == pytest.approx(50.0 / 127.0)
    assert max(found["percentile"], found["entropy"]) < 0.2 * found["minmax"]
    assert found["mse"] <= found["minmax"]
