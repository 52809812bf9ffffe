"""The doctor's look at what runs on the board: the system's journal, TensorRT against the board's release, and pipelines that ended."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from jetfleet_contract.boards import BoardFile, is_within
from jetfleet_contract.messages import Capability

from .checks import Check
from .supervisor.crash_log import Crash

JOURNAL_WAIT_S = 5.0
LARGE_JOURNAL_MB = 1024
DAY_S = 86400.0
MANY = 3
MAX_CONF_BYTES = 1 << 16
_UNITS = {"B": 1 / (1 << 20), "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024.0}
_SIZE = re.compile(r"take up ([\d.]+)([BKMGT])")
_BOUND = re.compile(r"^\s*SystemMaxUse\s*=\s*(\S+)\s*$", re.MULTILINE)

_WHAT_TO_DO = {
    "watchdog.source": "a camera's driver hangs: check its cable and power, and dmesg",
    "watchdog.sink": "a sink or KPI hook hangs: see what it waits for, or take it out of the app's settings",
    "pipeline.killed": "killed by a signal: look for the kernel's out-of-memory killer in dmesg, and for a crash of the runtime in the log",
    "pipeline.silent": "it does nothing: run jetfleet-agent bench on the model, and look at the log",
    "pipeline.start": "it does not start in time: the model may be too large for this board; see jetfleet-agent explain",
}
"""By code or its beginning; a code that is not here is looked up in the log."""


def disk_usage() -> str:
    """What ``journalctl --disk-usage`` says; empty where there is no journalctl, or it does not answer."""
    program = shutil.which("journalctl")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "--disk-usage"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=JOURNAL_WAIT_S,
                              check=False, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def system_journal(usage: str, root: Path = Path("/")) -> Check:
    """journald's files and their bound. Without one it takes a tenth of the file system, 4 GB at most (journald.conf's manual page).

    Args:
        usage: what ``journalctl --disk-usage`` says.
        root: of the board, or of a recorded tree.
    """
    found = _SIZE.search(usage)
    if found is None:
        return Check("system journal", "ok", "there is no journald here, or it does not tell")
    used_mb = float(found[1]) * _UNITS[found[2]]
    bound = _journal_bound(root)
    finding = f"{used_mb:.0f} MB, {f'at most {bound}' if bound else 'without a bound of its own'}"
    if used_mb > LARGE_JOURNAL_MB:
        return Check("system journal", "warning", finding,
                     "sudo journalctl --vacuum-size=200M frees it now; SystemMaxUse=200M below [Journal] in /etc/systemd/journald.conf "
                     "keeps it small")
    return Check("system journal", "ok", finding)


def _journal_bound(root: Path) -> str:
    """`SystemMaxUse` as systemd reads it: the main file first, then the drop-ins by name, the last one counts."""
    bound = ""
    for path in (root / "etc/systemd/journald.conf", *sorted((root / "etc/systemd/journald.conf.d").glob("*.conf"))):
        try:
            with path.open("rb") as file:
                text = file.read(MAX_CONF_BYTES).decode(errors="replace")
        except OSError:
            continue
        bound = next((match[1] for match in reversed(list(_BOUND.finditer(text)))), bound)
    return bound


def tensorrt(capability: Capability, board: BoardFile, l4t: str) -> Check | None:
    """TensorRT against what the board's release comes with: an engine of the class loads in that version only. None where the board uses
    no TensorRT, or nobody can say what to expect.

    Args:
        l4t: the release that runs, as 36.4.3; empty: not told.
    """
    info = next((one for one in capability.backends if one.name == "tensorrt"), None)
    release = board.release(l4t)
    if info is None or release is None or not release.tensorrt:
        return None
    expected = f"{release.name} (L4T {release.l4t}) comes with {release.tensorrt}"
    if info.missing:
        return Check("tensorrt", "warning", f"{info.missing}; {expected}",
                     "sudo apt install nvidia-tensorrt; until then another runtime is used")
    if not is_within(info.version, release.tensorrt):
        return Check("tensorrt", "warning", f"{info.version}; {expected}",
                     "install the release's own (sudo apt install --reinstall nvidia-tensorrt, no TensorRT from pip): engines that the "
                     "class shares do not load in another version, so this board would build for itself")
    return Check("tensorrt", "ok", f"{info.version}, as {expected}")


def crashes(kept: Mapping[str, Sequence[Crash]], now: float) -> Check:
    """How often each app's pipeline ended by itself in the last day, and why.

    Args:
        kept: by app, oldest first.
        now: wall clock, seconds since 1970.
    """
    recent = {app: [crash for crash in ends if now - DAY_S < crash.at <= now] for app, ends in kept.items()}
    counted = sorted(((app, ends) for app, ends in recent.items() if ends), key=lambda item: (-len(item[1]), item[0]))
    if not counted:
        return Check("crashes", "ok", "no pipeline ended by itself in the last day")
    finding = "; ".join(_said(app, ends) for app, ends in counted[:4])
    if len(counted[0][1]) < MANY:
        return Check("crashes", "ok", f"in the last day: {finding}")
    return Check("crashes", "warning", f"in the last day: {finding}", _advice(counted[0][1][-1].code))


def _said(app: str, ends: Sequence[Crash]) -> str:
    last = ends[-1]
    when = dt.datetime.fromtimestamp(last.at, dt.timezone.utc).strftime("%H:%M UTC")
    return f"{app} {len(ends)} time{'s' * (len(ends) > 1)}, the last at {when}: {last.code} {last.detail}".rstrip()


def _advice(code: str) -> str:
    known = next((words for start, words in _WHAT_TO_DO.items() if code.startswith(start)), "")
    return f"{known}; a rollout's own model is rolled back by itself" if known else (
        f"see what came before it in the agent's log ({code}); if it is the model's doing, roll another version out")
