"""`jetfleet-agent doctor`: is this board fit to run? Each check says what it saw and, when that is bad, what to do."""

from __future__ import annotations

import datetime as dt
import functools
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from jetfleet_contract import __version__
from jetfleet_contract.broker_limits import BrokerLimits, findings
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Capability
from jetfleet_contract.sink_rules import LOOPBACK

from . import state_lock
from .boards import load_board
from .capability import l4t_release
from .checks import Check
from .clocks import kernel_is_synchronized
from .config import AgentConfig, ResultsConfig, load
from .doctor_board import board_checks
from .doctor_cameras import camera_checks
from .doctor_kernels import kernels
from .doctor_models import models, needed_mb
from .doctor_software import crashes, disk_usage, system_journal, tensorrt
from .gpu_probe import gpu_of
from .status import CHOOSER, JOURNAL
from .supervisor.crash_log import CRASHES, read_crashes
from .supervisor.journal import Journal
from .supervisor.measurements import MeasurementStore

MIN_FREE_MB = 512
SOON_DAYS = 30
BROKER_WAIT_S = 8.0
MAX_ROOT_BYTES = 1 << 20


class Tried(msgspec.Struct, frozen=True):
    """What came of trying the broker: the reason why it did not accept us, else what it takes."""

    reason: str = ""
    limits: BrokerLimits = BrokerLimits()


class BrokerProbe:
    """What `examine` needs to try the broker: connect, wait for the first word, disconnect."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._down = ""

    def up(self) -> None:
        """The link is up."""
        self._down = ""
        self._said.set()

    def down(self, reason: str) -> None:
        """The link is down, or the first attempt failed."""
        self._down = reason
        self._said.set()

    def outcome(self, timeout_s: float) -> str:
        """Empty when the broker accepted us; else the reason."""
        if not self._said.wait(timeout_s):
            return f"no answer within {timeout_s:.0f} s"
        return self._down


def examine(path: Path, capability_of: Callable[[AgentConfig], Capability],
            try_broker: Callable[[AgentConfig], Tried], root: Path = Path("/"),
            journal_usage: Callable[[], str] = disk_usage) -> tuple[Check, ...]:
    """All checks, in the order in which to mend things.

    Args:
        capability_of: probes the board.
        try_broker: connects once; gives the reason when that fails, and the broker's limits.
        root: where the kernel's ``sys`` and ``proc`` are.
        journal_usage: what ``journalctl --disk-usage`` says.
    """
    try:
        config = load(path)
    except JetfleetError as error:
        return (Check("config", "failed", error.what, error.remedy or f"correct {path}"),)
    capable = functools.cache(lambda: capability_of(config))
    with ThreadPoolExecutor(2) as beside:  # the two that wait for others: the longer one's wait is all there is
        cameras = beside.submit(camera_checks, config.local_sources, running=state_lock.is_held(config.state_dir))
        broker = beside.submit(_broker, config, try_broker)
        return (
            Check("config", "ok", f"{path}: device {config.device}, board {config.board}"),
            _state_folder(config.state_dir),
            _disk(config.state_dir),
            _results(config.results),
            _clock(time.time()),
            _root(config.root, time.time()),
            _backends(capable),
            *_tensorrt(capable, root),
            *_kernels(capable, config.state_dir, root),
            *_board_and_models(config, root),
            system_journal(journal_usage(), root),
            crashes(read_crashes(config.state_dir / CRASHES), time.time()),
            *cameras.result(),
            broker.result(),
        )


def exit_code(checks: tuple[Check, ...]) -> int:
    """0 unless a check failed; warnings do not fail."""
    return 1 if any(check.verdict == "failed" for check in checks) else 0


def _board_and_models(config: AgentConfig, root: Path) -> tuple[Check, ...]:
    journal = Journal(config.state_dir / JOURNAL)
    states = [journal.app(name) for name in journal.apps()]
    needed = needed_mb(states, MeasurementStore(config.state_dir / CHOOSER).choices())
    return (*board_checks(root, needed), models(states, config.state_dir / "blobs"))


def _tensorrt(capability: Callable[[], Capability], root: Path) -> tuple[Check, ...]:
    try:
        found = capability()
        check = tensorrt(found, load_board(found.board), l4t_release(root))
    except JetfleetError:  # the check of the backends says it
        return ()
    return () if check is None else (check,)


def _kernels(capability: Callable[[], Capability], state: Path, root: Path) -> tuple[Check, ...]:
    try:
        check = kernels(gpu_of(load_board(capability().board), l4t_release(root)), state)
    except JetfleetError:  # the check of the backends says it
        return ()
    return () if check is None else (check,)


def _state_folder(folder: Path) -> Check:
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if _is_writable(folder):
        return Check("state folder", "ok", f"{folder} is writable" if parent == folder else f"{folder} can be made")
    return Check("state folder", "failed", f"{parent} is not writable for user {os.getuid()}",
                 f"chown it to the agent's user, or set state_dir to another folder (now {folder})")


def _disk(folder: Path) -> Check:
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    free_mb = shutil.disk_usage(parent).free >> 20
    if free_mb < MIN_FREE_MB:
        return Check("disk", "failed", f"{free_mb} MB free at {parent}, {MIN_FREE_MB} MB are needed for an update", "free some space")
    return Check("disk", "ok", f"{free_mb} MB free at {parent}")


def _results(config: ResultsConfig) -> Check:
    """Whether sinks can write and listen where the config sends them."""
    for key, name in (("folder", config.folder), ("sockets", config.sockets)):
        if name and not _is_writable(Path(name)):
            return Check("results", "failed", f"{name} is not writable for user {os.getuid()}",
                         f"make it and chown it to the agent's user, or set [results] {key} to another folder")
    address = config.preview_address
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return Check("results", "failed", f"previews cannot listen on {address}: {error.strerror or error}",
                     "set [results] preview_address to an address of this board, or 0.0.0.0")
    if address not in LOOPBACK:
        return Check("results", "warning", f"previews with a token listen on {address}, where HTTP is not encrypted",
                     "put a proxy with TLS before them, or keep 127.0.0.1 and use ssh -L")
    return Check("results", "ok", "sinks write and listen where the config says; previews on the loopback only")


def _is_writable(folder: Path) -> bool:
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    return parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)


def _clock(now: float) -> Check:
    built = Path(__file__).stat().st_mtime
    if now < built - 86400:
        return Check("clock", "failed", f"the clock says {_day(now)}, this agent was installed on {_day(built)}",
                     "set the clock or enable NTP (timedatectl set-ntp true); signed metadata cannot be judged without it")
    if not kernel_is_synchronized():
        return Check("clock", "warning", f"{_day(now)}, but no time service keeps it; expiry is judged by the last signed time instead",
                     "enable NTP: timedatectl set-ntp true")
    return Check("clock", "ok", f"{_day(now)}, kept by a time service")


def _root(path: Path, now: float) -> Check:
    try:
        signed = msgspec.json.decode(path.read_bytes()[:MAX_ROOT_BYTES], type=dict[str, object])["signed"]
        expires = dt.datetime.fromisoformat(str(signed["expires"]).replace("Z", "+00:00"))  # type: ignore[index]
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        return Check("root metadata", "failed", f"{path} is no TUF root metadata", "copy device/root.json from the host's project folder")
    days = (expires.timestamp() - now) / 86400
    if days < 0:
        return Check("root metadata", "failed", f"{path} expired {-days:.0f} days ago",
                     "a newer root reaches the board by itself while its chain is unbroken; else copy the host's device/root.json again")
    if days < SOON_DAYS:
        return Check("root metadata", "warning", f"{path} expires in {days:.0f} days", "rotate the root on the host: jetfleet keys --help")
    return Check("root metadata", "ok", f"{path} is valid for {days:.0f} more days")


def _backends(capability: Callable[[], Capability]) -> Check:
    try:
        found = capability()
    except JetfleetError as error:
        return Check("backends", "failed", error.what, error.remedy)
    usable = [f"{b.name} {b.version} ({' '.join(b.precisions)})" for b in found.backends if not b.missing]
    missing = [f"{b.name}: {b.missing}" for b in found.backends if b.missing]
    if not usable:
        return Check("backends", "failed", "no runtime is usable: " + "; ".join(missing), "pip install onnxruntime")
    if missing:
        return Check("backends", "warning", f"usable: {', '.join(usable)}; not: {'; '.join(missing)}",
                     "install what is missing if this board should use it")
    return Check("backends", "ok", ", ".join(usable))


def _broker(config: AgentConfig, try_broker: Callable[[AgentConfig], Tried]) -> Check:
    where = f"{config.broker.host}:{config.broker.port}"
    try:
        tried = try_broker(config)
    except JetfleetError as error:
        return Check("broker", "failed", error.what, error.remedy)
    if tried.reason:
        return Check("broker", "failed", f"{where}: {tried.reason}",
                     "check host, port, firewall and credentials; the running models go on without a broker")
    lacking = findings(tried.limits)
    if lacking:
        return Check("broker", "failed" if lacking[0].hinders else "warning", f"{where}: {lacking[0].what} [{lacking[0].code}]",
                     lacking[0].remedy)
    return Check("broker", "ok", f"{where} accepts this agent ({'TLS' if config.broker.ca else 'no TLS'}), agent {__version__}")


def _day(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
