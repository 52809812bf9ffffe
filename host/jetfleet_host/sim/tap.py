"""A listener beside the devices: what the host really published, as the broker passed it on."""

from __future__ import annotations

import asyncio
import hashlib
import random

from jetfleet_contract import topics
from jetfleet_contract.errors import InputError, TransportError
from jetfleet_contract.messages import Deployment, Envelope, decode

from .links import Connector, DeviceLink
from .transfers import is_chunk

ALL_CHUNKS = f"{topics.PREFIX}/b/+/c/#"
ALL_UNICASTS = f"{topics.PREFIX}/b/+/u/+"
ALL_DESIRED = f"{topics.PREFIX}/d/+/desired"
SETTLE_S = 1.0
CONNECT_S = 30.0


class Tap:
    """Counts chunk payloads, and keeps what each deployment number of each device was seen to contain."""

    def __init__(self, connector: Connector, name: str) -> None:
        self.chunks = 0
        self.chunk_bytes = 0
        self.unicast_bytes = 0
        self.deployments: dict[str, dict[int, set[str]]] = {}
        self.issued: dict[str, list[tuple[int, str]]] = {}
        self._strange_meta = False
        self._up = asyncio.Event()
        self.link = DeviceLink(connector, name, self._heard, self._up.set, lambda: None, random.SystemRandom())

    async def start(self) -> None:
        """Connect, and make sure that nobody else's fleet lives on this broker.

        Raises:
            TransportError: `sim.broker` when there is none. InputError: `sim.broker-used`.
        """
        self.link.subscribe(topics.META, 1)
        self.link.start()
        try:
            await asyncio.wait_for(self._up.wait(), CONNECT_S)
        except TimeoutError:
            raise TransportError("sim.broker", "no broker answers", where=f"{self.link.address.host}:{self.link.address.port}",
                                 remedy="start it, or leave --broker out") from None
        await asyncio.sleep(SETTLE_S)
        if self._strange_meta:
            raise InputError("sim.broker-used", "a fleet lives on this broker: its metadata would be overwritten", where="--broker",
                             remedy="rehearse on a broker of its own: leave --broker out")
        self.link.unsubscribe(topics.META)
        for topic in (ALL_CHUNKS, ALL_UNICASTS):
            self.link.subscribe(topic, 0)
        self.link.subscribe(ALL_DESIRED, 1)

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic == topics.META:
            self._strange_meta = self._strange_meta or bool(payload)
        elif topic.endswith("/desired"):
            self._desired(topic, payload)
        elif is_chunk(topic, payload):
            self.chunks += 1
            self.chunk_bytes += len(payload)
            self.unicast_bytes += len(payload) if topic.split("/")[4] == "u" else 0

    def _desired(self, topic: str, payload: bytes) -> None:
        if not payload:
            return
        body = bytes(decode(payload, Envelope).signed)
        found = decode(body, Deployment)
        bodies = self.deployments.setdefault(topics.device_of(topic), {}).setdefault(found.seq, set())
        if not bodies:
            self.issued.setdefault(found.device, []).append((found.seq, found.rollout))
        bodies.add(hashlib.sha256(body).hexdigest())
