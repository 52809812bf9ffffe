"""A board with a weak model, a host with a good one, a real broker between them and an onlooker that counts what leaves.

Frames have black bars, which are text, and blue ones, which are not. The weak model looks at the red channel only and is half sure of both;
the good one wants darkness in all three.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from brokers import LOOPBACK, Mosquitto, mosquitto, until
from fleet_rig import AgentProcess, write_model_bundle
from pipelines import HEIGHT, WIDTH, detector_task, save_graph
from served_fleet import ServedFleet, fleet_on

from jetfleet_contract import topics
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import Result, decode
from jetfleet_contract.predictions import Detection, MatchCount, match_frame
from jetfleet_host import mqtt
from jetfleet_host.publish import publish

DEVICE = "gate-7"
FRAMES = 40
SURE = 0.6
CASCADE = f'[reader.cascade]\nbelow = {SURE}\nabove = 0.1\ndeadline_s = 30.0\nrepeat_s = 0.0\nmodel = "good:1"\n'
BOTH = 'privacy = { purposes = ["cascade", "harvest"] }\n'


def save_channel_model(path: Path, weights: tuple[float, float, float], note: str) -> Path:
    """An ONNX detector for detect-db: probability = clip(1 - weights . channels), blue first."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = -np.array(weights, np.float32).reshape(1, 3, 1, 1)
    constants = [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.array([weights_bias(note)], np.float32), "b"),
                 numpy_helper.from_array(np.float32(0.0), "low"), numpy_helper.from_array(np.float32(1.0), "high")]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["raw"]), helper.make_node("Clip", ["raw", "low", "high"], ["map"])]
    return save_graph(path, helper.make_graph(
        nodes, note, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, HEIGHT, WIDTH])], constants))


def weights_bias(note: str) -> float:
    """What a wholly dark place scores: the weak model is never sure."""
    return 0.45 if note == "weak" else 1.0


def save_weak(path: Path) -> Path:
    return save_channel_model(path, (0.0, 0.0, 0.6), "weak")


def save_good(path: Path) -> Path:
    return save_channel_model(path, (2.0, 2.0, 2.0), "good")


def scene(index: int) -> tuple[Any, tuple[Detection, ...]]:
    """Frame and truth: one black bar above, one blue bar below, both moving."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    x = 4 + (index * 3) % (WIDTH - 24)
    image[8:20, x:x + 16] = 0
    image[30:42, WIDTH - 20 - x:WIDTH - 4 - x] = (255, 0, 0)
    return image, (Detection("text", 1.0, (float(x - 3), 5.0, float(x + 19), 23.0)),)


def save_scene(path: Path) -> Path:
    import cv2

    path.mkdir(parents=True, exist_ok=True)
    for index in range(FRAMES):
        cv2.imwrite(str(path / f"{index:04}.png"), scene(index)[0])
    return path


def f1(results: list[Result]) -> float:
    """Of what is sure enough, over the frames of these results."""
    total = MatchCount()
    for result in results:
        sure = [found for found in result.detections if found.score >= SURE / 2]
        total = total.plus(match_frame(scene(result.position)[1], tuple(sure), min_iou=0.3))
    return total.f1


class Spy:
    """Hears everything on the broker."""

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.times: list[float] = []
        self.link = mqtt.MqttLink(mqtt.BrokerSettings(LOOPBACK, port), f"spy-{random.randrange(1 << 30)}",
                                  self._heard, lambda: None, lambda _: None)
        self.link.subscribe("jf/1/d/#", 1)
        self.link.start()
        until(lambda: self.link.connected, "the spy's link")

    def _heard(self, topic: str, payload: bytes) -> None:
        self.times.append(time.monotonic())
        self.messages.append((topic, payload))

    def on(self, topic: str) -> list[bytes]:
        return [payload for name, payload in list(self.messages) if name == topic]

    def results(self, *, amended: bool) -> list[Result]:
        found = []
        for payload in self.on(topics.result(DEVICE)):
            try:
                result = decode(payload, Result)
            except MalformedError:
                continue
            if result.amended == amended:
                found.append(result)
        return found


class Exhibit(NamedTuple):
    """Two models of one task, and a folder of frames to look at."""

    weak: Path
    good: Path
    task: TaskSpec
    frames: Path


def bars(folder: Path) -> Exhibit:
    """The black and the blue bars."""
    return Exhibit(save_weak(folder / "weak.onnx"), save_good(folder / "good.onnx"), detector_task(), save_scene(folder / "frames"))


class CascadeSite:
    """A published weak and a published good model, a board that looks at the frames, and a spy; nothing runs yet."""

    def __init__(self, folder: Path, broker: Mosquitto, fleet: ServedFleet, shown: Exhibit) -> None:
        self.folder, self.broker, self.fleet = folder, broker, fleet
        for name, model in (("weak", shown.weak), ("good", shown.good)):
            write_model_bundle(folder / f"{name}.bundle", name, "1", model, shown.task, ((255, ()),))
            publish(fleet.project, folder / f"{name}.bundle")
        self.agent = AgentProcess(folder / "board", DEVICE, broker.port, fleet.project.root_file)
        config = self.agent.config
        config.write_text(config.read_text().replace(str(self.agent.video), str(shown.frames)))
        host = fleet.dir / "jetfleet.toml"
        host.write_text(host.read_text().replace("# crops_per_minute = 240 ", "crops_per_minute = 6000 "))
        self.spy = Spy(broker.port)

    def begin(self, settings: str, *, fps: float = 10.0) -> None:
        """Everything up, the weak model on the board with these settings of its app."""
        self.fleet.start()
        self.agent.start()
        until(lambda: self.fleet.knows(DEVICE), f"the board's birth; {self.agent.said()[-2000:]}", 60)
        rollout = self.roll_out(settings, fps=fps)
        until(lambda: self.fleet.phase(rollout) == "done", f"the rollout's end; {self.agent.said()[-3000:]}", 120)
        until(lambda: len(self.spy.results(amended=False)) >= FRAMES, f"results; {self.agent.said()[-3000:]}", 120)

    def roll_out(self, settings: str, *, fps: float = 10.0) -> str:
        """The weak model with these settings; the rollout."""
        options = "options = { threshold = 0.2, box_threshold = 0.2 }"
        self.fleet.apps.write_text(f'[reader]\nsources = [{{ name = "front", uri = "local:front", fps = {fps}, loop = true }}]\n'
                                   f"{options}\ntrial = {{ keep_s = 1.0 }}\n{settings}")
        return self.fleet.begin("weak:1", "--all")

    def crops(self) -> list[bytes]:
        return self.spy.on(topics.crop(DEVICE))


@contextmanager
def cascade_site(folder: Path, shown: Exhibit | None = None) -> Iterator[CascadeSite]:
    """Everything is ended at the end; the bars are shown unless something else is."""
    with mosquitto() as broker, fleet_on(folder, f"{LOOPBACK}:{broker.port}") as fleet:
        site = CascadeSite(folder, broker, fleet, shown or bars(folder))
        try:
            yield site
        finally:
            if site.agent.process is not None:
                site.agent.stop()
            site.spy.link.stop()
