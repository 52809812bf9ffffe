"""A board that only gives blobs, for tests: the agent's own link, key, trust and uploads behind one queue and one thread, killable."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jetfleet_agent.config import UploadConfig
from jetfleet_agent.supervisor.identity import Identity
from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_agent.supervisor.upload_store import UploadStore
from jetfleet_agent.supervisor.uploads import Uploads
from jetfleet_contract import topics
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Birth, Capability, Command, DeviceState, Instant, Response, encode

DEVICE = "giver-1"


def now() -> Instant:
    return Instant(time.monotonic(), "test", time.time(), wall_trusted=True)


class UploadBoard:
    """`answer(command)` gives the response to a command that was really verified; None stays silent."""

    def __init__(self, folder: Path, root: bytes, port: int, settings: UploadConfig | None = None, *, session: int = 1,
                 answer: Callable[[UploadBoard, Command], Response | None] = lambda _board, _command: None) -> None:
        self.settings = settings or UploadConfig()
        self.identity = Identity.load_or_create(folder / "identity")
        self.trust = TrustStore(folder / "trust", root)
        self.store = UploadStore(folder, DEVICE, self.settings.pending, self.settings.pending_mb << 20)
        self.commands: list[Command] = []
        self.refused: list[str] = []
        self.answer = answer
        self._session = session
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        will = (topics.state(DEVICE), encode(DeviceState(DEVICE, False, session)))
        self.link = MqttLink(BrokerSettings("127.0.0.1", port), DEVICE, lambda t, p: self._queue.put(lambda: self._take(t, p)),
                             lambda: self._queue.put(self._up), lambda _: self._queue.put(self.uploads_down), will)
        self.uploads = Uploads(self.store, self.link, DEVICE, self.identity, self.trust, now, self.settings)
        for topic in (topics.META, topics.command(DEVICE)):
            self.link.subscribe(topic, 1)
        self.uploads.begin()
        self._thread = threading.Thread(target=self._run, name=DEVICE, daemon=True)
        self._thread.start()
        self.link.start()

    def do(self, work: Callable[[], object]) -> None:
        """In the control thread."""
        self._queue.put(work)

    def kill(self) -> None:
        """As a power cut: nothing is told to anybody, the files stay as they are."""
        self._queue.put(None)
        self._thread.join(20)
        self.link.stop()
        self.uploads.close()

    def respond(self, response: Response) -> None:
        self.link.publish(topics.response(DEVICE, response.seq), self.identity.sign("response", response), qos=1)

    def uploads_down(self) -> None:
        self.uploads.on_link_down()

    def _up(self) -> None:
        self.link.publish(topics.state(DEVICE), encode(DeviceState(DEVICE, True, self._session)), retain=True)
        birth = Birth(DEVICE, self._session, "0.1.0", 1, self.identity.public_hex, Capability("cpu-x86", "cpu-x86", "x86_64"))
        self.link.publish(topics.birth(DEVICE), self.identity.sign("birth", birth), retain=True)
        self.uploads.on_link_up()

    def _take(self, topic: str, payload: bytes) -> None:
        if self.uploads.on_message(topic, payload):
            return
        if topic == topics.META:
            self.trust.update(payload, now())
        elif topic == topics.command(DEVICE):
            command = self.trust.command(payload, DEVICE, now())
            self.commands.append(command)
            response = self.answer(self, command)
            if response is not None:
                self.respond(response)

    def _run(self) -> None:
        wait = 0.0
        while True:
            try:
                work = self._queue.get(timeout=max(0.001, min(wait, 0.5)))
                if work is None:
                    return
                work()
            except queue.Empty:
                pass
            except JetfleetError as error:
                self.refused.append(error.code)
            wait = self.uploads.tick()
