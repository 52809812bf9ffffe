"""The exec runner's parts: the health decoder takes any bytes, releases are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import classifier_task, model_of, save_brightness_model

from jetfleet_agent.config import parse
from jetfleet_agent.external import releases
from jetfleet_agent.external.health import Health, HealthSocket, health_from
from jetfleet_agent.external.releases import Releases
from jetfleet_contract.errors import InputError, MalformedError, StorageError
from jetfleet_contract.messages import AppConfig

HEAD = 'device = "gate-7"\nroot = "root.json"\n[broker]\nhost = "h"\n'


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["ok", "frames", "bundle", "latency_ms", "x"]), inner)
).map(lambda value: json.dumps(value).encode()))
def test_any_datagram_is_health_or_malformed(data: bytes) -> None:
    try:
        health = health_from(data)
    except MalformedError:
        return
    assert health.frames >= 0
    assert all(value >= 0 for value in health.latency_ms)


def test_a_message_is_read() -> None:
    assert health_from(b'{"ok": true, "frames": 3, "latency_ms": [1.5], "new": 1}') == Health(True, "", 3, (1.5,))


def test_a_power_cut_while_laying_out_leaves_no_half_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(save_brightness_model(tmp_path / "weights.onnx"), classifier_task())
    folder = Releases(tmp_path / "app")

    def cut(path: Path, data: bytes, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(releases, "write_file", cut)
        with pytest.raises(KeyboardInterrupt):
            folder.lay_out(model, AppConfig())
    assert not folder.path("a" * 16).exists()
    assert folder.lay_out(model, AppConfig()) == "a" * 16
    assert (folder.path("a" * 16) / "labels.txt").is_file()


def test_a_full_disk_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(save_brightness_model(tmp_path / "weights.onnx"), classifier_task())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(releases, "make_folder", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        Releases(tmp_path / "app").lay_out(model, AppConfig())
    assert caught.value.code == "external.folder"


def test_a_bundle_is_never_a_path() -> None:
    for bad in ("", "../" * 10, "a" * 63, "A" * 64):
        with pytest.raises(MalformedError):
            releases.name_of(bad)


def test_a_folder_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(StorageError, match="shorter folder"):
        HealthSocket(deep / "health.sock", lambda _: None)


@pytest.mark.parametrize("table", ["folder = 3", "folder = 'x'\nprepare = 'rm -rf /'", "folder = 'x'\nunknown = 1", "prepare = []",
                                   "folder = 'x'\nquiet_s = -1"])
def test_a_wrong_table_is_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="external"):
        parse(HEAD + "[external.counter]\n" + table, tmp_path / "agent.toml")


def test_folders_are_relative_to_the_config(tmp_path: Path) -> None:
    config = parse(HEAD + "[external.counter]\nfolder = 'counter'\n", tmp_path / "agent.toml")
    assert config.external["counter"].folder == str(tmp_path / "counter")
