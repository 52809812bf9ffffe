"""`jetfleet delivery`: pause, resume and status, beside a serving process and without one; and a paused rollout."""

from __future__ import annotations

from pathlib import Path

from brokers import running, until
from served_fleet import ServedFleet, fleet_on

from jetfleet_host.store import deliveries


def paused(fleet: ServedFleet) -> dict[str, str]:
    return dict(fleet.cli("delivery", "status")["paused"])


def test_delivery_is_paused_and_resumed_by_hand(tmp_path: Path) -> None:
    with running("mosquitto") as broker, fleet_on(tmp_path, f"127.0.0.1:{broker.port}") as fleet:
        manifest = fleet.publish("1")
        assert fleet.cli("delivery", "status")["blobs"] == []
        fleet.start()
        assert fleet.cli("delivery", "pause", "toy:1") == {"what": "toy:1", "done": "paused", "obeyed": True}
        assert paused(fleet) == {manifest: "paused: toy:1"}
        assert fleet.cli("delivery", "pause", "all")["obeyed"]
        assert fleet.cli("delivery", "resume", "all")["obeyed"]
        assert fleet.cli("delivery", "resume", "toy:1")["obeyed"]
        assert paused(fleet) == {}
        assert fleet.cli("delivery", "resume", "toy:1", fails=True)["error"]["code"] == "delivery.not-paused"
        assert fleet.cli("delivery", "pause", "nonsense", fails=True)["error"]["code"] == "blob.bad"


def test_a_pause_without_a_server_is_kept_for_it(tmp_path: Path) -> None:
    with running("mosquitto") as broker, fleet_on(tmp_path, f"127.0.0.1:{broker.port}") as fleet:
        manifest = fleet.publish("1")
        assert not fleet.cli("delivery", "pause", "toy:1")["obeyed"]
        fleet.start()

        def told() -> bool:
            with fleet.reading() as session:
                status = deliveries.status(session)
            return status is not None and set(status.paused) == {manifest}

        until(told, "serve to follow the pause")
