"""What a build takes as DATA, the rule that splits it, and what is told of labels, pixels and sets that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import data_folders
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError
from jetfleet_host.compress.dataset import DataSet, load_data, read_image, to_tensor
from jetfleet_host.compress.intake.images import data_folder
from jetfleet_host.compress.intake.splitting import load_splits, validation_indices
from jetfleet_host.compress.samples import ImageSamples, class_order, class_targets

SPEC = InputSpec("x", 8, 8, "rgb", "stretch", 1.0 / 255.0, (0.0,) * 3, (1.0,) * 3)


def _npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "d.npz", **arrays)
    return str(folder / "d.npz")


def _pixels(count: int = 10) -> Any:
    return np.random.default_rng(1).integers(0, 255, (count, 6, 6, 3), np.uint8)


def test_arrays_become_files_with_the_same_pixels_and_names(tmp_path: Path) -> None:
    images = _pixels()
    text = _npz(tmp_path, images=images, labels=np.arange(10) % 2, classes=np.array(["zebra", "ant"]))
    found = data_folder(text, tmp_path / "cache")
    data = load_data(found.folder)
    assert found.classes == ("zebra", "ant")
    assert [read_image(path)[:, :, ::-1].tolist() for path in data.images] == images.tolist()
    assert [answer[0].label for answer in data.truth or ()][:3] == ["zebra", "ant", "zebra"]
    assert class_targets(data, class_order(data, found.classes)).tolist() == [0, 1] * 5  # type: ignore[union-attr]
    assert data_folder(text, tmp_path / "cache").folder == found.folder
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_splits_that_a_file_names_are_kept(tmp_path: Path) -> None:
    text = _npz(tmp_path, images=_pixels(), labels=np.arange(10) % 2, split=np.array(["train"] * 6 + ["validation"] * 4))
    splits = load_splits(data_folder(text, tmp_path / "cache").folder, 0, 4)
    assert (len(splits.train.images), len(splits.validation.images), len(splits.calibration.images)) == (6, 4, 4)
    assert set(splits.calibration.images) <= set(splits.train.images)


def test_a_loader_of_float_batches_is_read(tmp_path: Path) -> None:
    found = data_folder("model_worlds:loader", tmp_path / "cache")
    splits = load_splits(found.folder, 0, 32)
    assert (len(splits.train.images), len(splits.validation.images)) == (8, 2)
    assert splits.train.labels() == ("cat", "dog")


@pytest.mark.parametrize(("text", "code", "words"), [
    ("model_worlds:dead_loader", "factory.raised", "the disk is gone"),
    ("model_worlds:strange_label", "data.labels", "the label 2 is none of the 2 classes"),
    ("model_worlds:holes", "data.not-finite", "image 2"),
    ("model_worlds:small", "factory.type", "not a mapping"),
])
def test_what_a_factory_gives_wrong_is_told(text: str, code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        data_folder(text, tmp_path / "cache")
    assert caught.value.code == code


@pytest.mark.parametrize(("arrays", "code"), [
    ({"pixels": np.zeros(3)}, "data.npz"),
    ({"images": np.zeros((3, 6, 6, 3), np.uint8), "labels": np.zeros(2)}, "data.labels"),
    ({"images": np.zeros((3, 6, 6, 3), np.uint8), "split": np.array(["train", "test", "holdout"])}, "data.split"),
    ({"images": np.full((3, 6, 6, 3), -2.0)}, "data.images"),
    ({"images": np.zeros((3, 6, 6, 3), np.int32)}, "data.images"),
    ({"images": np.zeros((3, 6, 6, 3), np.uint8), "labels": np.array([0, -1, 1])}, "data.labels"),
    ({"images": np.zeros((3, 6, 6, 3), np.uint8), "labels": np.array([0.5, 1.0, 0.0])}, "data.labels"),
])
def test_arrays_that_cannot_be_are_told(arrays: dict[str, Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        data_folder(_npz(tmp_path, **arrays), tmp_path / "cache")
    assert caught.value.code == code


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        data_folder(_npz(tmp_path, images=np.array([{}, {}], dtype=object)), tmp_path / "cache")
    assert caught.value.code == "data.npz"


def _labelled(labels: list[str]) -> DataSet:
    from jetfleet_contract.predictions import Detection

    folder = Path("d")
    return DataSet(folder, tuple(folder / f"{i}.png" for i in range(len(labels))), tuple((Detection(label, 1.0),) for label in labels), "d")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(0, 5))
def test_one_in_five_of_each_label_validates_and_one_stays(labels: list[str], seed: int) -> None:
    chosen = validation_indices(_labelled(labels), seed)
    assert len(set(chosen)) == len(chosen)
    for label in set(labels):
        of = labels.count(label)
        held = sum(labels[i] == label for i in chosen)
        assert held == min(of - 1, -(-of // 5))
    assert sorted(chosen) == sorted(validation_indices(_labelled(labels), seed))


def test_a_folder_is_split_by_the_seed_alone(tmp_path: Path) -> None:
    folder = data_folders.colour_classes(tmp_path / "d", count=10)
    one, again, other = (load_splits(folder, seed, 5) for seed in (0, 0, 1))
    assert one == again
    assert one.validation.images != other.validation.images
    assert not set(one.train.images) & set(one.validation.images)
    assert len({one.train.digest, one.validation.digest, one.calibration.digest, other.train.digest}) == 4


def test_sets_and_labels_that_cannot_be_are_told(tmp_path: Path) -> None:
    one = data_folders.plain_images(tmp_path / "one", count=2, labels={"0.png": "a", "1.png": "a"})
    with pytest.raises(InputError, match="calibration set of 1") as caught:
        load_splits(one, 0, 32)
    assert caught.value.code == "data.calibration"
    for name, label in (("train", "a"), ("validation", "b")):
        data_folders.plain_images(tmp_path / "two" / name, count=3, labels={f"{i}.png": label for i in range(3)})
    with pytest.raises(InputError, match="'b' is in the validation set but was never trained"):
        load_splits(tmp_path / "two", 0, 32)


def test_a_label_that_is_no_class_names_the_image(tmp_path: Path) -> None:
    data = load_data(data_folders.plain_images(tmp_path / "d", count=2, labels={"0.png": "cat", "1.png": "cow"}))
    with pytest.raises(InputError, match=r"1\.png is labelled 'cow', which is none of the 2 classes"):
        class_targets(data, ("cat", "dog"))


def test_samples_are_the_boards_own_pixels(tmp_path: Path) -> None:
    folder = data_folders.colour_classes(tmp_path / "d", count=2)
    data = load_data(folder)
    samples = ImageSamples(data, SPEC, class_targets(data, ()))
    image, target = samples[3]
    assert image.tobytes() == to_tensor(read_image(data.images[3]), SPEC)[0].tobytes()
    assert image.shape == (3, 8, 8)
    assert (str(image.dtype), str(target.dtype), int(target)) == ("float32", "int64", 1)
    other = ImageSamples(data, msgspec.structs.replace(SPEC, color="bgr"), class_targets(data, ()))
    assert samples.digest != other.digest


def test_written_labels_are_json_of_names(tmp_path: Path) -> None:
    folder = data_folder(_npz(tmp_path, images=_pixels(2), labels=np.array(["../x", "b"])), tmp_path / "cache").folder
    assert json.loads((folder / "labels.json").read_text()) == {"0000000.png": "../x", "0000001.png": "b"}
    assert cv2.imread(str(folder / "0000000.png")) is not None
