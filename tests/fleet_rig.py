"""A small real fleet for tests: project folder, signed publications, a host behind a real broker, and agents as real processes.

The host here is links, distributor and signatures without the database; the agent is `jetfleet-agent run` itself.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brokers import LOOPBACK, until
from pipelines import classifier_task, detector_task, save_map_model, save_video

from jetfleet_contract import topics
from jetfleet_contract.bundle import (
    Evaluation,
    EvaluationRow,
    ModelSpec,
    ProbeItem,
    ProbeSet,
    TaskSpec,
    Variant,
    digest_of,
)
from jetfleet_contract.engines import EngineWord
from jetfleet_contract.messages import (
    Ack,
    AppConfig,
    AppSpec,
    Birth,
    Command,
    Deployment,
    DeviceState,
    Envelope,
    Report,
    Response,
    Result,
    Source,
    Telemetry,
    TrialPolicy,
    decode,
    encode,
)
from jetfleet_contract.predictions import Detection
from jetfleet_host import mqtt
from jetfleet_host.bundles import write_bundle
from jetfleet_host.delivery import Distributor
from jetfleet_host.project import Project
from jetfleet_host.publish import publish
from jetfleet_host.repository import meta_package
from jetfleet_host.signing import sign_command, sign_deployment, verify_device

POLICY = TrialPolicy(frames=12, max_p99_ratio=1000.0, lease_s=120.0, keep_s=1.0)


def make_model_bundle(out: Path, version: str, *, wrong: bool = False, broken: bool = False, task: TaskSpec | None = None) -> str:
    """A brightness classifier as a bundle; gives the manifest's blob. `wrong`: answers the opposite; `broken`: weights are no ONNX; `task`:
    what its outputs are taken for."""
    out.parent.mkdir(parents=True, exist_ok=True)
    model = _save_model(out.parent / f"brightness-{version}.onnx", wrong=wrong, note=version)
    if broken:
        model.write_bytes(b"this is no model " * 100)
    answers = ((20, (Detection("dark", 0.99),)), (230, (Detection("bright", 0.99),)))
    return write_model_bundle(out, "brightness", version, model, task or classifier_task(), answers)


def make_padded_bundle(out: Path, size: int) -> str:
    """The brightness classifier, version 1, in a file of about `size` bytes that nothing compresses; gives the manifest's blob."""
    out.parent.mkdir(parents=True, exist_ok=True)
    model = _save_model(out.parent / "brightness-padded.onnx", wrong=False, note=random.Random(size).randbytes(size // 2).hex())
    answers = ((20, (Detection("dark", 0.99),)), (230, (Detection("bright", 0.99),)))
    return write_model_bundle(out, "brightness", "1", model, classifier_task(), answers)


def make_detector_bundle(out: Path, version: str) -> str:
    """A detector of dark areas as a bundle; gives the manifest's blob."""
    out.parent.mkdir(parents=True, exist_ok=True)
    model = save_map_model(out.parent / f"dark-{version}.onnx")
    return write_model_bundle(out, "dark-areas", version, model, detector_task(), ((255, ()),))


def write_model_bundle(out: Path, name: str, version: str, model: Path, task: TaskSpec,
                       answers: tuple[tuple[int, tuple[Detection, ...]], ...], backend: str = "onnxruntime") -> str:
    """`answers` are probe images of one grey level each, and what the reference says of them; `backend` is the one that was evaluated."""
    import cv2
    import numpy as np

    data = model.read_bytes()
    variant = Variant("fp32", digest_of(data), len(data), "fp32")
    spec = ModelSpec(name, version, task, (variant,), ("cpu-x86", "cpu-arm64"))
    row = EvaluationRow("fp32", backend, "fp32", "top1", 1.0, 0.0, 1.0, 2, 1.0, 1.0, len(data), "accepted", "")
    evaluation = Evaluation("top1", f"fp32@{backend}:fp32", 0.5, "a test", (row,))
    files: dict[str, bytes | Path] = {}
    items = []
    for level, expected in answers:
        image = np.full((48, 64, 3), level, np.uint8)
        png = cv2.imencode(".png", image)[1].tobytes()
        files[digest_of(png)] = png
        items.append(ProbeItem(digest_of(png), expected))
    digest = write_bundle(out, spec=spec, evaluation=evaluation, probe=ProbeSet(tuple(items)), files=files, weights=[(variant, model)],
                          annotations={})
    return digest.removeprefix("sha256:")


def _save_model(path: Path, *, wrong: bool, note: str) -> Path:
    """Logits (1 - mean, mean) * 10, or the opposite; `note` makes the bytes of each version their own."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    sign = -1.0 if wrong else 1.0
    weights = [numpy_helper.from_array(np.array([[-10 / 3 * sign, 10 / 3 * sign]] * 3, np.float32), "w"),
               numpy_helper.from_array(np.array([10.0, 0.0] if not wrong else [0.0, 10.0], np.float32), "b")]
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
             helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    graph = helper.make_graph(nodes, "brightness", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 48, 64])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, doc_string=note)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


class HostRig:
    """A project with a link to a broker. Everything boards say is kept in lists; reports are acknowledged unless `mute`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.project = Project.init(folder / "project", broker=f"{LOOPBACK}:{port}")
        self.births: dict[str, Birth] = {}
        self.states: dict[str, DeviceState] = {}
        self.reports: list[Report] = []
        self.telemetry: list[Telemetry] = []
        self.results: list[Result] = []
        self.responses: list[Response] = []
        self.engine_words: list[EngineWord] = []
        self.faults: list[BaseException] = []
        self.mute = False
        self.seq = 0
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._link = mqtt.MqttLink(mqtt.BrokerSettings(LOOPBACK, port), "host", lambda t, p: self._queue.put((t, p)), self.publish_meta,
                                   lambda _reason: None)
        self._distributor = Distributor(self._link, self.project.blobs)
        self._thread = threading.Thread(target=self._run, name="host-rig", daemon=True)
        for topic in (topics.ALL_WANTS, topics.ALL_BIRTHS, topics.ALL_STATES, topics.ALL_REPORTS, topics.ALL_TELEMETRY,
                      topics.ALL_RESULTS, topics.ALL_ENGINE_WORDS, f"{topics.PREFIX}/d/+/rsp/+"):
            self._link.subscribe(topic, 1)
        self._thread.start()
        self._link.start()

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join(10)
        self._link.stop()

    def publish_meta(self) -> None:
        self._link.publish(topics.META, meta_package(self.project), qos=1, retain=True)

    def publish(self, version: str, **options: Any) -> str:
        """Build and publish a model; gives the bundle's manifest blob."""
        bundle = make_model_bundle(self.folder / "bundles" / f"brightness-{version}", version, **options)
        publish(self.project, self.folder / "bundles" / f"brightness-{version}")
        self.publish_meta()
        return bundle

    def publish_detector(self, version: str) -> str:
        """Build and publish the detector; gives the bundle's manifest blob."""
        bundle = make_detector_bundle(self.folder / "bundles" / f"dark-{version}", version)
        publish(self.project, self.folder / "bundles" / f"dark-{version}")
        self.publish_meta()
        return bundle

    def deploy(self, device: str, *apps: AppSpec) -> int:
        """Sign and publish the next deployment; gives its number."""
        self.seq += 1
        deployment = Deployment(device, self.seq, time.time() + 3600, apps, rollout=f"r{self.seq}")
        self._link.publish(topics.desired(device), sign_deployment(self.project, deployment), qos=1, retain=True)
        return self.seq

    def command(self, device: str, seq: int, op: Any, **args: str) -> None:
        self._link.publish(topics.command(device), sign_command(self.project, Command(device, seq, time.time() + 60, op, args)), qos=1)

    def outcome(self, seq: int, app: str = "gate", deadline_s: float = 60.0) -> Report:
        """Wait for the outcome of an app's update."""
        def found() -> list[Report]:
            return [r for r in list(self.reports) if r.seq == seq and r.app == app and r.outcome]

        until(found, f"the outcome of deployment {seq} of {app}; so far: {[(r.phase, r.code) for r in self.reports]}", deadline_s)
        return found()[0]

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=max(0.001, self._distributor.tick(time.monotonic())))
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                self._take(*item)
            except Exception as error:  # noqa: BLE001  kept for the test to look at
                self.faults.append(error)

    def _take(self, topic: str, payload: bytes) -> None:
        leaf = topic.rsplit("/", 1)[-1]
        if "/want/" in topic:
            self._distributor.on_want(topic, payload, time.monotonic())
            return
        device = topics.device_of(topic)
        if leaf == "state":
            self.states[device] = decode(payload, DeviceState)
        elif leaf == "telemetry":
            self.telemetry.append(verify_device(payload, self.births[device].key, "telemetry", Telemetry))
        elif leaf == "result":
            self.results.append(decode(payload, Result))
        elif leaf == "engine":
            self.engine_words.append(verify_device(payload, self.births[device].key, "engine", EngineWord))
        elif leaf == "birth":
            key = decode(payload, Envelope).signatures[0].keyid
            self.births[device] = verify_device(payload, key, "birth", Birth)
        elif "/rsp/" in topic:
            self.responses.append(verify_device(payload, self.births[device].key, "response", Response))
        elif leaf == "report":
            report = verify_device(payload, self.births[device].key, "report", Report)
            if report.id not in {known.id for known in self.reports}:
                self.reports.append(report)
            if not self.mute:
                self._link.publish(topics.ack(device), encode(Ack(report.id)), qos=1)


class AgentProcess:
    """`jetfleet-agent run` with a config of its own; `kill` is a power cut for it, `stop` a polite end."""

    def __init__(self, folder: Path, device: str, port: int, root: Path, *, host: str = LOOPBACK, prefix: Sequence[str] = (),
                 keepalive_s: int = 30) -> None:
        self._prefix = prefix
        folder.mkdir(parents=True, exist_ok=True)
        self.device = device
        self.folder = folder
        self.video = save_video(folder / "front.avi", 60)
        self.config = folder / "agent.toml"
        self.log = folder / "agent.log"
        self.config.write_text(
            f'device = "{device}"\nroot = "{root}"\nstate_dir = "{folder / "state"}"\nwindow_s = 0.5\nthreads = 1\n'
            f'[broker]\nhost = "{host}"\nport = {port}\nkeepalive_s = {keepalive_s}\n[local_sources]\nfront = "{self.video}"\n'
            '[measure]\nruns = 3\nwarmup = 1\n')
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> AgentProcess:
        with self.log.open("ab") as log:
            command = [*self._prefix, sys.executable, "-m", "jetfleet_agent.daemon", "run", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, "PYTHONUNBUFFERED": "1"})
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def app_spec(bundle: str, version: str, *, app: str = "gate", config: int = 1, policy: TrialPolicy = POLICY,
             source: str = "local:front", fps: float = 60.0) -> AppSpec:
    """The app of these tests: the brightness model on the board's looping video."""
    sources = (Source("front", source, fps, loop=True),)
    return AppSpec(app, bundle, "brightness", version, AppConfig(config), sources, trial=policy)
