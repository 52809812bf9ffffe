"""One run of a virtual device's agent, from its start to its end: link, trust, transfers, slot machines, reports, telemetry.

It mirrors the agent's supervisor over the same contract. Everything runs through `Device.guard`, so that a planned blow at a durable
write ends the life exactly there.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable

import msgspec

from jetfleet_contract import CONTRACT_VERSION, __version__, topics
from jetfleet_contract.errors import JetfleetError, UntrustedError
from jetfleet_contract.listening import is_bulk
from jetfleet_contract.messages import Ack, Birth, Deployment, DeviceState, Instant, Message, Telemetry, decode, encode
from jetfleet_contract.slot_records import Progress
from jetfleet_contract.trust import message_digest

from .apps import Apps
from .chunk_port import ChunkPort
from .device import Device
from .inference import ModelTraits, window_series
from .links import DeviceLink
from .outbox import Outbox
from .transfers import Transfers, is_chunk
from .trust import DeviceTrust

DESIRED_RETRY_S = 2.0
MAX_IDLE_S = 60.0
FPS = 10.0
EXPIRY_WINDOWS = 30
_PATIENT = ("trust.no-metadata", "trust.unknown-key", "trust.expired")


class BoardRecord(Message, frozen=True):
    """What the whole device remembers: its session counter, and the last deployment that it accepted."""

    session: int = 0
    seq: int = 0
    digest: str = ""
    deployment: Deployment | None = None


class Life:
    """See the module."""

    def __init__(self, device: Device, draws: random.Random) -> None:
        self.device = device
        self.disk = device.disk
        self.board = device.board
        self.draws = draws
        self.over = False
        self._loop = device.world.loop
        record = decode(self.disk.get("board") or b"{}", BoardRecord, limit=1 << 20)
        self.session = record.session + 1
        self._record = msgspec.structs.replace(record, session=self.session)
        self.disk.put("board", encode(self._record))
        if record.deployment is not None:
            self._note_accepted(record.deployment)
        self._instance = f"{draws.getrandbits(64):016x}"
        self.link = DeviceLink(device.world.connector, device.name, self._arrived, self._guarded(self._up), self._guarded(self._down),
                               draws, will=self._state(False), pause_s=device.slow_s)
        self.trust = DeviceTrust(device.world.packages, device.name)
        self.port = ChunkPort(device.faults.chunks, device.chunk_draws, device.ledger.port, self._chunk, self.later)
        self.port.calm = device.calm
        self.transfers = Transfers(self.disk, self.link, device.name, device.world.shared, device.ledger.transfers, draws,
                                   device.clock.mono, self._blob_done, self._blob_failed)
        self.outbox = Outbox(self.disk, device.name, self.session, lambda report: device.sign("report", report), draws.random, device.told)
        self.apps = Apps(self)
        self._desired: bytes | None = None
        self._desired_at = 0.0
        self._window_due = device.clock.mono() + device.world.window_s * draws.uniform(0.2, 1.0)
        self._wake: asyncio.TimerHandle | None = None

    # --- what the machines use --------------------------------------------------------------------------------

    def now(self) -> Instant:
        return self.device.clock.now()

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Run `work` after a while, unless this life is over by then."""
        self._loop.call_later(seconds, self._guarded(work))

    def report(self, app: str, progress: Progress) -> None:
        self.outbox.add(app, progress, self.now().wall)

    def traits(self, bundle: str) -> ModelTraits:
        return self.device.world.traits(bundle)

    def refuses(self, bundle: str) -> bool:
        return self.device.refuses(bundle)

    def count(self, code: str) -> None:
        self.device.ledger.count(code)

    # --- its course -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        for topic in (topics.META, topics.desired(self.device.name), topics.ack(self.device.name)):
            self.link.subscribe(topic, 1)
        self.apps.resume()
        if self._record.deployment is not None:
            self.apps.deploy(self._record.deployment)
        self.link.start()
        self.soon()

    def cut(self) -> None:
        """It is over, here and now."""
        self.over = True
        self.port.close()
        self.link.cut()
        if self._wake is not None:
            self._wake.cancel()

    def sleep(self, asleep: bool) -> None:
        self.link.sleep(asleep)

    def heal(self) -> None:
        """Nothing more goes wrong: read at full speed, awake, an undisturbed port."""
        self.port.calm = True
        self.link.hurry()
        self.outbox.hurry()
        self.soon()

    def close_window(self) -> None:
        """Send a last window now, and none after it."""
        self.device.guard(lambda: self._send_window(self.now()))
        self._window_due = math.inf

    @property
    def settled(self) -> bool:
        """Nothing is under way: no update, no report, no message on its way to the broker."""
        idle = all(state.phase == "idle" for state in self.apps.states.values())
        return idle and self._desired is None and not len(self.outbox) and not self.transfers.busy and self.link.idle

    def soon(self) -> None:
        self._schedule(0.0)

    # --- turns ------------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if not self.over:
                self.device.guard(work)
            if not self.over:
                self._schedule(0.0)

        return run

    def _schedule(self, seconds: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._loop.call_later(seconds, self._turn)

    def _turn(self) -> None:
        if not self.over:
            self.device.guard(self._due)

    def _due(self) -> None:
        """Let every part do what is due, then sleep until the first of them wants to be called again."""
        wait = min(self.transfers.tick(), self.apps.tick())
        now = self.now()
        if self._desired is not None and now.mono >= self._desired_at:
            self._apply_desired()
        if now.mono >= self._window_due:
            self._send_window(now)
        if self.link.connected:
            for body in self.outbox.due(now.mono):
                self.link.publish(topics.report(self.device.name), body)
            if self.apps.changed:
                self._send_birth()
            wait = min(wait, self.outbox.next_due(now.mono))
        wait = min(wait, self._window_due - now.mono, MAX_IDLE_S)
        if self._desired is not None:
            wait = min(wait, self._desired_at - now.mono)
        self._schedule(max(wait, 0.0))

    # --- what arrives -----------------------------------------------------------------------------------------

    def _arrived(self, topic: str, payload: bytes) -> None:
        self._guarded(lambda: self._message(topic, payload))()

    def _message(self, topic: str, payload: bytes) -> None:
        if is_bulk(topic):
            if is_chunk(topic, payload):
                self.port.take(topic, payload)
            else:
                self.transfers.on_mark(topic, payload)
        elif topic == topics.META:
            if payload and self.trust.update(payload, self.now().wall - self.device.clock.skew):
                self.apps.try_again()
                self._desired_at = 0.0
        elif topic == topics.desired(self.device.name):
            if payload:
                self._desired, self._desired_at = payload, 0.0
        elif topic == topics.ack(self.device.name):
            number = decode(payload, Ack, limit=1024).id
            self.device.ledger.acked.add(number)
            self.outbox.acknowledged(number)

    def _blob_done(self, blob: str) -> None:
        self.apps.blob_done(blob)

    def _blob_failed(self, blob: str, error: JetfleetError) -> None:
        self.apps.blob_failed(blob, error)

    def _chunk(self, topic: str, payload: bytes) -> None:
        self.transfers.on_chunk(topic, payload)

    def _up(self) -> None:
        self.link.publish(*self._state(True), retain=True)
        self._send_birth()
        self.outbox.hurry()
        self.apps.try_again()
        self.transfers.on_link_up()

    def _down(self) -> None:
        self.transfers.on_link_down()

    # --- deployments ------------------------------------------------------------------------------------------

    def _apply_desired(self) -> None:
        """Verify and apply; kept and tried again when it came before the metadata, or by a clock that is wrong."""
        data, record, now = self._desired, self._record, self.now()
        if data is None:
            return
        self._desired_at = now.mono + DESIRED_RETRY_S
        try:
            deployment = self.trust.deployment(data, record.seq, record.digest, now)
        except UntrustedError as error:
            if error.code not in _PATIENT:
                self._desired = None
            raise
        except JetfleetError:
            self._desired = None
            raise
        if deployment.seq != record.seq:
            taken = msgspec.structs.replace(record, seq=deployment.seq, digest=message_digest(deployment), deployment=deployment)
            self.disk.put("board", encode(taken))
            self._record = taken
            self._note_accepted(deployment)
            self.apps.changed = True
        self._desired = None
        self.apps.deploy(deployment)

    def _note_accepted(self, deployment: Deployment) -> None:
        bundle = deployment.apps[0].bundle if deployment.apps else ""
        self.device.ledger.accepted.setdefault(deployment.seq, (time.time(), deployment.rollout, bundle))

    # --- what it says -----------------------------------------------------------------------------------------

    def _state(self, online: bool) -> tuple[str, bytes]:
        return topics.state(self.device.name), encode(DeviceState(self.device.name, online, self.session))

    def _send_birth(self) -> None:
        self.apps.changed = False
        birth = Birth(self.device.name, self.session, __version__, CONTRACT_VERSION, self.device.public_hex, self.board.capability,
                      self.apps.inventory(), self._record.seq, self._instance)
        self.link.publish(topics.birth(self.device.name), self.device.sign("birth", birth), retain=True)

    def _send_window(self, now: Instant) -> None:
        seconds = self.device.world.window_s
        self._window_due = now.mono + seconds
        series = tuple(window_series(self.board, self.traits(slot.bundle), app, slot, seconds, FPS, self.draws)
                       for app, slot in sorted(self.apps.running.items()))
        sent = self.device.ledger.windows.setdefault(self.session, [])
        sent.append(sum(one.done for one in series))
        gauges = {"reports_waiting": float(len(self.outbox)), "temperature_c": 45.0 + 5.0 * self.draws.random()}
        window = Telemetry(self.device.name, self.session, len(sent), now.wall, seconds, series, gauges)
        self.link.publish(topics.telemetry(self.device.name), self.device.sign("telemetry", window),
                          expiry_s=max(60, int(seconds * EXPIRY_WINDOWS)))
