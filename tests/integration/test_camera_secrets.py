"""Network cameras in the real pipeline process: users and passwords are nowhere but in the connection; several share one model."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cameras import RtspCamera, camera, certificate
from pipelines import PipelineProcess, classifier_task, model_of, save_brightness_model

from jetfleet_agent.ipc import Configure, Run, SourceEvent, to_line
from jetfleet_contract.messages import AppConfig, Source

__all__ = ["camera"]  # a fixture
USER, PASSWORD = "operator", "s3cr3t-Hunter2"
WRONG = "wr0ng-Hunter3"


@pytest.mark.timeout(300)
def test_no_password_in_logs_events_or_the_list_of_processes(camera: Callable[..., RtspCamera], tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    plain = camera(user=USER, password=PASSWORD)
    digest = camera(user=USER, password=PASSWORD, auth="digest")
    tls = camera(user=USER, password=PASSWORD, certificate=chain, key=key)
    silent = socket.create_server(("127.0.0.1", 0))
    unused = socket.create_server(("127.0.0.1", 0))
    closed = unused.getsockname()[1]
    unused.close()
    good, bad = f"{USER}:{PASSWORD}", f"{USER}:{WRONG}"
    sources = (
        Source("plain", plain.uri(good), 5.0), Source("digest", digest.uri(good), 5.0), Source("tls", tls.uri(good, scheme="rtsps"), 5.0),
        Source("wrong", plain.uri(bad)), Source("path", plain.uri(good, path="/none")),
        Source("black-hole", f"rtsp://{good}@127.0.0.1:{silent.getsockname()[1]}/live?token={PASSWORD}"),
        Source("refused", f"rtsp://{good}@127.0.0.1:{closed}/live"), Source("dns", f"rtsp://{good}@no-such-camera.invalid/live"),
        Source("broken", f"rtsp://{good}@127.0.0.1:999999/live"))
    model = model_of(save_brightness_model(tmp_path / "model.onnx"), classifier_task())
    process = PipelineProcess(tmp_path / "run", environment={"JETFLEET_LOG": "debug"})
    try:
        process.send(Run(model, AppConfig(), sources, window_s=0.5))
        live, failing = {"plain", "digest", "tls"}, {"wrong", "path", "black-hole", "refused", "dns", "broken"}
        process.until(lambda: live <= {result.source for result in process.results}, 120.0)
        process.until(lambda: failing <= {event.source for event in process.of(SourceEvent) if not event.up}, 120.0)
        command_lines = "\0".join("\0".join(each.cmdline()) for each in (psutil.Process(process.process.pid),
                                                                          *psutil.Process(process.process.pid).children(recursive=True)))
        plain.kill()
        process.until(lambda: any(event.source == "plain" and not event.up for event in process.of(SourceEvent)), 120.0)
        process.send(Configure(AppConfig(), sources[1:3]))
        assert process.stop() == 0
    finally:
        process.close()
        silent.close()
    told = b"".join(to_line(event) for event in process.events).decode()
    for place, text in (("the log", process.log.read_text(errors="replace")), ("events", told), ("the list of processes", command_lines)):
        for secret in (PASSWORD, WRONG, USER):
            assert secret not in text, f"{secret} stands in {place}"
    codes = {event.source: event.code for event in process.of(SourceEvent) if not event.up and event.source in failing}
    assert codes["wrong"] == "source.auth"
    assert codes["refused"] == "source.refused"
    assert codes["dns"] == "source.dns"


@pytest.mark.timeout(300)
def test_three_cameras_share_one_model_fairly_and_one_leaves_without_a_restart(camera: Callable[..., RtspCamera], tmp_path: Path) -> None:
    cameras = [camera(fps=20) for _ in range(3)]
    sources = tuple(Source(f"cam{index}", one.uri(), 10.0) for index, one in enumerate(cameras))
    model = model_of(save_brightness_model(tmp_path / "model.onnx"), classifier_task())
    process = PipelineProcess(tmp_path / "run")
    try:
        process.send(Run(model, AppConfig(), sources, window_s=0.5))

        def counts() -> list[int]:
            return [sum(result.source == source.name for result in process.results) for source in sources]

        process.until(lambda: min(counts()) >= 1, 120.0)
        start = counts()
        process.until(lambda: min(now - then for now, then in zip(counts(), start, strict=True)) >= 30, 120.0)
        shares = [now - then for now, then in zip(counts(), start, strict=True)]
        assert max(shares) <= 2 * min(shares), (shares, process.of(SourceEvent))
        pid = process.process.pid
        process.send(Configure(AppConfig(), sources[1:]))
        before = counts()
        process.until(lambda: counts()[1] >= before[1] + 20, 120.0)
        assert counts()[0] <= before[0] + 2, "a camera that left goes on"
        assert process.process.pid == pid
        assert process.stop() == 0
    finally:
        process.close()
