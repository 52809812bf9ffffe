"""A camera's address goes from an operator's keyboard to one board, through serve and a broker, and nobody on the way can read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from brokers import LOOPBACK, mosquitto, until
from fleet_rig import AgentProcess
from served_fleet import fleet_on

from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
from jetfleet_agent.supervisor.sealed_secrets import SecretStore

ADDRESS = b"rtsp://admin:correct-horse-battery@10.0.0.9/stream"


def test_from_keyboard_to_board(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with mosquitto() as broker, fleet_on(tmp_path, f"{LOOPBACK}:{broker.port}") as fleet:
        spy = MqttLink(BrokerSettings(LOOPBACK, broker.port), "spy", lambda topic, payload: heard.append(topic.encode() + payload),
                       lambda: None, lambda _: None)
        spy.subscribe("#", 1)
        spy.start()
        fleet.start()
        agent = AgentProcess(tmp_path / "agent", "dock-1", broker.port, fleet.project.root_file).start()

        def secret(*arguments: str, typed: bytes = b"") -> dict[str, object]:
            command = [sys.executable, "-m", "jetfleet_host", "device", "secret", *arguments, "--dir", str(fleet.dir), "--json"]
            done = subprocess.run(command, input=typed, capture_output=True, timeout=90, check=False)
            assert ADDRESS not in done.stdout + done.stderr
            return {"status": done.returncode, **json.loads(done.stdout)}

        try:
            until(lambda: fleet.knows("dock-1"), "the board", 60)
            for wrong in (b"", b"no address", b"x" * 5000):
                assert secret("set", "dock-1", "front", typed=wrong)["status"] == 2
            assert secret("set", "dock-2", "front", typed=ADDRESS)["error"]["code"] == "device.unknown"  # type: ignore[index]
            made = secret("set", "dock-1", "front", typed=ADDRESS + b"\n")
            assert made["status"] == 0
            assert secret("list", "dock-1")["front"] == made["version"]
            assert SecretStore(tmp_path / "agent/state/identity", "dock-1").reveal("front") == ADDRESS.decode()
            assert secret("remove", "dock-1", "front")["status"] == 0
            assert "front" not in secret("list", "dock-1")
        finally:
            agent.stop()
            fleet.stop()
            spy.stop()
    assert any(b"/cmd" in message for message in heard)
    for message in heard:
        assert b"correct-horse" not in message
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"correct-horse" not in path.read_bytes(), path
