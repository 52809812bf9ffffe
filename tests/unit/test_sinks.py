"""Sinks: each bounded and by itself. A full disk, a slow reader or a fault of ours costs results of that sink, counted, never the app."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from brokers import until

from jetfleet_agent.ipc import Raised, SinkPlaces
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.sinks import JsonLines, Sinks, result_socket
from jetfleet_agent.pipeline.sinks.files import ResultFiles, cut_torn_line, line_of
from jetfleet_agent.pipeline.sinks.port import Voice
from jetfleet_agent.pipeline.sinks.result_socket import ResultSocket
from jetfleet_contract.app_config import JsonlSink, PreviewSink, Privacy, SocketSink, WebhookSink
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import AppConfig, Result, decode


class Named:
    """All that a sink reads of a model."""

    key = ("a" * 64, "1", "v@onnxruntime:fp32")


MODEL = cast("LoadedModel", Named())
FRAME = Frame("front", 0, 0, np.zeros((4, 4, 3), np.uint8), 1.0, 2.0)


def result(number: int) -> Result:
    return Result("app", "front", number, 2.0, 3.0, "1", "v@onnxruntime:fp32")


def silent(_event: Raised) -> None: ...


# --- the command line's file ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_file_and_not_the_answers() -> None:
    published: list[Result] = []
    sinks = Sinks("app", published.append, JsonLines(Path("/dev/full")))
    for _ in range(3):
        sinks.take(FRAME, MODEL, 3.5)
    assert len(published) == 3
    assert published[0].age_ms == 2500.0
    sinks.close()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        JsonLines(tmp_path / "none" / "out.jsonl")
    assert caught.value.code == "sink.write"


# --- result files --------------------------------------------------------------------------------------------------


def written(path: Path) -> list[int]:
    return [decode(line, Result).frame for line in path.read_bytes().splitlines()]


def test_result_files_are_rotated_bounded_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = len(line_of(result(1000)))
    monkeypatch.setattr("jetfleet_agent.pipeline.sinks.files.file_limits", lambda spec, local_mb: (one * 10, 3))
    folder = tmp_path / "results" / "app"
    sink = ResultFiles(folder, JsonlSink("seen"), 100, Voice("s", silent))
    for number in range(1000, 1045):
        sink.take(FRAME, result(number), 0.0)
    until(lambda: sink.counts()["written"] == 45, "45 lines")
    sink.close()
    assert sorted(path.name for path in folder.iterdir()) == ["seen.1.jsonl", "seen.2.jsonl", "seen.jsonl"]
    assert written(folder / "seen.2.jsonl") == list(range(1020, 1030))
    assert written(folder / "seen.1.jsonl") == list(range(1030, 1040))
    assert written(folder / "seen.jsonl") == list(range(1040, 1045))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "seen.jsonl").stat().st_mode) == 0o600
    monkeypatch.setattr("jetfleet_agent.pipeline.sinks.files.file_limits", lambda spec, local_mb: (one * 10, 1))
    fewer = ResultFiles(folder, JsonlSink("seen", keep=1), 100, Voice("s", silent))
    for number in range(2000, 2020):
        fewer.take(FRAME, result(number), 0.0)
    fewer.close()
    assert [path.name for path in folder.iterdir()] == ["seen.jsonl"], "what an older setting kept is gone"


def test_a_torn_line_is_cut_off_and_whole_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    path = folder / "seen.jsonl"
    path.write_bytes(line_of(result(1)) + line_of(result(2)) + line_of(result(3))[:25])
    sink = ResultFiles(folder, JsonlSink("seen"), 100, Voice("s", silent))
    sink.take(FRAME, result(4), 0.0)
    sink.close()
    assert written(path) == [1, 2, 4]


@pytest.mark.parametrize(("content", "left"), [
    (b"", b""), (b"abc", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"x" * 200_000, b""), (b"a\n" + b"x" * 200_000, b"a\n")])
def test_torn_ends_of_any_length(tmp_path: Path, content: bytes, left: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    handle = os.open(path, os.O_RDWR)
    assert cut_torn_line(handle) == len(left)
    os.close(handle)
    assert path.read_bytes() == left


WRITER = """
import sys
from pathlib import Path
import numpy as np
from jetfleet_agent.pipeline.sinks.files import ResultFiles
from jetfleet_agent.pipeline.sinks.port import Voice
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.app_config import JsonlSink
from jetfleet_contract.messages import Result
frame = Frame("front", 0, 0, np.zeros((4, 4, 3), np.uint8), 1.0, 2.0)
sink = ResultFiles(Path(sys.argv[1]), JsonlSink("seen", max_mb=1, keep=3), 100, Voice("s", print))
number = int(sys.argv[2])
while True:
    sink.take(frame, Result("app", "front", number, 2.0, 3.0, "1", "v" * 150), 0.0)
    number += 1
"""


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_kills_in_the_middle_of_writing_leave_whole_lines(tmp_path: Path) -> None:
    """Killed again and again while it writes as fast as it can: every line can be read, numbers only grow, no file is too large."""
    folder = tmp_path / "app"
    for life in range(4):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(life * 10_000_000)])
        until(lambda least=200_000 + life * 50_000: size_of(folder / "seen.jsonl") > least, "lines")  # type: ignore[misc]
        child.kill()
        child.wait()
    ResultFiles(folder, JsonlSink("seen", max_mb=1, keep=3), 100, Voice("s", silent)).close()  # opens nothing: nothing came
    last = ResultFiles(folder, JsonlSink("seen", max_mb=1, keep=3), 100, Voice("s", silent))
    last.take(FRAME, result(90_000_000), 0.0)
    last.close()
    numbers: list[int] = []
    for name in ("seen.2.jsonl", "seen.1.jsonl", "seen.jsonl"):
        if (folder / name).exists():
            assert (folder / name).stat().st_size <= 1 << 20
            assert (folder / name).read_bytes().endswith(b"\n")
            numbers += written(folder / name)
    assert numbers == sorted(numbers)
    assert numbers[-1] == 90_000_000


def test_a_disk_without_room_stops_the_file_says_so_once_and_is_tried_again(tmp_path: Path) -> None:
    told: list[Raised] = []
    now = [0.0]
    sink = ResultFiles(tmp_path / "app", JsonlSink("seen"), 100, Voice("sink.jsonl-seen", told.append), clock=lambda: now[0],
                       least_free=1 << 60)
    for number in range(3):
        sink.take(FRAME, result(number), 0.0)
        until(lambda want=number + 1: sink.counts()["disk"] == want, "the drop")  # type: ignore[misc]
    assert [(event.source, event.up, event.code) for event in told] == [("sink.jsonl-seen", True, "sink.disk")]
    sink._least_free = 0
    now[0] = 31.0
    sink.take(FRAME, result(7), 0.0)
    until(lambda: sink.counts()["written"] == 1, "a line")
    sink.close()
    assert [event.up for event in told] == [True, False]
    assert written(tmp_path / "app" / "seen.jsonl") == [7]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_fails_halfway_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    told: list[Raised] = []
    folder = tmp_path / "app"
    sink = ResultFiles(folder, JsonlSink("seen"), 100, Voice("s", told.append), least_free=0)
    sink.take(FRAME, result(1), 0.0)
    until(lambda: sink.counts()["written"] == 1, "a line")
    os.dup2(os.open("/dev/full", os.O_WRONLY), sink._handle)  # from here on ENOSPC, in the open file
    sink.take(FRAME, result(2), 0.0)
    until(lambda: sink.counts()["disk"] == 1, "the drop")
    sink.close()
    assert told[0].code == "sink.disk"
    assert written(folder / "seen.jsonl") == [1]


# --- the result socket ---------------------------------------------------------------------------------------------


def connect(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(30)
    link.connect(str(path))
    return link


def test_readers_get_a_hello_and_every_result_from_then_on(tmp_path: Path) -> None:
    sink = ResultSocket(tmp_path, "app", Voice("s", silent))
    path = tmp_path / "app.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    sink.take(FRAME, result(1), 0.0)
    links = [connect(path) for _ in range(3)]
    until(lambda: sink.readers == 3, "three readers")
    for number in range(2, 12):
        sink.take(FRAME, result(number), 0.0)
    for link in links:
        with link.makefile("rb") as lines:
            assert json.loads(lines.readline()) == {"jetfleet": "results", "version": 1, "app": "app"}
            assert [decode(lines.readline(), Result).frame for _ in range(10)] == list(range(2, 12))
        link.close()
    until(lambda: sink.readers == 0, "all have left")
    assert sink.counts()["lines"] == 30
    sink.close()
    assert not path.exists()


def test_a_slow_reader_loses_the_oldest_is_told_and_costs_the_others_nothing(tmp_path: Path) -> None:
    sink = ResultSocket(tmp_path, "app", Voice("s", silent))
    slow, quick = connect(tmp_path / "app.sock"), connect(tmp_path / "app.sock")
    until(lambda: sink.readers == 2, "two readers")
    lines = quick.makefile("rb")
    lines.readline()
    total = 8000
    for number in range(total):
        sink.take(FRAME, result(number), 0.0)
        if number % 100 == 99:  # the quick one keeps up
            assert [decode(lines.readline(), Result).frame for _ in range(100)] == list(range(number - 99, number + 1))
    until(lambda: sink.counts()["lines"] == 2 * total, "all handed out")
    assert sink.counts()["slow"] > 0
    seen = missed = 0
    last = -1
    with slow.makefile("rb") as late:
        late.readline()
        while last < total - 1:
            line = json.loads(late.readline())
            if "missed" in line:
                missed += line["missed"]
                continue
            assert line["frame"] > last
            seen, last = seen + 1, line["frame"]
    assert (seen + missed, missed) == (total, sink.counts()["slow"])
    sink.close()


def test_a_reader_that_takes_nothing_is_hung_up_on_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_socket, "STUCK_S", 1.0)
    now = [0.0]
    sink = ResultSocket(tmp_path, "app", Voice("s", silent), clock=lambda: now[0])
    links = [connect(tmp_path / "app.sock") for _ in range(result_socket.MAX_READERS)]
    until(lambda: sink.readers == result_socket.MAX_READERS, "a full house")
    one_more = connect(tmp_path / "app.sock")
    assert one_more.recv(100) == b""
    for link in links[1:]:
        link.close()
    until(lambda: sink.readers == 1, "one is left")
    sent = 0
    while not sink.counts()["slow"]:
        sink.take(FRAME, result(sent), 0.0)
        sent += 1
    now[0] = 100.0
    until(lambda: sink.readers == 0, "hung up")
    sink.close()


def test_a_stale_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "app.sock"))
    dead.close()
    sink = ResultSocket(tmp_path, "app", Voice("s", silent))
    connect(tmp_path / "app.sock").close()
    sink.close()


# --- all together --------------------------------------------------------------------------------------------------


def wired(tmp_path: Path) -> tuple[Sinks, list[Result], list[Raised]]:
    published: list[Result] = []
    told: list[Raised] = []
    sinks = Sinks("app", published.append, send=told.append)
    sinks.place(SinkPlaces(str(tmp_path / "files"), 100, str(tmp_path / "sockets")))
    return sinks, published, told


def test_what_is_unchanged_runs_on_through_a_new_configuration(tmp_path: Path) -> None:
    sinks, published, told = wired(tmp_path)
    sinks.configure(AppConfig(sinks=(JsonlSink("a"), SocketSink())))
    link = connect(tmp_path / "sockets" / "app.sock")
    link.recv(1000)
    sinks.configure(AppConfig(sinks=(SocketSink(), JsonlSink("b")), publish_results=False))
    sinks.take(FRAME, MODEL, 3.5)
    assert decode(link.recv(4000), Result).frame == 0, "the reader never noticed"
    sinks.configure(AppConfig(sinks=(), publish_results=False))
    assert link.recv(100) == b"", "the socket is gone"
    assert written(tmp_path / "files" / "b.jsonl") == [0]
    assert not (tmp_path / "files" / "a.jsonl").exists()
    assert (published, told) == ([], [])
    sinks.close()


def test_a_sink_that_cannot_begin_is_said_once_and_the_others_run(tmp_path: Path) -> None:
    sinks, _, told = wired(tmp_path)
    (tmp_path / "sockets").write_text("in the way")
    config = AppConfig(sinks=(SocketSink(), JsonlSink("a"), JsonlSink("../b"), PreviewSink(token="secret:gone")))
    for _ in range(3):
        sinks.configure(config)
    sinks.take(FRAME, MODEL, 3.5)
    assert [(event.source, event.code) for event in told] == [
        ("sink.socket", "sink.socket"), ("sink.jsonl", "name.bad"), ("sink.preview", "preview.token")]
    (tmp_path / "sockets").unlink()
    sinks.configure(config)
    assert told[3:] == [Raised("sink.socket", False, "sink.socket")]
    sinks.close()
    assert written(tmp_path / "files" / "a.jsonl") == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "sockets"], "a name with dots leaves the folder nowhere"


def test_a_webhook_is_the_supervisors_so_results_go_there(tmp_path: Path) -> None:
    sinks, published, _ = wired(tmp_path)
    sinks.configure(AppConfig(publish_results=False, sinks=(WebhookSink("https://host/path"),)))
    sinks.take(FRAME, MODEL, 3.5)
    assert len(published) == 1
    sinks.close()


def test_a_fault_of_ours_ends_one_sink_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sinks, published, told = wired(tmp_path)
    sinks.configure(AppConfig(sinks=(JsonlSink("a"), SocketSink())))

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ResultFiles, "take", broken)
    for _ in range(3):
        sinks.take(FRAME, MODEL, 3.5)
    assert [event.code for event in told] == ["sink.crash"]
    assert len(published) == 3
    link = connect(tmp_path / "sockets" / "app.sock")
    link.recv(1000)
    until(lambda: sinks.counts().get("sink.socket.readers") == 1.0, "a reader")
    sinks.take(FRAME, MODEL, 3.5)
    assert link.recv(4000)
    sinks.close()


EVERYWHERE = "0.0.0.0"  # noqa: S104 - what an operator may write


@pytest.mark.parametrize(("address", "purposes", "code"), [
    (EVERYWHERE, (), "preview.privacy"), (EVERYWHERE, ("harvest",), "preview.privacy"), (EVERYWHERE, ("preview",), ""),
    ("127.0.0.1", (), "")])
def test_pixels_leave_the_board_only_where_the_privacy_policy_says_so(
        tmp_path: Path, address: str, purposes: tuple[str, ...], code: str) -> None:
    told: list[Raised] = []
    sinks = Sinks("app", lambda _: None, send=told.append)
    sinks.place(SinkPlaces(preview_address=address))
    sinks.configure(AppConfig(sinks=(PreviewSink(token="t" * 20),), privacy=Privacy(purposes)))  # type: ignore[arg-type]
    assert [event.code for event in told] == ([code] if code else [])
    sinks.close()


