"""Real cameras for tests: an RTSP server in a process of the system's Python, steered while it runs (see rtsp_camera.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
_SCRIPT = Path(__file__).with_name("rtsp_camera.py")
_PROBE = "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('GstApp', '1.0')"


class RtspCamera:
    """Starts at once, on the same port whenever it is started again."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([SYSTEM_PYTHON, str(_SCRIPT), json.dumps(self._options)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=None, text=True)
        self.port = self._options["port"] = self._answer()["port"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(60.0, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        assert line, "the RTSP server ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, name: str, **values: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": name, **values}) + "\n")
        self.process.stdin.flush()
        assert self._answer() == {"done": name}

    def uri(self, user: str = "", scheme: str = "rtsp", path: str = "/live") -> str:
        return f"{scheme}://{user + '@' if user else ''}127.0.0.1:{self.port}{path}"

    def kill(self) -> None:
        """As if its power went."""
        self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def need(what: bool, name: str) -> None:
    """Skip on somebody's laptop; fail in continuous integration, where what is needed is installed."""
    if not what:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")


def need_gstreamer() -> None:
    found = Path(SYSTEM_PYTHON).exists() and subprocess.run([SYSTEM_PYTHON, "-c", _PROBE], capture_output=True, check=False).returncode == 0
    need(found and shutil.which("openssl") is not None, "GStreamer's RTSP server with its Python binding")


@pytest.fixture
def camera() -> Iterator[Callable[..., RtspCamera]]:
    """Makes running cameras; all are killed at the end."""
    need_gstreamer()
    made: list[RtspCamera] = []

    def make(**options: Any) -> RtspCamera:
        made.append(RtspCamera(**options))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.kill()


def certificate(folder: Path) -> tuple[str, str]:
    """A throw-away certificate for 127.0.0.1 and its key, as paths."""
    paths = str(folder / "camera.pem"), str(folder / "camera.key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=camera",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]],
                   check=True, capture_output=True)
    return paths
