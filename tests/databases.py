"""A real PostgreSQL for tests: started once a session, as an unprivileged user, in a temporary folder, on a Unix socket only."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

_USER = "nobody"
_started: list[Path] = []


def postgres_url() -> str:
    """The URL of a new, empty database. Skips where PostgreSQL is not installed or cannot be started; fails there in CI."""
    if not _started:
        _started.append(_start())
    socket = _started[0]
    name = f"t{uuid.uuid4().hex}"
    _run(["psql", "-h", str(socket), "-U", "jetfleet", "-d", "postgres", "-c", f"CREATE DATABASE {name}"])
    return f"postgresql+psycopg://jetfleet@/{name}?host={socket}"


def _start() -> Path:
    if importlib.util.find_spec("psycopg") is None:
        _absent("the PostgreSQL driver is not installed")
    programs = [_program(name) for name in ("initdb", "pg_ctl")]
    if not all(programs):
        _absent("PostgreSQL's server is not installed")
    initdb, pg_ctl = (str(program) for program in programs)
    folder = Path(tempfile.mkdtemp(prefix="jetfleet-postgres-"))
    folder.chmod(0o755)  # pytest's own folders are private, and the server is another user
    data, socket = folder / "data", folder / "s"
    for path in (data, socket):
        path.mkdir()
        if os.getuid() == 0:
            shutil.chown(path, _USER)
    _run([initdb, "-D", str(data), "-U", "jetfleet", "-A", "trust", "--no-sync"], server=True)
    options = f"-c listen_addresses='' -c unix_socket_directories={socket} -c fsync=off"
    _run([pg_ctl, "-D", str(data), "-w", "-t", "60", "-l", str(data / "log"), "-o", options, "start"], server=True)
    atexit.register(_stop, pg_ctl, folder)
    return socket


def _stop(pg_ctl: str, folder: Path) -> None:
    command = _as_server([pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "stop"])
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False, cwd="/")
    shutil.rmtree(folder, ignore_errors=True)


def _as_server(arguments: list[str]) -> list[str]:
    """The server refuses to run as root, so there it runs as another user."""
    return ["runuser", "-u", _USER, "--", *arguments] if os.getuid() == 0 else arguments


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def _run(arguments: list[str], *, server: bool = False) -> None:
    arguments = _as_server(arguments) if server else arguments
    done = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120, check=False, cwd="/")
    if done.returncode:
        _absent(f"PostgreSQL does not work here: {arguments[0]}: {done.stderr[-300:]}")


def _absent(why: str) -> None:
    """Skip on somebody's laptop; fail in continuous integration, where what is needed is installed."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
