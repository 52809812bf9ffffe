"""The control side of a fleet: one process, one control thread, one queue.

The link's thread only fills the queue. The control thread stores what boards say (in batches, one transaction each), drives
the rollouts, paces the delivery of blobs and keeps the broker's retained messages as they should be: the embedded broker
keeps nothing, so all of them are published again at every connection. Nothing but the database and the project folder
has to survive this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_contract import topics
from jetfleet_contract.broker_limits import BrokerLimits, check_chunks, findings
from jetfleet_contract.chunks import MAX_CHUNK_BYTES
from jetfleet_contract.errors import InputError, JetfleetError, OrderError, StorageError, TransportError
from jetfleet_contract.messages import Ack, Instant, encode

from . import signing
from .accounts import PublishedBytes
from .assignments import Assignments, with_pages
from .collector import Collector, Incoming, Ingested
from .command_driver import CommandDriver
from .crop_keys import CropKeys
from .crops import CropBounds, Crops
from .delegations import blobs_of_classes, engine_blobs
from .delivery import DeliverySettings, Distributor
from .delivery_control import DeliveryControl, HostBudget
from .engine_driver import EngineDriver
from .experiments import ExperimentDriver
from .kernels.signed import kernel_blobs
from .project import Project
from .publish import published, served_blobs
from .repository import meta_package, refresh_timestamp
from .retained import Retained
from .rollouts import RolloutDriver
from .store.database import Database
from .upload_files import UploadFiles
from .uploads import Uploads
from .writer import Writer

QUEUE_MESSAGES = 20_000
BATCH = 250
"""Messages a turn. Chunks are paced between turns, so a long one makes every device of a round wait."""
POLL_S = 0.25
STALL_S = 5.0
RETRY_S = 1.0
REFRESH_S = 600.0
DEVICE_TOPICS = (topics.ALL_BIRTHS, topics.ALL_STATES, topics.ALL_REPORTS, topics.ALL_TELEMETRY, topics.ALL_WANTS,
                 topics.ALL_OFFERS, topics.ALL_RESPONSES, topics.ALL_CROPS, topics.ALL_ENGINE_WORDS)
STANDBY_S = 0.5
COUNT_S = 5.0

_log = logging.getLogger(__name__)


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    @property
    def backlog(self) -> int: ...
    @property
    def limits(self) -> BrokerLimits: ...
    def refuses(self, topic: str, payload: bytes) -> TransportError | None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def subscribe(self, topic: str, qos: int) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


LinkFactory = Callable[[Callable[[str, bytes], None], Callable[[], None], Callable[[str], None]], Link]
"""`(on_message, on_up, on_down) -> link`; the callbacks come from the link's own thread."""


class Broker(Protocol):
    """What is used of an embedded broker: it is started again when its process ended."""

    @property
    def running(self) -> bool: ...
    def start(self) -> None: ...


class _Up(msgspec.Struct, frozen=True):
    pass


class _Down(msgspec.Struct, frozen=True):
    reason: str


class _Woken(msgspec.Struct, frozen=True):
    """Another thread has work for this one."""


class Server:
    """Collector, distributor and rollout driver behind one link.

    Args:
        clock: read once a turn.
        notify: told `(event, detail)` when the link comes (`up`) and goes (`down`), and what the broker does not take (`limits`).
        broker: the embedded broker, when this process is the one that keeps it running.
    """

    def __init__(self, project: Project, link_factory: LinkFactory, clock: Callable[[], Instant],
                 notify: Callable[[str, str], None] = lambda _event, _detail: None, broker: Broker | None = None) -> None:
        self._project = project
        self._broker = broker
        self._clock = clock
        self._notify = notify
        self._queue: queue.Queue[Incoming | _Up | _Down | _Woken] = queue.Queue(QUEUE_MESSAGES)
        self._database = Database.open(project.database_url)
        self._link = link_factory(self._heard, self._went_up, self._went_down)
        self._collector = Collector(self._database, signing.verify_device)
        self._writer = Writer(self._database, f"{socket.gethostname()} {clock().boot_id[:8]} {project.dir}")
        self._driver = RolloutDriver(self._writer, lambda d: signing.sign_deployment(project, d), self._publish_desired,
                                     lambda bundle: bundle in self._bundles, lambda bundle: self._bundles.get(bundle, ("", 0)),
                                     CropKeys(project.keys_dir).receiver)
        self._experiments = ExperimentDriver(self._writer)
        self._assignments = Assignments(self._database)
        self._distributor = Distributor(self._link, project.blobs, _delivery_settings(project), self._assignments.allowed,
                                        self._assignments.chunk_size)
        self._commands = CommandDriver(self._writer, self._link, lambda c: signing.sign_command(project, c), signing.verify_device)
        self._uploads = Uploads(self._writer, self._link, UploadFiles(project.dir / "uploads"), signing.verify_device,
                                lambda v: signing.sign_verdict(project, v), project.settings.uploads.bounds)
        self._crops = Crops(project, self._writer, self._link, signing.verify_device, lambda a: signing.sign_answer(project, a),
                            _crop_bounds(project), self._wake)
        self._engines = EngineDriver(project, self._writer, UploadFiles(project.dir / "uploads"), signing.verify_device)
        self._published = PublishedBytes(self._writer)
        self._delivery = DeliveryControl(self._writer, self._distributor, _host_budget(project), self._assignments.blobs_of,
                                         lambda blob: self._names.get(blob, ""))
        self._names: dict[str, str] = {}
        self._bundles: dict[str, tuple[str, int]] = {}
        self._cuts: frozenset[int] = frozenset()
        self._retained = Retained(self._link, lambda: self._writer.fresh(self._clock().mono), self._too_much)
        self._unsaved: list[Incoming] = []
        self._retry_at = self._poll_at = self._refresh_at = self._count_at = 0.0
        self._meta_stamp = (0, 0)
        self._signers: tuple[str, ...] = ()
        self._resync = True
        self.dropped = 0

    def run(self, stop: threading.Event) -> None:
        """Stand by until no other process serves the database; then serve until `stop` is set, finish the turn in hand and leave.

        Raises:
            OrderError: `serve.superseded` when another process has taken over; a new Server stands by.
            InputError, StorageError: the project or its database cannot be used at all. InputError `broker.packet-size`: what is published
                cannot travel over the broker that the project names.
        """
        try:
            if self._stand_by(stop):
                self._serve(stop)
            self._writer.release()
        finally:
            self._database.close()

    def _stand_by(self, stop: threading.Event) -> bool:
        """Wait for the lease, without a link: two distributors would publish everything twice. False: asked to stop."""
        told = ""
        while not self._writer.tick(self._clock().mono):
            if self._writer.other != told:
                told = self._writer.other
                self._notify("standby", told)
            if stop.wait(STANDBY_S):
                return False
        return True

    def _serve(self, stop: threading.Event) -> None:
        self._follow_meta(self._clock())
        check_chunks(self._link.limits, self._cuts, "what is published")
        for topic in DEVICE_TOPICS:
            self._link.subscribe(topic, 1)
        self._link.subscribe(topics.ALL_RESULTS, 0)
        self._link.start()
        try:
            while not stop.is_set():
                self._turn()
        finally:
            self._link.stop()
            self._uploads.close()
            self._crops.close()
            self._engines.close()
            self._store([item for item in self._taken(0.0) if isinstance(item, Incoming)], self._clock())
            self._guarded(lambda _now: self._published.keep(self._distributor.stats), self._clock())
            self._guarded(self._delivery.close, self._clock())

    # --- the link's thread --------------------------------------------------------------------------------------

    def _heard(self, topic: str, payload: bytes) -> None:
        part = topics.said(topic) == "up"
        if part and not self._uploads.gate.enter(len(payload)):
            return  # it is asked for again
        if not self._put(Incoming(topic, payload, self._clock().wall)) and part:
            self._uploads.gate.leave(len(payload))

    def _wake(self) -> None:
        self._put(_Woken())

    def _went_up(self) -> None:
        self._put(_Up())

    def _went_down(self, reason: str) -> None:
        self._put(_Down(reason))

    def _put(self, item: Incoming | _Up | _Down | _Woken) -> bool:
        """A full queue holds the link's thread back for a while, and so the broker; then the message is dropped and counted."""
        try:
            self._queue.put(item, timeout=STALL_S)
        except queue.Full:
            self.dropped += 1  # reports come again until acknowledged, windows show as gaps
            return False
        return True

    # --- the control thread -------------------------------------------------------------------------------------

    def _stay_in_office(self, now: Instant) -> None:
        try:
            if self._writer.holds:  # a write may have found it gone; then what we know is old, even if it is free again
                self._writer.tick(now.mono)
        except StorageError as error:
            _log.error("%s", error.diagnostics())  # nobody can take over either while the database is away
        if not self._writer.holds:
            raise OrderError("serve.superseded", "another jetfleet serve has taken over this database", where=str(self._project.dir),
                             remedy="this one stands by now; nothing is lost")

    def _turn(self) -> None:
        now = self._clock()
        self._stay_in_office(now)
        wait = min(self._distributor.tick(now.mono), self._tick_uploads(now), POLL_S)
        batch: list[Incoming] = []
        for item in self._taken(max(wait, 0.0)):
            if isinstance(item, Incoming):
                self._sort(item, batch)
            elif not isinstance(item, _Woken):
                self._link_changed(item)
        now = self._clock()
        self._guarded(self._crops.tick, now)
        self._store(batch, now)
        if now.mono >= self._poll_at:
            self._poll_at = now.mono + POLL_S
            self._guarded(self._poll, now)
        self._retained.publish()

    def _taken(self, wait: float) -> Iterator[Incoming | _Up | _Down | _Woken]:
        """What the queue holds, at most one batch; waits for the first only."""
        with contextlib.suppress(queue.Empty):
            yield self._queue.get(timeout=wait)
            for _ in range(BATCH - 1):
                yield self._queue.get_nowait()

    def _sort(self, message: Incoming, batch: list[Incoming]) -> None:
        said = topics.said(message.topic)
        if message.topic.startswith(f"{topics.PREFIX}/b/"):
            self._distributor.on_want(message.topic, message.payload, self._clock().mono)
        elif said == "up":
            self._uploads.gate.leave(len(message.payload))
            self._guarded(lambda now: self._uploads.on_part(message.topic, message.payload, now), self._clock())
        elif said == "offer":
            self._guarded(lambda now: self._uploads.on_offer(message, now), self._clock())
        elif said == "crop":
            self._guarded(lambda now: self._crops.on_crop(message, now), self._clock())
        elif said == "engine":
            self._guarded(lambda now: self._engines.on_word(message, now), self._clock())
        elif said == "rsp":
            self._guarded(lambda _now: self._commands.on_response(message), self._clock())
        else:
            batch.append(message)

    def _tick_uploads(self, now: Instant) -> float:
        waits = [POLL_S]
        self._guarded(lambda at: waits.append(self._uploads.tick(at)), now)
        return min(waits)

    def _link_changed(self, item: _Up | _Down) -> None:
        if isinstance(item, _Down):
            self._distributor.on_link_down(self._clock().mono)
            self._uploads.on_link_down(self._clock())
            self._notify("down", item.reason)
            return
        self._meta_stamp = (0, 0)  # whatever the broker held may be gone
        self._guarded(self._follow_meta, self._clock())
        self._guarded(self._retain_desired, self._clock())
        self._retained.publish()
        self._guarded(self._uploads.on_link_up, self._clock())
        self._notify("up", f"{len(self._retained)} retained messages wait")
        self._judge_broker()

    def _judge_broker(self) -> None:
        """Say what does not work over this broker."""
        limits = self._link.limits
        told = [(finding.code, finding.what, finding.remedy) for finding in findings(limits)]
        try:
            check_chunks(limits, self._cuts, "what is published")
        except InputError as error:
            told.append((error.code, error.what, error.remedy))
        for code, what, remedy in told:
            self._tell_limit(code, what, remedy)

    def _too_much(self, error: TransportError, topic: str) -> None:
        self._tell_limit(error.code, f"{error.what}: {topic}", error.remedy)

    def _tell_limit(self, code: str, what: str, remedy: str) -> None:
        _log.error("%s [%s]; %s", what, code, remedy)
        self._notify("limits", f"{what} [{code}]; {remedy}")

    def _store(self, batch: list[Incoming], now: Instant) -> None:
        """Store what came; what the database cannot take now is tried again, bounded, oldest dropped first."""
        self._unsaved += batch
        if not self._unsaved or now.mono < self._retry_at:
            return
        waiting, self._unsaved = self._unsaved, []
        try:
            self._digest(self._collector.ingest(waiting), now)
        except StorageError as error:
            if error.code == "store.value":
                self._store_singly(waiting, now)
                return
            _log.error("%s", error.diagnostics())
            self._retry_at = now.mono + RETRY_S
            self._resync = True
            self.dropped += max(0, len(waiting) - QUEUE_MESSAGES)
            self._unsaved = waiting[-QUEUE_MESSAGES:]

    def _store_singly(self, batch: list[Incoming], now: Instant) -> None:
        """One message has a value that the database refuses: find it, leave it out, keep the others."""
        for message in batch:
            self._store_one(message, now)

    def _store_one(self, message: Incoming, now: Instant) -> None:
        try:
            self._digest(self._collector.ingest([message]), now)
        except StorageError as error:
            self.dropped += 1
            _log.error("a message on %s cannot be stored: %s", message.topic, error.what)

    def _digest(self, outcome: Ingested, now: Instant) -> None:
        for device, number in outcome.acks:
            self._link.publish(topics.ack(device), encode(Ack(number)))
        if outcome.reports:
            self._guarded(lambda at: self._driver.on_reports(outcome.reports, at), now)

    def _poll(self, now: Instant) -> None:
        if self._broker is not None and not self._broker.running:
            _log.error("the embedded broker ended by itself and is started again")
            self._broker.start()
        self._follow_meta(now)
        if self._resync:
            self._driver.restore(now)
            self._uploads.restore(now)
            self._resync = False
        self._driver.poll_requests(now)
        self._driver.tick(now)
        self._experiments.tick(now)
        self._engines.poll(now)
        self._commands.poll(now)
        self._delivery.poll(now)
        if now.mono >= self._count_at:
            self._count_at = now.mono + COUNT_S
            self._published.keep(self._distributor.stats)

    def _guarded(self, work: Callable[[Instant], None], now: Instant) -> None:
        """A full disk or an unreadable repository stops this piece of work, not the process; it is tried again."""
        try:
            work(now)
        except JetfleetError as error:
            _log.error("%s", error.diagnostics())
            self._resync = True

    # --- retained messages --------------------------------------------------------------------------------------

    def _follow_meta(self, now: Instant) -> None:
        """Renew the timestamp when due, and publish the metadata whenever the repository changed, by whomever."""
        if now.mono >= self._refresh_at:
            refresh_timestamp(self._project, now.wall)
            self._refresh_at = now.mono + REFRESH_S
        stamp = _stamp(self._project.repo_dir / "timestamp.json")
        if stamp == self._meta_stamp:
            return
        package = meta_package(self._project)
        served = served_blobs(self._project)
        self._bundles = {target.manifest: (target.name, target.release) for target in published(self._project)}
        self._names = {blob: f"{target.name}:{target.version}" for target in published(self._project)
                       for blob in served.get(target.manifest, ())}
        kernels = kernel_blobs(self._project)
        self._cuts = frozenset(min(info.size, info.chunk_size) for every in (*served.values(), kernels) for info in every.values())
        classes = {one.blob: one.info for one in blobs_of_classes(self._project.repository.load().snapshot.signed)}
        self._assignments.offer({manifest: with_pages(every, self._small_blob) for manifest, every in served.items()},
                                with_pages({**classes, **kernels}, self._small_blob),
                                {name: with_pages(every, self._small_blob) for name, every in engine_blobs(self._project).items()})
        self._retained.put_first(topics.META, package)  # boards need it before any deployment
        keys = self._project.repository.load().keys.deployment
        if self._signers not in ((), keys):
            self._retain_desired(now)
        self._signers = keys
        self._meta_stamp = stamp

    def _retain_desired(self, _now: Instant) -> None:
        """Every board's deployment again, signed by the key that counts now."""
        for device, envelope in signing.resigned(self._project, self._driver.retained()):
            self._retained.put(topics.desired(device), envelope)

    def _small_blob(self, blob: str) -> bytes:
        return self._project.blobs.read(blob, 0, MAX_CHUNK_BYTES)

    def _publish_desired(self, device: str, envelope: bytes) -> None:
        self._assignments.changed(device)
        self._retained.put(topics.desired(device), envelope)


@contextlib.contextmanager
def only_server(folder: Path) -> Iterator[None]:
    """Hold the project folder; a second `serve` on it ends with InputError `serve.running`. The lock dies with the process."""
    with (folder / "serve.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("serve.running", f"another jetfleet serve runs on {folder}", where=str(folder),
                             remedy="stop it first, or leave it running") from None
        yield


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)


def _crop_bounds(project: Project) -> CropBounds:
    section = project.settings.harvest
    return CropBounds(section.crops_per_minute, section.waiting, section.keep_mb * 1_000_000, section.threads)


def _host_budget(project: Project) -> HostBudget:
    return HostBudget(project.settings.delivery.mb_per_day, project.settings.delivery.hours)


def _delivery_settings(project: Project) -> DeliverySettings:
    rates = (project.settings.delivery.rate_mbit_s * 125_000, project.settings.broker.limits.max_bytes_s)
    return DeliverySettings(rate_bytes_s=min((rate for rate in rates if rate), default=DeliverySettings().rate_bytes_s))
