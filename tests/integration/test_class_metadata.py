"""A real agent behind a real broker fetches what its class's builders vouch for, from a real `serve`."""

from __future__ import annotations

from pathlib import Path

from brokers import LOOPBACK, mosquitto, until
from builder_board import Builder
from fleet_rig import AgentProcess
from served_fleet import fleet_on

from jetfleet_agent.boards import detect_board
from jetfleet_agent.capability import probe_machine
from jetfleet_host.delegations import accept, delegate


def test_a_board_follows_its_class(tmp_path: Path) -> None:
    machine = probe_machine()
    device_class = detect_board(machine.arch, machine.compatible, machine.isa, machine.drivers).device_class
    builder = Builder()
    with mosquitto() as broker, fleet_on(tmp_path, f"{LOOPBACK}:{broker.port}") as fleet:
        delegate(fleet.project, device_class, [builder.public])
        accept(fleet.project, device_class, builder.vouch(device_class, *(f"e{number}" for number in range(600))))
        fleet.start()
        agent = AgentProcess(tmp_path / "agent", "bench-1", broker.port, fleet.project.root_file).start()
        kept = tmp_path / "agent" / "state" / "trust" / f"class-{device_class}.json"
        try:
            until(kept.exists, f"the metadata of {device_class}; the agent said: {agent.said()[-2000:]}", 60)
            newer = builder.vouch(device_class, "only", version=2)
            accept(fleet.project, device_class, newer)
            until(lambda: kept.read_bytes() == newer, "the next version", 60)
        finally:
            agent.stop()
