"""Signed commands from the command line to a board and back: logs, explain, restart; boards that are away, silent, or lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Mosquitto, mosquitto, until
from fleet_rig import AgentProcess
from served_fleet import ServedFleet, fleet_on
from upload_board import DEVICE, UploadBoard, now

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics
from jetfleet_contract.messages import Command, Response
from jetfleet_host.signing import sign_command

WAIT_S = 60.0


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as started:
        yield started


@pytest.fixture
def rig(tmp_path: Path, broker: Mosquitto) -> Iterator[ServedFleet]:
    with fleet_on(tmp_path, f"127.0.0.1:{broker.port}") as made:
        made.publish("1")
        made.start()
        yield made


def test_logs_explain_and_restart_of_a_real_agent(rig: ServedFleet, broker: Mosquitto, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "gate-1", "gate-1", broker.port, rig.project.root_file).start()
    try:
        until(lambda: rig.knows("gate-1") and _online(rig, "gate-1"), "the board", WAIT_S)
        told = rig.cli("device", "logs", "gate-1")
        assert any("broker connected" in line for line in told["lines"]), told
        out = tmp_path / "gate.log"
        few = rig.cli("device", "logs", "gate-1", "--lines", "2", "--out", str(out))
        assert len(out.read_text().splitlines()) == 2
        assert few["command"] > told["command"], "each command has a number of its own"
        assert [row["state"] for row in rig.cli("device", "uploads", "gate-1")] == ["stored", "stored"]
        assert rig.cli("device", "explain", "gate-1") == {"device": "gate-1", "apps": {}, "choices": {}}
        refused = rig.cli("device", "restart", "gate-1", "--app", "nobody", fails=True)
        assert refused["error"]["code"] == "app.unknown"
        rig.kill()
        rig.start()  # the numbers go on: a board obeys none twice
        assert rig.cli("device", "logs", "gate-1", "--lines", "1")["command"] > few["command"]
    finally:
        agent.stop()
    until(lambda: not _online(rig, "gate-1"), "its goodbye", WAIT_S)
    assert rig.cli("device", "logs", "gate-1", fails=True)["error"]["code"] == "device.offline"
    assert rig.cli("device", "logs", "nobody-1", fails=True)["error"]["code"] == "device.unknown"
    rig.stop()


def test_a_board_that_is_silent_and_one_that_lies(rig: ServedFleet, broker: Mosquitto, tmp_path: Path) -> None:
    board = UploadBoard(tmp_path / "board", rig.root, broker.port)
    try:
        until(lambda: rig.knows(DEVICE) and board.trust.versions, "the board", WAIT_S)
        assert rig.cli("device", "explain", DEVICE, "--timeout", "1", fails=True)["error"]["code"] == "device.silent"
        command = board.commands[-1]
        body = '{"apps":{},"choices":{}}'
        stranger = Identity.load_or_create(tmp_path / "stranger")
        forged = Response(DEVICE, command.seq, now().wall, body=body)
        board.link.publish(topics.response(DEVICE, command.seq), stranger.sign("response", forged), qos=1)
        board.link.publish(topics.response(DEVICE, command.seq + 1), board.identity.sign("response", forged), qos=1)
        board.respond(Response(DEVICE, command.seq + 9, now().wall))
        expected = {"trust.unknown-key", "topic.bad", "command.unknown"}
        until(lambda: expected <= {e.code for e in rig.events() if e.kind == "rejected"}, "each refusal", WAIT_S)

        board.respond(forged)  # its own key: late, but it counts; twice is once, and another one is refused
        board.respond(forged)
        board.respond(Response(DEVICE, command.seq, now().wall, code="app.unknown"))
        until(lambda: "command.answered" in {e.code for e in rig.events()}, "the refusal of the second answer", WAIT_S)

        answers = {"explain": body}
        board.answer = lambda _board, asked: Response(DEVICE, asked.seq, now().wall, body=answers.get(asked.op, ""))
        assert rig.cli("device", "explain", DEVICE)["apps"] == {}
        answers["explain"] = "{}"
        assert rig.cli("device", "explain", DEVICE, fails=True)["error"]["code"].startswith("message.")
        silent = rig.cli("device", "logs", DEVICE, "--timeout", "1", fails=True)
        assert silent["error"]["code"] == "upload.silent", "it answered, but gave nothing"
    finally:
        board.kill()


def test_replayed_forged_and_foreign_commands_are_not_obeyed(rig: ServedFleet, broker: Mosquitto, tmp_path: Path) -> None:
    board = UploadBoard(tmp_path / "board", rig.root, broker.port)
    try:
        until(lambda: rig.knows(DEVICE) and board.trust.versions, "the board", WAIT_S)
        wall = now().wall
        good = sign_command(rig.project, Command(DEVICE, 5, wall + 60, "logs"))
        forged = board.identity.sign("command", Command(DEVICE, 6, wall + 60, "logs"))
        foreign = sign_command(rig.project, Command("other-1", 7, wall + 60, "logs"))
        stale = sign_command(rig.project, Command(DEVICE, 8, wall - 600, "logs"))
        for envelope in (good, good, forged, foreign, stale):
            board.link.publish(topics.command(DEVICE), envelope, qos=1)
        until(lambda: len(board.refused) >= 4, "the refusals", WAIT_S)
        assert [command.seq for command in board.commands] == [5]
        assert board.refused[:3] == ["trust.seq-lower", "trust.unknown-key", "trust.device"]
    finally:
        board.kill()


def _online(rig: ServedFleet, name: str) -> bool:
    from jetfleet_host import views

    with rig.reading() as session:
        return any(row.device == name and row.online for row in views.devices(session))
