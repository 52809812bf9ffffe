"""`jetfleet broker`: says where it listens, ends clean on Ctrl-C and leaves no process behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from brokers import LOOPBACK, embedded, until
from interrupts import interruptible

from jetfleet_host.brokers import accepts

RUN = "import sys; from jetfleet_host.cli import main; sys.argv[0] = 'jetfleet'; main()"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_broker_runs_until_it_is_told_to_stop(how: signal.Signals) -> None:
    command = [sys.executable, "-c", RUN, "broker", "--port", "0", "--json"]
    child = interruptible(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    place = json.loads(child.stdout.readline())
    assert place["host"] == LOOPBACK
    assert accepts(LOOPBACK, place["port"])
    child.send_signal(how)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "Traceback" not in errors
    until(lambda: not accepts(LOOPBACK, place["port"]), "the port to be free")


def test_a_taken_port_is_one_clear_error() -> None:
    with embedded() as broker:
        command = [sys.executable, "-c", RUN, "broker", "--port", str(broker.port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 8
    assert "broker.port" in done.stderr
    assert str(broker.port) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_broker_ends_with_its_parent() -> None:
    child = subprocess.Popen([sys.executable, "-c", RUN, "broker", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    port = json.loads(child.stdout.readline())["port"]
    child.kill()
    child.wait()
    until(lambda: not accepts(LOOPBACK, port), "the orphan to end")
