"""Project folders, their config and keys: one clear error for each mistake, and no private key where it does not belong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError
from jetfleet_host.cli import app
from jetfleet_host.keys import KeyFolder, public_hex
from jetfleet_host.project import EMBEDDED_PORT, Project, parse_broker


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.init(tmp_path / "fleet")


def test_init_makes_a_folder_that_loads(project: Project) -> None:
    again = Project.load(project.dir)
    assert again.settings.broker.embedded
    assert again.settings.broker.port == EMBEDDED_PORT
    assert again.database_url == f"sqlite:///{project.dir}/jetfleet.db"
    assert project.root_file.read_bytes() == (project.repo_dir / "1.root.json").read_bytes()
    assert sorted(p.name for p in project.dir.iterdir()) == ["blobs", "device", "jetfleet.toml", "keys", "repo"]


def test_init_twice_and_into_a_full_folder(project: Project, tmp_path: Path) -> None:
    config = (project.dir / "jetfleet.toml").read_bytes()
    with pytest.raises(InputError) as caught:
        Project.init(project.dir)
    assert caught.value.code == "project.exists"
    assert (project.dir / "jetfleet.toml").read_bytes() == config
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError) as caught:
        Project.init(tmp_path / "full")
    assert caught.value.code == "project.not-empty"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty" / ".init-0badc0de").mkdir(parents=True)  # a killed init
    Project.init(tmp_path / "empty")


@pytest.mark.parametrize(("text", "expected"), [
    ("embedded", (True, "127.0.0.1", EMBEDDED_PORT)),
    ("embedded:1999", (True, "127.0.0.1", 1999)),
    ("mqtt.example.org:8883", (False, "mqtt.example.org", 8883)),
    ("[::1]:1883", (False, "::1", 1883)),
])
def test_brokers(tmp_path: Path, text: str, expected: tuple[bool, str, int]) -> None:
    broker = Project.init(tmp_path / "p", broker=text).settings.broker
    assert (broker.embedded, broker.host, broker.port) == expected


@pytest.mark.parametrize("text", ["", "host", "host:", ":1883", "host:0", "host:70000", "host:1e3", "a b:1", "user@host:1",
                                  "host:99999999999999"])
def test_no_brokers(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_broker(text)
    assert caught.value.code == "config.broker"
    assert caught.value.remedy


@pytest.mark.parametrize(("text", "code", "words"), [
    ("[broker]\nprot = 1\n", "config.unknown", ("broker.prot", "broker.port")),
    ("[borker]\nport = 1\n", "config.unknown", ("borker", "broker")),
    ("zzz = 1\n", "config.unknown", ("zzz", "valid keys")),
    ("[broker]\nport = '1'\n", "config.value", ("$.broker.port",)),
    ("[broker]\nport = 99999\n", "config.value", ("$.broker.port",)),
    ("broker = 3\n", "config.value", ("$.broker",)),
    ("[delivery]\nrate_mbit_s = -1\n", "config.value", ("$.delivery.rate_mbit_s",)),
    ("[broker]\nca = 'not-there.pem'\n", "config.value", ("not-there.pem",)),
    ("[broker\n", "config.syntax", ()),
    ("\x00\xff", "config.syntax", ()),
    ("# " + "x" * 70_000, "config.syntax", ("limit",)),
])
def test_a_wrong_config_names_key_file_and_remedy(project: Project, text: str, code: str, words: tuple[str, ...]) -> None:
    path = project.dir / "jetfleet.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        Project.load(project.dir)
    assert caught.value.code == code
    assert caught.value.where == str(path)
    for word in words:
        assert word in caught.value.diagnostics()


def test_a_config_with_everything(project: Project) -> None:
    (project.dir / "ca.pem").touch()
    (project.dir / "jetfleet.toml").write_text(
        '[broker]\nembedded = false\nhost = "h"\nport = 8883\nca = "ca.pem"\n'
        '[database]\nurl = "postgresql://x"\n[delivery]\nrate_mbit_s = 5\n')
    loaded = Project.load(project.dir)
    assert loaded.settings.broker.ca == str(project.dir / "ca.pem")
    assert loaded.database_url == "postgresql://x"
    assert loaded.settings.delivery.rate_mbit_s == 5


def test_blob_names_never_become_other_paths(project: Project) -> None:
    for bad in ("../jetfleet.toml", "/etc/passwd", "", "AB" * 32, "ab" * 31):
        with pytest.raises(MalformedError):
            project.blobs.read(bad, 0, 1)
        with pytest.raises(MalformedError):
            project.blobs.size(bad)
    (project.dir / "blobs" / ("ab" * 32)).write_bytes(b"0123456789")
    assert project.blobs.size("ab" * 32) == 10
    assert project.blobs.read("ab" * 32, 8, 100) == b"89"
    assert project.blobs.size("cd" * 32) is None
    with pytest.raises(StorageError):
        project.blobs.read("cd" * 32, 0, 1)


def test_private_keys_are_their_owners_only(project: Project) -> None:
    assert project.keys_dir.stat().st_mode & 0o777 == 0o700
    files = sorted(project.keys_dir.iterdir())
    assert len(files) == 6
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600


def test_key_mistakes(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    public = keys.create("timestamp")
    assert public_hex(keys.signer("timestamp", public)) == public
    path = next(tmp_path.iterdir())
    secret = path.read_text().splitlines()[1]
    path.chmod(0o644)
    found = {"keys.mode": _refusal(keys, "timestamp", public)}
    path.chmod(0o600)
    path.write_text("-----BEGIN PRIVATE KEY-----\n" + secret[:20] + "\n-----END PRIVATE KEY-----\n")
    found["keys.bad"] = _refusal(keys, "timestamp", public)
    found["keys.missing"] = _refusal(keys, "root", public)
    found["keys.role"] = _refusal(keys, "../../x", public)
    for code, error in found.items():
        assert error.code == code
        assert error.remedy
        assert secret[:20] not in str(error)
    other = keys.create("timestamp")
    keys.path("timestamp", other).replace(path)
    assert _refusal(keys, "timestamp", public).code == "keys.bad"


def _refusal(keys: KeyFolder, role: str, public: str) -> JetfleetError:
    with pytest.raises(JetfleetError) as caught:
        keys.signer(role, public)
    return caught.value


# --- command line ------------------------------------------------------------------------------------------


def test_commands_print_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from bundle_maker import make_bundle

    caplog.set_level(logging.DEBUG)
    folder = str(tmp_path / "fleet")
    make_bundle(tmp_path / "b")
    output = []

    def run(*arguments: str) -> object:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        output.append(result.output)
        return json.loads(result.output)

    made = run("init", folder)
    assert isinstance(made, dict)
    assert made["embedded"] is True
    published = run("publish", str(tmp_path / "b"), "--dir", folder)
    assert isinstance(published, dict)
    assert (published["name"], published["version"], published["new"]) == ("toy", "1", True)
    assert run("models", "--dir", folder) == [{"name": "toy", "version": "1", "manifest": published["manifest"], "size": published["size"],
                                              "task": "classify", "variants": ["fp32"], "targets": ["cpu-x86"], "tags": [], "boards": 0}]
    before = run("keys", "list", "--dir", folder)
    assert isinstance(before, list)
    assert {row["role"] for row in before} == {"root", "targets", "snapshot", "timestamp", "deployment", "command"}
    rotated = run("keys", "rotate", "deployment", "--dir", folder)
    after = run("keys", "list", "--dir", folder)
    assert isinstance(rotated, dict)
    assert isinstance(after, list)
    assert [row["public"] for row in after if row["role"] == "deployment"] == [rotated["public"]]
    assert run("models", "retire", "toy:1", "--dir", folder) == {"model": "toy", "version": "1"}
    assert run("models", "--dir", folder) == []
    secrets = [p.read_text().splitlines()[1] for p in (tmp_path / "fleet" / "keys").iterdir()]
    for text in (*output, caplog.text):
        assert not any(secret in text for secret in secrets)


def test_plain_output_and_help_have_examples(tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    assert "boards pin" in CliRunner().invoke(app, ["init", folder]).output
    assert "Nothing is published" in CliRunner().invoke(app, ["models", "--dir", folder]).output
    assert "timestamp" in CliRunner().invoke(app, ["keys", "list", "--dir", folder]).output
    for command in (["init"], ["publish"], ["models"], ["keys", "list"], ["keys", "rotate"]):
        assert "Example" in CliRunner().invoke(app, [*command, "--help"]).output


@pytest.mark.parametrize(("arguments", "code"), [
    (["models", "--dir", "{tmp}/nowhere"], "project.not-found"),
    (["publish", "{tmp}/nowhere", "--dir", "{tmp}/fleet"], "bundle.not-found"),
    (["keys", "rotate", "king", "--dir", "{tmp}/fleet"], "keys.role"),
    (["models", "retire", "toy", "--dir", "{tmp}/fleet"], "models.name"),
    (["models", "retire", "toy:9", "--dir", "{tmp}/fleet"], "models.unknown"),
    (["init", "{tmp}/other", "--broker", "nonsense"], "config.broker"),
])
def test_mistakes_on_the_command_line(project: Project, tmp_path: Path, arguments: list[str], code: str) -> None:
    result = CliRunner().invoke(app, [argument.format(tmp=tmp_path) for argument in arguments])
    assert isinstance(result.exception, JetfleetError)
    assert result.exception.code == code
    assert result.exception.remedy
