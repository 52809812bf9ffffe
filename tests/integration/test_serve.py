"""`jetfleet serve` over real brokers, with boards that speak the contract: rollouts, kills, restarts, forgery, bad bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import BROKERS, free_port, running, until
from contract_device import ContractDevice
from served_fleet import ServedFleet, fleet_on

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics
from jetfleet_contract.messages import Report
from jetfleet_host.brokers import accepts


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[object]:
    with running(request.param) as started:
        yield started


@pytest.fixture
def rig(tmp_path: Path, broker: object) -> Iterator[ServedFleet]:
    with fleet_on(tmp_path, f"127.0.0.1:{broker.port}") as made:  # type: ignore[attr-defined]
        yield made


def board(rig: ServedFleet, tmp_path: Path, broker: object, name: str, **more: object) -> ContractDevice:
    return ContractDevice(tmp_path / name, rig.root, broker.port, name, **more)  # type: ignore[attr-defined, arg-type]


def test_from_birth_to_done(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    manifest = rig.publish("1")
    rig.start()
    with board(rig, tmp_path, broker, "dock-1") as first, board(rig, tmp_path, broker, "dock-2") as second:
        until(lambda: rig.knows("dock-1", "dock-2"), "both births")
        rollout = rig.begin("toy:1", "--devices", "dock-1,dock-2")
        until(lambda: rig.phase(rollout) == "done", "the rollout to end")
        for device in (first, second):
            assert device.numbers == [1]
            app = device.deployments[0].apps[0]
            assert (app.bundle, app.sources[0].uri, app.config.options) == (manifest, "local:front", {"threshold": 0.3})
            until(lambda d=device: d.acked, "the acknowledgement")  # type: ignore[misc]
        shown = rig.rollout("status", rollout)
        assert [(v["wave"], v["gate"], v["passed"]) for v in shown["verdicts"]] == [
            (0, "install", True), (0, "latency", True), (1, "install", True), (1, "latency", True)]
        assert {d["apps"][0]["version"] for d in rig.cli("devices")} == {"1"}
        first.send_window(1, [10.0, 20.0])
        first.send_window(2, [30.0])
        until(lambda: rig.cli("latency") and rig.cli("latency")[0]["frames"] == 3, "both windows")
        row = rig.cli("top")[0]
        assert (row["device"], row["version"], row["drops"], row["rss_mb"]) == ("dock-1", "1", {"stale": 2}, 200.0)
    until(lambda: not any(d["online"] for d in rig.cli("devices")), "the boards to be seen leaving")
    assert rig.stop() == 0


def test_a_bad_bundle_stops_at_the_canary_and_the_old_one_returns(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    for version in ("1", "2"):
        rig.publish(version)
    rig.start()
    with board(rig, tmp_path, broker, "dock-1") as first, board(rig, tmp_path, broker, "dock-2") as second:
        until(lambda: rig.knows("dock-1", "dock-2"), "both births")
        one = rig.begin("toy:1", "--all")
        until(lambda: rig.phase(one) == "done", "the first rollout")
        first.answers["2"] = "refused"
        two = rig.begin("toy:2", "--devices", "dock-1,dock-2")
        until(lambda: rig.phase(two) == "reverted", "the way back")
        until(lambda: len(first.deployments) == 3, "the old deployment at the canary")
        assert [d.apps[0].version for d in first.deployments] == ["1", "2", "1"]
        assert first.numbers == [1, 2, 3]
        assert second.numbers == [1]
        shown = rig.rollout("status", two)
        assert shown["code"] == "rollout.install"
        assert "trial.probe" in shown["reason"]


def test_killed_in_the_middle_nothing_is_issued_twice(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    rig.publish("1")
    rig.start()
    with (board(rig, tmp_path, broker, "dock-1") as first, board(rig, tmp_path, broker, "dock-2") as second,
          board(rig, tmp_path, broker, "dock-3") as third):
        until(lambda: rig.knows("dock-1", "dock-2", "dock-3"), "the births")
        second.answers["1"] = ""  # keeps the second wave open
        rollout = rig.begin("toy:1", "--devices", "dock-1,dock-2,dock-3")
        until(lambda: third.acked and second.deployments, "the second wave to be under way")
        rig.kill()
        bundle = second.deployments[-1].apps[0].bundle
        second.report(Report("dock-2", 7, second.numbers[-1], "reader", 0.0, "idle", bundle, "1", "", "committed"))
        rig.start()
        until(lambda: rig.phase(rollout) == "done", "the rollout to end after the restart")
        until(lambda: 7 in second.acked, "the acknowledgement of what was said meanwhile")
        assert (first.numbers, second.numbers, third.numbers) == ([1], [1], [1])


def test_the_broker_restarts_and_everything_comes_back(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    rig.publish("1")
    rig.publish("2")
    rig.start()
    with board(rig, tmp_path, broker, "dock-1") as first:
        until(lambda: rig.knows("dock-1"), "the birth")
        one = rig.begin("toy:1", "--all")
        until(lambda: rig.phase(one) == "done", "the first rollout")
        broker.stop()  # type: ignore[attr-defined]
        broker.start()  # type: ignore[attr-defined]
        two = rig.begin("toy:2", "--all")
        until(lambda: rig.phase(two) == "done", "a rollout after the restart")
        with board(rig, tmp_path, broker, "late-1") as late:
            until(lambda: late.trust.versions, "the metadata, retained again")
            until(lambda: rig.knows("late-1"), "its birth")
        assert first.numbers == [1, 2]


def test_keys_rotate_under_a_running_fleet(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    rig.publish("1")
    rig.publish("2")
    rig.start()
    with board(rig, tmp_path, broker, "dock-1") as first:
        until(lambda: rig.knows("dock-1"), "the birth")
        one = rig.begin("toy:1", "--all")
        until(lambda: rig.phase(one) == "done", "the first rollout")
        for role in ("root", "targets", "snapshot", "timestamp", "deployment"):
            rig.cli("keys", "rotate", role)
        until(lambda: first.trust.versions["root"] == 5 and first.trust.versions["targets"] == 5, "the new metadata")
    with board(rig, tmp_path, broker, "dock-1", session=2) as again:  # forgot what it ran: the retained deployment must still count
        until(lambda: again.numbers == [1], "the deployment under the new key")
        two = rig.begin("toy:2", "--all")
        until(lambda: rig.phase(two) == "done", "a rollout with the new keys")


def test_forged_and_malformed_messages_are_counted_and_stop_nothing(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    rig.publish("1")
    rig.start()
    with board(rig, tmp_path, broker, "dock-1") as device:
        until(lambda: rig.knows("dock-1"), "the birth")
        device.answers["1"] = ""
        rollout = rig.begin("toy:1", "--all")
        until(lambda: device.deployments, "the deployment")
        app = device.deployments[0].apps[0]
        forged = Report("dock-1", 99, 1, "reader", 0.0, "idle", app.bundle, "1", "", "committed")
        stranger = Identity.load_or_create(tmp_path / "stranger")
        device.say(topics.report("dock-1"), stranger.sign("report", forged))
        device.say(topics.telemetry("dock-1"), b'{"device":"dock-1","session":')
        device.say(topics.telemetry("dock-1"), b"\xff" * 5000)
        with board(rig, tmp_path / "twin", broker, "dock-1", session=2):
            until(lambda: any((e.kind, e.code) == ("alarm", "device.key-changed") for e in rig.events()), "the alarm")
        codes = [e.code for e in rig.events() if e.kind == "rejected"]
        assert "trust.unknown-key" in codes
        assert codes.count("message.bad") == 2
        assert rig.phase(rollout) == "running"
        assert 99 not in device.acked
        device.report(msgspec.structs.replace(forged, id=100))
        until(lambda: rig.phase(rollout) == "done", "the honest report to count")


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)  # what the commands say does not depend on the broker
def test_pause_resume_abort_and_clear_errors(rig: ServedFleet, tmp_path: Path, broker: object) -> None:
    rig.publish("1")
    rig.start()
    with board(rig, tmp_path, broker, "dock-1") as device:
        until(lambda: rig.knows("dock-1"), "the birth")
        device.answers["1"] = ""
        rollout = rig.begin("toy:1", "--all")
        assert rig.rollout("pause", rollout)["phase"] == "paused"
        assert rig.rollout("pause", rollout, fails=True)["error"]["code"] == "rollout.order"
        assert rig.rollout("resume", rollout)["phase"] == "running"
        busy = rig.rollout("start", "--app", "reader", "--model", "toy:1", "--all", fails=True)
        assert busy["error"]["code"] == "rollout.busy"
        assert rig.rollout("abort", rollout)["phase"] == "aborted"
        assert rig.rollout("abort", rollout, fails=True)["error"]["code"] == "rollout.over"


def test_serve_keeps_its_own_broker_alive(tmp_path: Path) -> None:
    port = free_port()
    with fleet_on(tmp_path, f"embedded:{port}") as rig:
        rig.publish("1")
        rig.start()
        with ContractDevice(tmp_path / "dock-1", rig.root, port, "dock-1") as device:
            until(lambda: rig.knows("dock-1"), "the birth")
            old = rig.broker_process()
            assert old is not None
            old.kill()
            until(lambda: rig.broker_process() not in (None, old), "another broker process")
            rollout = rig.begin("toy:1", "--all")
            until(lambda: rig.phase(rollout) == "done", "a rollout over the new broker")
            assert device.numbers == [1]
        assert rig.stop() == 0
    until(lambda: not accepts("127.0.0.1", port), "the broker to end with serve")
