"""A real pipeline process with every sink at once, an installed KPI hook, readers that are slow, broken or killed, and a preview."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brokers import until
from pipelines import PipelineProcess, detector_task, model_of, save_map_model

from jetfleet_agent.ipc import Configure, Raised, Run, Running, SinkPlaces, Window
from jetfleet_contract.app_config import JsonlSink, PreviewSink, SocketSink, WebhookSink
from jetfleet_contract.messages import AppConfig, Result, Source, decode

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "t0ken-of-sixteen-and-more"
ALL = (JsonlSink("seen"), SocketSink(), PreviewSink(fps=20.0, width=320), WebhookSink("secret:hook"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worked example of the documentation, built and installed as a user would, into a folder."""
    folder = tmp_path_factory.mktemp("hook")
    example = ROOT / "docs" / "examples" / "people_per_zone"
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=example, check=True,
                   capture_output=True)
    subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install", "--no-deps", "--target",
                    str(folder / "site"), str(next(folder.glob("*.whl")))], check=True)
    return folder / "site"


def order(tmp_path: Path, config: AppConfig, *, fps: float = 60.0) -> Run:
    places = SinkPlaces(str(tmp_path / "results" / "detector"), 100, str(tmp_path / "sockets"))
    return Run(model_of(save_map_model(tmp_path / "m.onnx"), detector_task()), config,
               (Source("front", "synthetic:640x480", fps=fps),), window_s=0.3, places=places)


def preview_port(pipeline: PipelineProcess) -> int:
    pipeline.until(lambda: "preview of detector: http://127.0.0.1:" in pipeline.log.read_text())
    return int(pipeline.log.read_text().rpartition("preview of detector: http://127.0.0.1:")[2].partition("/")[0])


def reader(path: Path) -> Any:
    until(path.exists, "the result socket")
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(60)
    link.connect(str(path))
    return link.makefile("rb")


def gauges(pipeline: PipelineProcess) -> dict[str, float]:
    windows = pipeline.of(Window)
    return windows[-1].gauges if windows else {}


def test_every_sink_at_once_tells_the_same_results(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    pipeline.send(order(tmp_path, AppConfig(sinks=ALL)))
    pipeline.wait(Running)
    lines = reader(tmp_path / "sockets" / "detector.sock")
    assert json.loads(lines.readline()) == {"jetfleet": "results", "version": 1, "app": "detector"}
    by_socket = [decode(lines.readline(), Result) for _ in range(30)]
    viewer = http.client.HTTPConnection("127.0.0.1", preview_port(pipeline), timeout=60)
    viewer.request("GET", "/front.jpg")
    answer = viewer.getresponse()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "image/jpeg")
    assert answer.read().startswith(b"\xff\xd8\xff")
    pipeline.until(lambda: gauges(pipeline).get("sink.preview.encoded", 0) > 0)
    assert pipeline.stop() == 0
    by_file = [decode(line, Result) for line in (tmp_path / "results" / "detector" / "seen.jsonl").read_bytes().splitlines()]
    sent = {result.frame: result for result in pipeline.results}
    assert by_file == pipeline.results, "file and supervisor have every result, in order"
    assert by_socket == [sent[result.frame] for result in by_socket]
    assert not pipeline.of(Raised)


def test_nothing_is_encoded_until_somebody_watches(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    pipeline.send(order(tmp_path, AppConfig(sinks=(PreviewSink(fps=30.0),))))
    pipeline.until(lambda: pipeline.totals()["done"] > 60)
    assert "sink.preview.encoded" not in gauges(pipeline), "60 frames, no viewer, no picture"
    link = socket.create_connection(("127.0.0.1", preview_port(pipeline)), timeout=60)
    link.sendall(b"GET /front.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    seen = b""
    while seen.count(b"Content-Type: image/jpeg") < 4:
        seen += link.recv(65536)
    link.close()
    pipeline.until(lambda: "sink.preview.viewers" not in gauges(pipeline) and gauges(pipeline).get("sink.preview.encoded", 0) >= 4)
    encoded, windows = gauges(pipeline)["sink.preview.encoded"], len(pipeline.of(Window))
    pipeline.until(lambda: len(pipeline.of(Window)) > windows + 3)
    assert gauges(pipeline)["sink.preview.encoded"] == encoded, "it left, and encoding stopped"
    assert pipeline.stop() == 0


def test_sinks_change_while_frames_go_on(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    run = order(tmp_path, AppConfig(sinks=(SocketSink(),)))
    pipeline.send(run)
    pipeline.wait(Running)
    lines = reader(tmp_path / "sockets" / "detector.sock")
    lines.readline()
    pipeline.send(Configure(AppConfig(version=2, sinks=(SocketSink(), JsonlSink("later"), PreviewSink(token="secret:none"))), run.sources))
    assert pipeline.wait(Raised).code == "preview.token"
    path = tmp_path / "results" / "detector" / "later.jsonl"
    until(lambda: path.exists() and path.stat().st_size, "lines of the new file")
    frames = [decode(lines.readline(), Result).frame for _ in range(60)]
    assert frames == list(range(frames[0], frames[0] + 60)), "the reader missed nothing while others came"
    assert pipeline.stop() == 0
    assert not (tmp_path / "sockets" / "detector.sock").exists()


def test_readers_that_hang_or_break_cost_no_frame(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    pipeline.send(order(tmp_path, AppConfig(sinks=ALL), fps=200.0))
    pipeline.wait(Running)
    path = tmp_path / "sockets" / "detector.sock"
    stuck = reader(path)  # reads nothing, ever
    for rubbish in (b"\xff" * 5000, b"GET / HTTP/1.1\r\n\r\n", b""):
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(path))
        link.sendall(rubbish)
        link.close()
    port = preview_port(pipeline)
    deaf = socket.create_connection(("127.0.0.1", port), timeout=60)
    deaf.sendall(b"GET /front.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")  # and reads nothing
    half = socket.create_connection(("127.0.0.1", port), timeout=60)
    half.sendall(b"GET /fro")  # and says no more
    done = pipeline.totals()["done"]
    pipeline.until(lambda: pipeline.totals()["done"] > done + 400)
    good = reader(path)
    good.readline()
    assert decode(good.readline(), Result).source == "front"
    assert pipeline.stop() == 0
    for end in (stuck, deaf, half, good):
        end.close()
    totals = pipeline.totals()
    assert totals["seen"] == totals["done"] + sum(count for cause, count in totals.items() if cause not in ("seen", "done"))


def test_a_killed_process_leaves_whole_lines_and_the_next_goes_on(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    path = tmp_path / "results" / "detector" / "seen.jsonl"
    for _life in range(3):
        pipeline = start()
        pipeline.send(order(tmp_path, AppConfig(sinks=(JsonlSink("seen"), SocketSink())), fps=300.0))
        before = path.stat().st_size if path.exists() else 0
        until(lambda least=before + 3000: path.exists() and path.stat().st_size > least, "lines")  # type: ignore[misc]
        pipeline.close()
        with path.open("ab") as torn:
            torn.write(b'{"app":"detector","fra')  # what a kill within a write leaves
        (tmp_path / "run" / "detector.supervisor").unlink()
        assert (tmp_path / "sockets" / "detector.sock").exists(), "a stale socket, which the next life replaces"
    pipeline = start()
    pipeline.send(order(tmp_path, AppConfig(sinks=(JsonlSink("seen"), SocketSink()))))
    pipeline.wait(Running)
    reader(tmp_path / "sockets" / "detector.sock").readline()
    pipeline.until(lambda: len(pipeline.results) > 10)
    assert pipeline.stop() == 0
    results = [decode(line, Result) for line in path.read_bytes().splitlines()]
    again = sum(later.frame < earlier.frame for earlier, later in itertools.pairwise(results))
    assert again == 3, "four lives, one file, each line whole"


def test_an_installed_hook_attaches_figures_to_results_and_telemetry(start: Callable[..., PipelineProcess], tmp_path: Path,
                                                                     installed: Path) -> None:
    pipeline = start(PYTHONPATH=os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]))
    options: dict[str, float | str | bool] = {"label": "text", "left": "0,0,320,480", "right": "320,0,640,480"}
    run = order(tmp_path, AppConfig(kpis="people-per-zone", kpi_options=options, sinks=(JsonlSink("seen"),)))
    pipeline.send(run)
    pipeline.until(lambda: len(pipeline.results) > 40)
    for result in pipeline.results:
        assert set(result.kpis) == {"left", "right", "outside", "balance"}
        assert result.kpis["left"] + result.kpis["right"] + result.kpis["outside"] == len(result.detections)
        assert result.kpis["balance"] == result.kpis["left"] - result.kpis["right"]
    pipeline.send(Configure(AppConfig(version=2, kpis="no-such"), run.sources))
    assert pipeline.wait(Raised).code == "kpi.unknown"
    pipeline.until(lambda: not pipeline.results[-1].kpis)
    assert pipeline.stop() == 0
    pipeline.until(lambda: pipeline.totals()["done"] == len(pipeline.results))
    series = [one for window in pipeline.of(Window) for one in window.series]
    counted = sum(one.values["kpi.left"].count for one in series if "kpi.left" in one.values)
    assert counted == sum(bool(result.kpis) for result in pipeline.results)
    total = sum(one.values["kpi.left"].total for one in series if "kpi.left" in one.values)
    assert total == pytest.approx(sum(result.kpis.get("left", 0.0) for result in pipeline.results))
    assert any("kpi" in one.stages for one in series)
