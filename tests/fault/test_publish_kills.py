"""SIGKILL before every disk operation of a writer: the project still loads, a board accepts what it offers, and the
interrupted command simply works when it is run again."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builder_board import Builder
from bundle_maker import make_bundle

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import Instant
from jetfleet_host import ceremony, custody, delegations
from jetfleet_host.bundles import digest_file, open_bundle
from jetfleet_host.custody import key_table
from jetfleet_host.delegations import delegate
from jetfleet_host.handover import accept
from jetfleet_host.project import Project
from jetfleet_host.publish import publish, published
from jetfleet_host.repository import meta_package, refresh_timestamp

_STEPS = ("fsync", "replace", "rename", "unlink", "open", "mkdir")
_LATER = 20 * 86_400.0


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that dies by SIGKILL before its `step`-th disk operation. False when it had fewer."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _arm(step)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the command failed in the child"
    return False


def _arm(step: int) -> None:
    count = 0

    def counted(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))


def _check(project: Project, pristine_board: Path, folder: Path, wall: float) -> None:
    """The metadata is whole, a board that holds the version before accepts it, and every blob that it names is there."""
    shutil.copytree(pristine_board, folder)
    board = TrustStore(folder, (project.repo_dir / "1.root.json").read_bytes())
    assert board.versions
    board.update(meta_package(project), Instant(1.0, "boot", wall, True))
    for target in published(project):
        for blob, info in board.bundle(target.manifest).every().items():
            assert digest_file(project.blobs.path(blob)) == f"sha256:{blob}"
            assert not info.table or project.blobs.size(info.table)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGKILL loses no page cache: counting `fsync` is enough here, doing it thousands of times is only slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with version 1 published, a board that trusts it, and a bundle of version 2."""
    base = tmp_path_factory.mktemp("start")
    project = Project.init(base / "fleet")
    make_bundle(base / "v1", weight_bytes=100)
    publish(project, base / "v1")
    make_bundle(base / "v2", version="2", weight_bytes=70_000)
    board = TrustStore(base / "board", project.root_file.read_bytes())
    board.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    return base


_COMMANDS: dict[str, Callable[[Path], object]] = {
    "publish": lambda base: publish(Project.load(base / "fleet"), base / "v2"),
    "rotate-root": lambda base: Project.load(base / "fleet").rotate("root"),
    "rotate-timestamp": lambda base: Project.load(base / "fleet").rotate("timestamp"),
    "rotate-targets": lambda base: Project.load(base / "fleet").rotate("targets"),
    "rotate-deployment": lambda base: Project.load(base / "fleet").rotate("deployment"),
    "refresh": lambda base: refresh_timestamp(Project.load(base / "fleet"), time.time() + _LATER),
}


@pytest.mark.parametrize("command", ["publish", "rotate-root", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("rotate-timestamp", "rotate-targets", "rotate-deployment", "refresh"))])
def test_kill_before_every_disk_operation(start: Path, tmp_path: Path, command: str) -> None:
    wall = time.time() + (_LATER if command == "refresh" else 0.0)
    step, kills, work = 1, 0, _COMMANDS[command]
    while True:
        base = tmp_path / str(step)
        base.mkdir()
        shutil.copytree(start / "fleet", base / "fleet")
        (base / "v2").symlink_to(start / "v2")
        died = killed_at(step, functools.partial(work, base))
        project = Project.load(base / "fleet")
        if command != "refresh":  # before a refresh the old metadata is past its end, as it should be
            _check(project, start / "board", base / "board", wall)
        if not died:
            break
        kills += 1
        work(base)
        _check(project, start / "board", base / "board-after", wall)
        assert not list((base / "fleet").rglob("*.partial"))
        if command.startswith("rotate"):
            assert {(row.use, row.held) for row in key_table(project)} == {("current", True)}
        shutil.rmtree(base)
        step += 1
    assert kills > 5


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control machine, a builder's folder with a publication to hand over, a signed next root, and what a builder board signed."""
    base = tmp_path_factory.mktemp("trusting")
    builder, board = Project.init(base / "builder"), Builder()
    delegate(builder, "orin", [board.public])
    draft = base / "next-root.json"
    draft.write_bytes(ceremony.draft(builder, ceremony.Wish(days=100), time.time()))
    [stick] = custody.take_out(builder, "root", base / "safe", keep=False)
    ceremony.sign(draft, stick, builder.repository.load().root)
    trust = TrustStore(base / "board", builder.root_file.read_bytes())
    trust.update(meta_package(builder), Instant(1.0, "boot", time.time(), True))
    custody.split(builder, base / "fleet")
    make_bundle(base / "v1", weight_bytes=100)
    publish(builder, base / "v1")
    (base / "engines.json").write_bytes(board.vouch("orin", "a"))
    return base


@pytest.mark.slow
@pytest.mark.parametrize("command", ["root-commit", "accept", "add-delegated"])
def test_kill_before_every_disk_operation_of_a_ceremony_and_a_handover(trusting: Path, tmp_path: Path, command: str) -> None:
    def work(base: Path) -> None:
        project = Project.load(base / "fleet")
        if command == "root-commit":
            ceremony.commit(project, [(trusting / "next-root.json").read_bytes()])
        elif command == "accept":
            accept(project, trusting / "builder")
        else:
            delegations.accept(project, "orin", (trusting / "engines.json").read_bytes())

    step, kills, died = 1, 0, True
    while died:
        base = tmp_path / str(step)
        base.mkdir()
        shutil.copytree(trusting / "fleet", base / "fleet")
        died = killed_at(step, functools.partial(work, base))
        project = Project.load(base / "fleet")
        _check(project, trusting / "board", base / "board", time.time())
        if died:
            kills += 1
            work(base)
            _check(project, trusting / "board", base / "board-after", time.time())
        assert project.root_file.read_bytes() == max(project.repo_dir.glob("*.root.json")).read_bytes()
        shutil.rmtree(base)
        step += 1
    assert kills > 5


@pytest.mark.slow
def test_kill_during_init_never_leaves_half_a_project(tmp_path: Path) -> None:
    step = 1
    while killed_at(step, functools.partial(Project.init, tmp_path / str(step))):
        folder = tmp_path / str(step)
        if (folder / "jetfleet.toml").exists():
            meta_package(Project.load(folder))
        else:
            with pytest.raises(InputError) as caught:
                Project.load(folder)
            assert caught.value.code == "project.not-found"
        step += 1
    assert step > 20


@pytest.mark.slow
def test_kill_while_a_bundle_is_written(tmp_path: Path) -> None:
    step = 1
    make_bundle(tmp_path / "whole")
    while killed_at(step, functools.partial(make_bundle, tmp_path / f"b{step}")):
        out = tmp_path / f"b{step}"
        if out.exists():
            open_bundle(out)
        make_bundle(out)
        assert open_bundle(out).manifest_digest == open_bundle(tmp_path / "whole").manifest_digest
        assert not list(tmp_path.glob(".*.partial"))
        step += 1
    assert step > 5
