"""The commands that look at a fleet: their tables, their JSON, and one clear error for each wrong word."""

from __future__ import annotations

import gzip
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.messages import AppState, Birth, Capability, Report, Series, Telemetry
from jetfleet_contract.sketch import sketch_of
from jetfleet_host import cli
from jetfleet_host.commands import device as device_commands
from jetfleet_host.commands import rollout as rollout_commands
from jetfleet_host.commands.fleet import seconds
from jetfleet_host.project import Project
from jetfleet_host.serve import only_server
from jetfleet_host.store import commands, fleet
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boards, one of which has sent telemetry."""
    folder = tmp_path_factory.mktemp("project") / "fleet"
    now = time.time()
    with closing(Database.open(Project.init(folder).database_url)) as database, database.session() as session:
        for name in ("dock-1", "gate-1"):
            birth = Birth(name, 1, "0.1.0", 1, "ab" * 32, Capability("cpu-x86", "cpu-x86", "x86_64"),
                          (AppState("reader", "cd" * 32, "ocr", "2", "fp32@onnxruntime:fp32", "committed"),))
            fleet.save_birth(session, None, birth, json.dumps({"signed": {"device": name}}).encode(), now)
        series = Series("reader", "cd" * 32, "2", "fp32@onnxruntime:fp32", "front", 101, 100, {"stale": 1},
                        {"total": sketch_of([10.0] * 99 + [50.0]), "age": sketch_of([20.0])},
                        {"kpi.people": sketch_of([2.0] * 75 + [4.0] * 25), "kpi.balance.neg": sketch_of([3.0] * 50),
                         "kpi.balance": sketch_of([1.0] * 50), "luma": sketch_of([120.0])})
        fleet.save_window(session, session.get_one(Device, "dock-1"),
                          Telemetry("dock-1", 1, 1, now, 10.0, (series,), {"cpu_pct": 42.0, "temperature_c": 61.0}), now)
        refusal = Report("gate-1", 1, 1, "reader", now, "idle", "cd" * 32, "3", "2", "refused", "trial.probe", "too bad")
        fleet.save_report(session, refusal, now)
        fleet.raise_alarm(session, "gate-1", "device.key-changed", "another key", now)
    return folder


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """The command line in this process, from its arguments to its exit status."""
    monkeypatch.setattr(sys, "argv", ["jetfleet", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_devices(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run(capsys, monkeypatch, "devices", "--dir", str(project), "--json")
    rows = json.loads(out)
    assert (status, [row["device"] for row in rows], rows[0]["online"], rows[0]["windows"]) == (0, ["dock-1", "gate-1"], True, 1)
    _, out, _ = run(capsys, monkeypatch, "devices", "--dir", str(project))
    assert "fp32@onnxruntime:fp32" in out


def test_device_show(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = run(capsys, monkeypatch, "device", "show", "gate-1", "--dir", str(project), "--json")
    detail = json.loads(out)
    assert detail["reports"][0]["code"] == "trial.probe"
    assert detail["alarms"][0]["code"] == "device.key-changed"
    _, out, _ = run(capsys, monkeypatch, "device", "show", "gate-1", "--dir", str(project))
    assert "refused trial.probe too bad" in out
    assert "ALARM" in out


def test_kpis(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run(capsys, monkeypatch, "kpis", "--dir", str(project), "--by", "version", "--json")
    rows = {row["kpi"]: row for row in json.loads(out)}
    assert status == 0
    assert set(rows) == {"people", "balance"}
    assert (rows["people"]["group"], rows["people"]["frames"], rows["people"]["mean"]) == ("2", 100, 2.5)
    assert (rows["balance"]["mean"], rows["balance"]["least"], rows["balance"]["most"]) == (-1.0, -3.0, 1.0)
    _, out, _ = run(capsys, monkeypatch, "kpis", "balance", "--dir", str(project))
    assert "balance" in out
    assert "people" not in out
    _, out, _ = run(capsys, monkeypatch, "kpis", "none", "--dir", str(project))
    assert "No figures" in out
    status, _, told = run(capsys, monkeypatch, "kpis", "--by", "moon", "--dir", str(project))
    assert (status, "kpis.by" in told) == (2, True)
    status, _, told = run(capsys, monkeypatch, "latency", "--stage", "luma", "--dir", str(project))
    assert (status, "there are: age, total" in told) == (2, True), "what is no time is no stage"


def test_top(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = run(capsys, monkeypatch, "top", "--dir", str(project), "--json", "--span", "3600")
    rows = {row["device"]: row for row in json.loads(out)}
    assert rows["dock-1"]["p50_ms"] == pytest.approx(10.0, rel=0.01)
    assert rows["dock-1"]["fps"] == pytest.approx(10.0)
    assert (rows["dock-1"]["drops"], rows["dock-1"]["cpu_pct"], rows["dock-1"]["temperature_c"]) == ({"stale": 1}, 42.0, 61.0)
    assert rows["gate-1"]["fps"] == 0.0
    _, out, _ = run(capsys, monkeypatch, "top", "--dir", str(project), "--once", "--span", "3600")
    assert "stale 1" in out
    assert "61" in out


@pytest.mark.parametrize(("by", "group"), [("device", "dock-1"), ("class", "cpu-x86"), ("version", "2")])
def test_latency(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str, group: str) -> None:
    _, out, _ = run(capsys, monkeypatch, "latency", "--by", by, "--dir", str(project), "--json", "--since", "1h")
    [row] = json.loads(out)
    assert (row["group"], row["app"], row["frames"], row["max_ms"]) == (group, "reader", 100, 50.0)


def test_events(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = run(capsys, monkeypatch, "events", "--dir", str(project), "--json")
    assert {event["kind"] for event in json.loads(out)} == {"report", "alarm"}
    _, out, _ = run(capsys, monkeypatch, "events", "--dir", str(project), "--device", "dock-1")
    assert out == ""


@pytest.mark.parametrize(("arguments", "status", "code"), [
    (("device", "show", "nobody"), 2, "device.unknown"),
    (("latency", "--by", "colour"), 2, "latency.by"),
    (("latency", "--stage", "lunch"), 2, "latency.stage"),
    (("latency", "--since", "soon"), 2, "time.bad"),
    (("rollout", "status", "nothing"), 2, "rollout.unknown"),
    (("rollout", "abort", "nothing"), 2, "rollout.unknown"),
    (("rollout", "start", "--app", "reader", "--model", "ocr", "--all"), 2, "rollout.model"),
    (("rollout", "start", "--app", "reader", "--model", "ocr:9", "--all"), 2, "models.unknown"),
    (("rollout", "start", "--app", "reader", "--model", "ocr:9", "--all", "--on-breach", "cry"), 2, "rollout.policy"),
    (("rollout", "start", "--app", "reader", "--model", "ocr:9", "--all", "--canary", "some"), 2, "rollout.size"),
    (("rollout", "start", "--app", "reader", "--model", "ocr:9", "--all", "--class", "x"), 2, "rollout.devices"),
    (("rollout", "start", "--app", "reader", "--model", "ocr:9", "--tag", "line"), 2, "rollout.tag"),
    (("rollout", "start", "--model", "ocr:9", "--all"), 2, "rollout.app"),
    (("rollout", "start", "--plan", "nowhere.toml"), 2, "plan.unreadable"),
    (("rollout", "plan", "check", "nowhere.toml"), 2, "plan.unreadable"),
])
def test_wrong_words(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
                     status: int, code: str) -> None:
    ended, out, err = run(capsys, monkeypatch, *arguments, "--dir", str(project), "--json")
    assert (ended, json.loads(out)["error"]["code"]) == (status, code)
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["devices", "top", "latency", "events", "serve"])
def test_a_folder_that_is_no_project(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                     command: str) -> None:
    status, out, _ = run(capsys, monkeypatch, command, "--dir", str(tmp_path), "--json")
    assert (status, json.loads(out)["error"]["code"]) == (2, "project.not-found")


def test_a_request_that_nobody_takes_is_withdrawn(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jetfleet_contract.errors import TransportError
    from jetfleet_host.store import journal

    monkeypatch.setattr(rollout_commands, "ANSWER_S", 0.0)
    opened = Project.load(project)
    with closing(Database.open(opened.database_url)) as database:
        with pytest.raises(TransportError, match="jetfleet serve --dir"):
            rollout_commands._ask(database, opened, "r1", journal.ControlRequest("pause"))
        with database.reading() as session:
            assert journal.open_requests(session) == []


def test_one_server_a_project(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with only_server(project):
        status, out, _ = run(capsys, monkeypatch, "serve", "--dir", str(project), "--json")
    assert (status, json.loads(out)["error"]["code"]) == (2, "serve.running")
    with only_server(project):
        pass


@pytest.mark.parametrize(("text", "value"), [("30s", 30.0), ("10m", 600.0), ("1.5h", 5400.0), ("2d", 172800.0)])
def test_lengths_of_time(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "1e9s", "99999999999s", "1 w"])
def test_wrong_lengths_of_time(text: str) -> None:
    with pytest.raises(InputError):
        seconds(text)


def test_every_command_has_help_with_an_example() -> None:
    import typer.main

    group: Any = typer.main.get_command(cli.app)
    names = ("devices", "top", "latency", "events", "serve", "mirror", "rollout", "device")
    ours = [leaf for name in names for leaf in leaves(group.commands[name])]
    assert len(ours) > 15
    for command in ours:
        assert "Example" in command.help, command.name
        assert any("--json" in option.opts for option in command.params), command.name


def leaves(command: Any) -> list[Any]:
    """The commands below a group; the group too, when it does something by itself."""
    inner = [leaf for child in getattr(command, "commands", {}).values() for leaf in leaves(child)]
    return [*inner, command] if not inner or command.invoke_without_command else inner


def test_boards_are_tagged_and_untagged(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--dir", str(project), "--json")
    status, out, _ = run(capsys, monkeypatch, "devices", "tag", "dock-1", "site=berlin-2", "line=3", *where)
    assert (status, json.loads(out)["tags"]) == (0, {"line": "3", "site": "berlin-2"})
    run(capsys, monkeypatch, "devices", "untag", "dock-1", "line", *where)
    _, out, _ = run(capsys, monkeypatch, "devices", *where)
    assert {row["device"]: row["tags"] for row in json.loads(out)} == {"dock-1": {"site": "berlin-2"}, "gate-1": {}}
    _, out, _ = run(capsys, monkeypatch, "devices", "--dir", str(project))
    assert "site=berlin-2" in out


@pytest.mark.parametrize(("arguments", "code"), [
    (("tag", "nobody", "a=b"), "device.unknown"), (("tag", "dock-1", "a"), "tag.bad"), (("tag", "dock-1", "A b=c"), "tag.bad"),
    (("tag", "dock-1", "class=x"), "tag.bad"), (("tag", "dock-1", "a=" + "x" * 64), "tag.bad"), (("untag", "dock-1", "zzz"), "tag.unknown"),
    (("tag", "dock-1", *(f"t{n}=1" for n in range(40))), "tag.bad"),
])
def test_tags_that_are_none(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
                            code: str) -> None:
    status, out, _ = run(capsys, monkeypatch, "devices", *arguments, "--dir", str(project), "--json")
    assert (status, json.loads(out)["error"]["code"]) == (2, code)


def test_without_serve_a_command_is_withdrawn(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_commands, "TAKEN_S", 0.2)
    status, out, _ = run(capsys, monkeypatch, "device", "explain", "dock-1", "--dir", str(project), "--json")
    assert (status, json.loads(out)["error"]["code"]) == (8, "serve.silent")
    with closing(Database.open(Project.load(project).database_url)) as database, database.reading() as session:
        assert commands.asked(session) == [], "nothing is sent later, when nobody waits for it any more"
    status, out, _ = run(capsys, monkeypatch, "device", "restart", "../up", "--app", "x", "--dir", str(project), "--json")
    assert (status, json.loads(out)["error"]["code"]) == (2, "name.bad")


def test_a_log_that_is_a_bomb_or_no_gzip_is_refused() -> None:
    assert device_commands.unpacked(gzip.compress(b"a\nb\n")) == "a\nb\n"
    with pytest.raises(MalformedError, match="larger"):
        device_commands.unpacked(gzip.compress(bytes(device_commands.MAX_LOG_BYTES + 1)))
    with pytest.raises(MalformedError, match="no gzip"):
        device_commands.unpacked(b"plain text")
