"""Engines built by the agent's own programs: on this machine, and over SSH on a board that is an sshd on loopback with keys of its own."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from typer.testing import CliRunner, Result

from jetfleet_contract.bundle import Evaluation, InputSpec, ModelSpec, ProbeItem, ProbeSet, TaskSpec, Variant, digest_of
from jetfleet_contract.errors import IncompatibleError, InputError, MalformedError, RuntimeFailure, TransportError, UntrustedError
from jetfleet_host.bundles import digest_file, write_bundle
from jetfleet_host.cli import app
from jetfleet_host.engines.ssh_machine import FOLDER, address_of

# A suite that was started in the background may have interrupts ignored; its children would inherit that.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from jetfleet_host.cli import main; main()"
PNG = b"\x89PNG\r\n\x1a\nnot a picture, but bytes"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny_models.classifier().SerializeToString())
    variant = Variant("fp32", digest_file(model), model.stat().st_size, "fp32")
    task = TaskSpec("classify", InputSpec("x", 16, 16), ("a", "b", "c"))
    write_bundle(tmp_path / "m.bundle", spec=ModelSpec("m", "1", task, (variant,), ("cpu-x86",)),
                 evaluation=Evaluation("top1", "fp32", 0.5, "a test", ()), probe=ProbeSet((ProbeItem(digest_of(PNG), ()),)),
                 files={digest_of(PNG): PNG}, weights=[(variant, model)])
    return tmp_path / "m.bundle"


class Board:
    """An sshd of our own, its keys, and an interpreter that finds the agent."""

    def __init__(self, folder: Path, sshd: str) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        shutil.copy(folder / "user.pub", folder / "authorized")
        host = (folder / "host.pub").read_text().split()
        self.known = folder / "known_hosts"
        self.known.write_text(f"[127.0.0.1]:{self.port} {host[0]} {host[1]}\n")
        self.python = folder / "python"
        self.python.write_text(f"#!/bin/sh\nPYTHONPATH={os.pathsep.join(sys.path)} exec {sys.executable} \"$@\"\n")
        self.python.chmod(0o755)
        config = folder / "sshd_config"
        config.write_text(f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
                          f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\n"
                          "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
                          "PermitRootLogin yes\n"
                          f"Subsystem sftp internal-sftp -d {self.home}\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if b"listening on" in line:
                break
        else:
            pytest.fail("sshd did not start")

    def build(self, bundle: Path, out: Path, *more: str, python: str = "", key: str = "user", known: Path | None = None) -> Result:
        with_board = f"ssh:{getpass.getuser()}@127.0.0.1:{self.port}"
        return CliRunner().invoke(app, ["engines", "build", str(bundle), "--with", with_board, "--out", str(out),
                                        "--remote-python", python or str(self.python), "--ssh-key", str(self.folder / key),
                                        "--known-hosts", str(known or self.known), "--json", *more])

    @property
    def bench(self) -> list[str]:
        folder = self.home / FOLDER
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if sshd is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("sshd is not installed")
    made = Board(tmp_path / "board", sshd)
    yield made
    made.process.terminate()
    made.process.wait()
    if made.process.stderr:
        made.process.stderr.close()


def test_this_machine_compiles_for_itself_and_not_twice(bundle: Path, tmp_path: Path) -> None:
    command = ["engines", "build", str(bundle), "--with", "local", "--out", str(tmp_path / "out"), "--json"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)["engines"]
    assert {row["passport"]["footing"]["backend"] for row in rows} == {"openvino"}
    for row in rows:
        assert digest_file(Path(row["file"])) == row["digest"]
        assert row["fresh"]
    again = json.loads(CliRunner().invoke(app, command).stdout)["engines"]
    assert [(row["key"], row["fresh"]) for row in again] == [(row["key"], False) for row in rows]


def test_a_lone_file_is_no_work_for_a_board(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny_models.classifier().SerializeToString())
    said = CliRunner().invoke(app, ["engines", "build", str(tmp_path / "m.onnx"), "--with", "local", "--out", str(tmp_path / "out")])
    assert isinstance(said.exception, InputError)
    assert said.exception.code == "engine.source"


def test_a_board_on_the_bench_builds_what_this_machine_would(board: Board, bundle: Path, tmp_path: Path) -> None:
    here = CliRunner().invoke(app, ["engines", "build", str(bundle), "--with", "local", "--out", str(tmp_path / "here"), "--json"])
    said = board.build(bundle, tmp_path / "out")
    assert said.exit_code == 0, (said.output, said.exception)
    rows = json.loads(said.stdout)["engines"]
    assert [row["key"] for row in rows] == [row["key"] for row in json.loads(here.stdout)["engines"]]
    assert all(digest_file(Path(row["file"])) == row["digest"] for row in rows)
    weights = rows[0]["passport"]["recipe"]["weights"]
    assert board.bench == [f"{weights}.onnx"]  # no job is left, and the model need not be copied again
    copied = (board.home / FOLDER / f"{weights}.onnx").stat().st_mtime_ns
    assert board.build(bundle, tmp_path / "anew").exit_code == 0
    assert (board.home / FOLDER / f"{weights}.onnx").stat().st_mtime_ns == copied


@pytest.mark.parametrize("damaged", [False, True])
def test_a_copy_that_broke_off_is_gone_on_with_and_a_damaged_one_begins_anew(damaged: bool, board: Board, bundle: Path,
                                                                               tmp_path: Path) -> None:
    model = (tmp_path / "m.onnx").read_bytes()
    part = board.home / FOLDER / f"{digest_of(model)[7:]}.onnx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(100) if damaged else model[:100])
    said = board.build(bundle, tmp_path / "out")
    if damaged:
        assert isinstance(said.exception, MalformedError)
        assert (said.exception.code, board.bench) == ("engine.copy", [])
        said = board.build(bundle, tmp_path / "out")
    assert said.exit_code == 0, said.exception
    assert board.bench == [f"{digest_of(model)[7:]}.onnx"]


def test_ctrl_c_ends_the_build_on_the_board_and_cleans_up_there(board: Board, bundle: Path, tmp_path: Path) -> None:
    slow = board.folder / "slow"
    slow.write_text(f"#!/bin/sh\ncase \"$2\" in *evaluate) exec sleep 600;; esac\nexec {board.python} \"$@\"\n")
    slow.chmod(0o755)
    command = [sys.executable, "-c", INTERRUPTIBLE, "engines", "build", str(bundle), "--with",
               f"ssh:{getpass.getuser()}@127.0.0.1:{board.port}", "--out", str(tmp_path / "out"), "--remote-python", str(slow),
               "--ssh-key", str(board.folder / "user"), "--known-hosts", str(board.known)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 60
        while not (found := [text for path in (board.home / FOLDER).glob("job-*/pid") if (text := path.read_text().strip())]):
            assert time.monotonic() < deadline
            assert child.poll() is None, child.stderr and child.stderr.read()
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    while Path(f"/proc/{found[0]}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [name for name in board.bench if name.startswith("job-")] == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("change", "kind", "code"), [
    ("unknown", UntrustedError, "engine.ssh_host_key"), ("other", UntrustedError, "engine.ssh_host_key"),
    ("stranger", TransportError, "engine.ssh"), ("no-agent", RuntimeFailure, "engine.probe"),
])
def test_strangers_are_refused_by_name(change: str, kind: type[Exception], code: str, board: Board, bundle: Path, tmp_path: Path) -> None:
    known, other = tmp_path / "known", (board.folder / "stranger.pub").read_text().split()
    if change == "other":
        known.write_text(f"[127.0.0.1]:{board.port} {other[0]} {other[1]}\n")
    said = board.build(bundle, tmp_path / "out", key="stranger" if change == "stranger" else "user",
                       known=known if change in ("unknown", "other") else None, python="/bin/false" if change == "no-agent" else "")
    assert isinstance(said.exception, kind), said.exception
    assert getattr(said.exception, "code", "") == code
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_addresses() -> None:
    assert (address_of("me@board:2222").port, address_of("board.local").user, address_of("a@[fe80::1]").host) == (2222, "", "fe80::1")
    for wrong in ("", "a b", "-oProxyCommand=x", "me@-o", "a@b:99999", "a@b;c"):
        with pytest.raises(InputError, match=r"engine\.ssh_address"):
            address_of(wrong)


def test_a_board_without_asyncssh_here_is_told(board: Board, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    said = board.build(bundle, tmp_path / "out")
    assert isinstance(said.exception, IncompatibleError)
    assert said.exception.code == "engine.ssh_library"
