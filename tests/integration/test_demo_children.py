"""The demo's children: none may outlive it, and one that dies says why."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jetfleet_contract.errors import RuntimeFailure
from jetfleet_host.demo.children import Children

SLEEP = "import time; time.sleep(600)"
# A child that ignores polite requests and has a child of its own in another session.
STUBBORN = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(inner.pid))
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_leaving_stops_children_and_grandchildren(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetfleet_host.demo.children.STOP_GRACE_S", 0.5)
    note = tmp_path / "inner"
    with Children(tmp_path / "logs") as children:
        children.start("plain", [sys.executable, "-c", SLEEP])
        children.start("stubborn", [sys.executable, "-c", STUBBORN, str(note)])
        wait_for(lambda: note.is_file() and note.read_text() != "")
        children.check()
        pids = [process.pid for process in children._running.values()] + [int(note.read_text())]
    assert all(gone(pid) for pid in pids)


def test_an_error_inside_stops_them_too(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with Children(tmp_path) as children:
            children.start("plain", [sys.executable, "-c", SLEEP])
            pids.extend(process.pid for process in children._running.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pids
    assert all(gone(pid) for pid in pids)


def test_a_dead_child_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start("broken", [sys.executable, "-c", "import sys; print('no camera here'); sys.exit(9)"])
        wait_for(lambda: children._running["broken"].poll() is not None)
        with pytest.raises(RuntimeFailure) as caught:
            children.check()
    assert caught.value.code == "demo.child"
    assert "broken ended with exit code 9" in caught.value.what
    assert "no camera here" in caught.value.what
    assert caught.value.where.endswith("broken.log")


def test_a_demo_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    demo = f"""
import pathlib, sys, time
from jetfleet_host.demo.children import Children
children = Children(pathlib.Path({str(tmp_path / "logs")!r}))
children.__enter__()
children.start("one", [sys.executable, "-c", {SLEEP!r}])
pathlib.Path({str(note)!r}).write_text(str(children._running["one"].pid))
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", demo])
    wait_for(lambda: note.is_file() and note.read_text() != "")
    pid = int(note.read_text())
    wait_for(lambda: SLEEP in psutil.Process(pid).cmdline())  # setpriv has become the child
    process.kill()
    process.wait()
    wait_for(lambda: gone(pid))
