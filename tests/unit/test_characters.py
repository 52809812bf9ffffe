"""The rendered data set: every class in both splits, and the same bytes for the same seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import characters
import numpy as np
import pytest


def test_same_seed_same_bytes_whatever_else_is_rendered() -> None:
    first, longer, other = characters.render(24, 40, 40), characters.render(24, 72, 40), characters.render(24, 40, 40, seed=1)
    assert first.digest == characters.render(24, 40, 40).digest
    assert np.array_equal(first.images[:40], longer.images[:40])
    assert np.array_equal(first.part("test")[0], longer.part("test")[0])
    assert first.digest != other.digest


def test_every_class_is_in_both_splits_and_no_image_is_in_both() -> None:
    made = characters.render(16, 72, 36)
    for name, each in (("train", 2), ("test", 1)):
        assert np.bincount(made.part(name)[1]).tolist() == [each] * 36
    assert len({image.tobytes() for image in made.images}) == 108


def test_fonts_without_letters_are_left_out() -> None:
    assert not [font for font in characters.find_fonts() if "symbol" in font.lower() or "dingbat" in font.lower()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_set_can_be_learned_and_is_not_easy(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    out = tmp_path / "characters.npz"
    subprocess.run([sys.executable, characters.__file__, str(out), "--side", "24", "--train", "3600", "--test", "720"], check=True)
    with np.load(out) as held:
        images, labels, split = held["images"].reshape(4320, -1) / 255.0, held["labels"], held["split"]
        assert held["classes"].tolist() == list(characters.CLASSES)
    model = LogisticRegression(max_iter=60).fit(images[split == "train"], labels[split == "train"])
    share = model.score(images[split == "test"], labels[split == "test"])
    assert 1 / 36 < share < 0.5, "a linear classifier finds something, and far from everything"
