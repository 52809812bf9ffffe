"""Both ends of a crop's way without a network: a board's `Crops`, a host's `Crops`, and what lies between them in lists."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jetfleet_agent import ipc
from jetfleet_agent.crop_spool import CropSpool, spool_folder
from jetfleet_agent.supervisor.crops import Crops as BoardCrops
from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics
from jetfleet_contract.app_config import AppConfig, Cascade, Privacy
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.crops import Answer, Note
from jetfleet_contract.messages import AppSpec, Deployment, Instant
from jetfleet_contract.predictions import Detection
from jetfleet_contract.trust import unseal
from jetfleet_host.signing import verify_ed25519

DEVICE = "gate-7"
BUNDLE = "ab" * 32
NOTE = Note("reader", "front", 7, BUNDLE, "1", "fp32", (64, 48), (0, 0, 32, 24), (Detection("text", 0.4, (4.0, 4.0, 20.0, 20.0)),))


def jpeg(width: int = 32, height: int = 24, seed: int = 1) -> bytes:
    import cv2

    image = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


def deployment(*purposes: Any, receiver: str, per_hour: int = 1_000_000, app: str = "reader") -> Deployment:
    config = AppConfig(privacy=Privacy(purposes), cascade=Cascade(bytes_per_hour=per_hour))
    return Deployment(DEVICE, 1, time.time() + 3600, (AppSpec(app, BUNDLE, "toy", "1", config),), receiver=receiver if purposes else "")


class Wire:
    """A link that keeps what is published."""

    def __init__(self) -> None:
        self.connected = True
        self.limits = BrokerLimits()
        self.published: list[tuple[str, bytes]] = []
        self.subscribed: list[str] = []

    def subscribe(self, topic: str, qos: int) -> None:
        self.subscribed.append(topic)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        self.published.append((topic, payload))
        return True


class HostWord:
    """Opens what the host signed with one key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def from_host(self, data: bytes, kind: str, message: type[Any]) -> Any:
        return unseal(data, kind, message, (self.key,), verify_ed25519)


class Board:
    """A board's side. `say` plays its pipeline."""

    def __init__(self, folder: Path, host_key: str, session: int = 1) -> None:
        self.state, self.run = folder / "state", folder / "run"
        self.wire = Wire()
        self.told: list[tuple[str, ipc.Order]] = []
        self.mono = 100.0
        self.identity = Identity.load_or_create(folder / "identity")
        self.crops = BoardCrops(self.state, self.run, self.wire, DEVICE, session, self.identity, HostWord(host_key),
                                lambda app, order: self.told.append((app, order)), self.now)

    def now(self) -> Instant:
        return Instant(self.mono, "boot", 1_790_000_000.0 + self.mono, True)

    def say(self, note: Note = NOTE, picture: bytes = b"", app: str = "reader") -> str:
        name = CropSpool(spool_folder(self.run, app)).write(picture or jpeg())
        self.crops.ready(app, ipc.CropReady(name, note))
        return name

    @property
    def sent(self) -> list[bytes]:
        return [payload for topic, payload in self.wire.published if topic == topics.crop(DEVICE)]

    @property
    def codes(self) -> list[str]:
        return [order.code for _, order in self.told if isinstance(order, ipc.Answered)]

    def audit(self) -> list[dict[str, Any]]:
        path = self.state / "audit" / "privacy.jsonl"
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def answer(number: int, *found: Detection, code: str = "") -> Answer:
    return Answer(DEVICE, number, "toy:1", found, code)
