"""The agent's config: every mistake is one error that names key, file and remedy; nothing is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetfleet_agent.config import EXAMPLE, MAX_CONFIG_BYTES, AgentConfig, load, parse
from jetfleet_contract.errors import InputError

LEAST = 'device = "gate-7"\nroot = "root.json"\n[broker]\nhost = "h"\n'


def error_of(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        parse(text, Path("/etc/x/agent.toml"))
    return caught.value


def test_the_least_config_has_defaults_and_paths_relative_to_its_file() -> None:
    config = parse(LEAST, Path("/etc/x/agent.toml"))
    assert config.root == Path("/etc/x/root.json")
    assert config.state_dir == Path("/var/lib/jetfleet")
    assert (config.board, config.simulate, config.threads, config.broker.port) == ("auto", False, 0, 1883)


def test_the_printed_example_is_valid_and_shows_every_key() -> None:
    config = parse(EXAMPLE, Path("/etc/x/agent.toml"))
    assert config.local_sources == {"front": "/dev/video0"}
    tables = (AgentConfig, type(config.broker), type(config.measure), type(config.upload), type(config.mirror), type(config.results))
    for field in (name for table in tables for name in table.__struct_fields__):
        if field not in ("images", "lock"):
            assert field in EXAMPLE


@pytest.mark.parametrize(("text", "key", "hint"), [
    ('devise = "x"\n' + LEAST, "devise", "device"),
    (LEAST + 'hots = "x"\n', "broker.hots", "broker.host"),
    (LEAST + "[measure]\nrunz = 3\n", "measure.runz", "measure.runs"),
    (LEAST + "[quux]\nx = 1\n", "quux", "valid keys"),
])
def test_an_unknown_key_names_the_nearest_valid_one(text: str, key: str, hint: str) -> None:
    error = error_of(text)
    assert error.code == "config.unknown"
    assert repr(key) in error.what
    assert hint in error.remedy
    assert error.where == "/etc/x/agent.toml"
    assert error.exit_code == 2


@pytest.mark.parametrize(("text", "names"), [
    ('window_s = "10"\n' + LEAST, "window_s"),
    ("window_s = 0.0\n" + LEAST, "window_s"),
    ("threads = -1\n" + LEAST, "threads"),
    ("threads = true\n" + LEAST, "threads"),
    ('simulate = "yes"\n' + LEAST, "simulate"),
    ("state_dir = 5\n" + LEAST, "state_dir"),
    (LEAST + "port = 99999\n", "broker.port"),
    (LEAST.replace("gate-7", "Gate 7"), "Gate 7"),
    (LEAST.replace('device = "gate-7"', ""), "device"),
    (LEAST.replace("[broker]\nhost", "[local_sources]\nhost"), "broker"),
    (LEAST + '[local_sources]\n"../x" = "/dev/video0"\n', "../x"),
    (LEAST + "[local_sources]\n" + "".join(f's{i} = "x"\n' for i in range(65)), "65 local sources"),
])
def test_a_value_that_does_not_fit_is_named(text: str, names: str) -> None:
    error = error_of(text)
    assert error.code == "config.bad"
    assert names in error.what


def test_a_config_that_is_no_toml_says_where() -> None:
    error = error_of("device = \n")
    assert error.code == "config.syntax"
    assert "line 1" in error.what


def test_credentials_of_a_camera_are_not_in_an_error() -> None:
    error = error_of(LEAST + '[local_sources]\nfront = "rtsp://me:secret@cam/1"\nback = 3\n')
    assert "secret" not in error.diagnostics()


@pytest.mark.parametrize(("content", "code"), [
    (None, "config.missing"),
    (b"\xff\xfe", "config.syntax"),
    (b"#" * (MAX_CONFIG_BYTES + 1), "config.bad"),
])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "agent.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path)
    assert caught.value.code == code


def test_a_missing_root_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(LEAST)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "agent.toml")
    assert caught.value.code == "config.root"
    assert str(tmp_path / "root.json") in caught.value.what
    assert "device/root.json" in caught.value.remedy


@pytest.mark.parametrize("key", ["ca", "cert", "key", "password_file"])
def test_a_missing_file_of_the_broker_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "root.json").write_text("{}")
    (tmp_path / "agent.toml").write_text(LEAST + f'{key} = "not-there.pem"\n')
    with pytest.raises(InputError) as caught:
        load(tmp_path / "agent.toml")
    assert caught.value.code == "config.missing-file"
    assert "not-there.pem" in caught.value.what


def test_a_whole_config_loads(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    (tmp_path / "agent.toml").write_text(LEAST)
    assert load(tmp_path / "agent.toml").device == "gate-7"


@pytest.mark.parametrize("url", ["ftp://h/", "//h/blobs", "https://", "https://user:pass@h/blobs", "http://h:99999/", "https://h/x?token=1",
                                 "https://h/a b", "h/blobs", "https://h/#x"])
def test_a_mirror_is_an_address_without_credentials(url: str) -> None:
    error = error_of(LEAST + f'[mirror]\nurl = "{url}"\n')
    assert error.code == "config.bad"
    assert "pass" not in error.what.replace("password", "")


def test_a_mirror_with_its_files() -> None:
    text = LEAST + '[mirror]\nurl = "https://mirror.example.org:8443/blobs/"\nmode = "prefer"\nca = "ca.pem"\n'
    config = parse(text, Path("/etc/x/a.toml"))
    assert (config.mirror.mode, config.mirror.ca, config.mirror.cert) == ("prefer", "/etc/x/ca.pem", "")
    assert error_of(LEAST + '[mirror]\nmode = "sometimes"\n').code == "config.bad"


def test_where_sinks_may_write_and_listen() -> None:
    text = LEAST + '[results]\nfolder = "seen"\nsockets = "/run/x"\npreview_address = "0.0.0.0"\nmax_mb = 20\n'
    config = parse(text, Path("/etc/x/a.toml"))
    assert (config.results.folder, config.results.sockets, config.results.max_mb) == ("/etc/x/seen", "/run/x", 20)
    for address in ("localhost", "eth0", "10.0.0.0/8", ""):
        error = error_of(LEAST + f'[results]\npreview_address = "{address}"\n')
        assert (error.code, "IP address" in error.what) == ("config.bad", True)


def test_a_ca_of_webhooks_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    (tmp_path / "agent.toml").write_text(LEAST + '[results]\nwebhook_ca = "no.pem"\n')
    with pytest.raises(InputError) as caught:
        load(tmp_path / "agent.toml")
    assert (caught.value.code, "no.pem" in caught.value.what) == ("config.missing-file", True)
