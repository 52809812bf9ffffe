"""The doctor's look at the board's own sources: does the device exist, may we open it, does a frame come?

Each is tried in a process of its own, all at once, within `FRAME_S`. Addresses are shown without their credentials, or not at all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from jetfleet_contract.messages import Source

from .checks import Check

FRAME_S = 10.0
PROGRAM = (sys.executable, "-m", "jetfleet_agent.pipeline.probe")
_DEVICE = re.compile(r"(?:v4l2:)?(/dev/video\d+)")


class _Seen(msgspec.Struct):
    """As `pipeline.probe.Seen` says it."""

    width: int = 0
    height: int = 0
    seconds: float = 0.0
    code: str = ""
    what: str = ""
    remedy: str = ""


def camera_checks(sources: Mapping[str, str], *, running: bool, timeout_s: float = FRAME_S) -> tuple[Check, ...]:
    """One check a source, by name.

    Args:
        sources: addresses by name; ``secret:NAME`` cannot be opened here and is told so.
        running: an agent runs now, so a local camera may be busy because of it.
    """
    found: dict[str, Check] = {}
    trying: dict[str, subprocess.Popen[bytes]] = {}
    for name, address in sources.items():
        early = _without_opening(name, address, running=running)
        if early is not None:
            found[name] = early
            continue
        trying[name] = _start(Source(name, address))
    deadline = time.monotonic() + timeout_s
    for name, process in trying.items():
        found[name] = _judged(name, _answer(process, deadline), timeout_s)
    return tuple(found[name] for name in sources)


def _without_opening(name: str, address: str, *, running: bool) -> Check | None:
    title = f"camera {name}"
    if address.startswith("secret:"):
        return Check(title, "ok", "its address is sealed; only the agent opens it")
    device = _DEVICE.fullmatch(address)
    if device is None:
        return None
    path = Path(device[1])
    if not path.exists():
        return Check(title, "failed", f"{path} does not exist", "plug it in; `v4l2-ctl --list-devices` shows what the kernel sees")
    if not os.access(path, os.R_OK | os.W_OK):
        return Check(title, "failed", f"user {os.getuid()} may not open {path}", "sudo usermod -aG video USER, then start the agent again")
    return Check(title, "ok", f"{path} exists; the running agent has it") if running else None


def _start(source: Source) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin is not None  # noqa: S101  asked for
    process.stdin.write(msgspec.json.encode(source))
    process.stdin.close()
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[bytes], deadline: float) -> _Seen | None:
    """None when no word came in time."""
    try:
        output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    lines = output[:64 * 1024].splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=_Seen)
    except msgspec.DecodeError:
        return _Seen(code="source.crash", what=f"the program that reads it ended with {process.returncode}")


def _judged(name: str, seen: _Seen | None, timeout_s: float) -> Check:
    title = f"camera {name}"
    if seen is None:
        return Check(title, "failed", f"no frame within {timeout_s:.0f} s [source.timeout]", "check its power, its network and its address")
    if seen.code:
        return Check(title, "failed", f"{seen.what} [{seen.code}]", seen.remedy or "check its power, its network and its address")
    return Check(title, "ok", f"{seen.width}x{seen.height}, first frame after {seen.seconds:.1f} s")
