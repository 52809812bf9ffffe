"""The supervisor: one control thread, one queue of events, everything else is a port.

It blocks on the queue until something arrives or the earliest deadline of its parts has come; nothing polls. Whatever a message or a
pipeline does, the loop goes on: an error is logged with its code and counted, and the running models keep running.

Wiring (the composition root does this, in this order)::

    inbox, journal = Inbox(), Journal(state / "journal")
    session = begin_session(journal, clock())
    link = WatchedLink(lambda: MqttLink(broker, device, inbox.message, inbox.link_up, inbox.link_down, will=will(device, session)),
                       inbox.link_down, time.monotonic)
    fetcher = DeltaFetcher(store, lambda done, failed: Fetcher(store, link, device, clock, done, failed), PatchProcess(), inbox.blob_done,
                           inbox.blob_failed)
    pipelines = Pipelines(PipelineLink(run_folder(state) / "supervisor.sock", inbox.put), time.monotonic, random.random)
    uploads = Uploads(UploadStore(state, device, ...), link, device, identity, trust, clock, config.upload)
    Supervisor(config, session, inbox, journal, link, trust, store, fetcher, uploads, identity, chooser, pipelines, clock).run()
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from jetfleet_agent import ipc
from jetfleet_agent.config import AgentConfig
from jetfleet_agent.thermal import read_thermal
from jetfleet_contract import CONTRACT_VERSION, __version__, topics
from jetfleet_contract.broker_limits import payload_room
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import JetfleetError, StorageError
from jetfleet_contract.kernel_sets import RECEIVED_FOLDER
from jetfleet_contract.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    Birth,
    Deployment,
    DeviceState,
    Instant,
    Report,
    decode,
    encode,
)

from .alarms import StandingAlarms
from .board_bench import BENCH, BoardBench, Working
from .bundle_reader import Blobs
from .commands import Commands, Signer
from .crash_log import CRASHES, CrashLog
from .crops import NoCrops
from .delegated import ClassMetadata
from .desired import Desired
from .effects import EffectRunner, RunSettings
from .engine_ports import EngineCache, NoEngines
from .governing import Governing
from .heat import HeatWatch
from .inbox import AppEvent, Arrived, BlobDone, BlobFailed, Inbox, Item, LinkDown, LinkUp, PipelineEnded, PipelineSaid, StopAll
from .journal import Journal
from .metrics import Metrics
from .outbox import Outbox
from .pipeline_news import news_of
from .pipelines import Pipelines
from .ports import Choices, Leaving, Link, Secrets, Ticking, Transfers, Trust, Uploading
from .rechoice import Rechoice
from .results import ResultDelivery
from .sealed_secrets import NoSecrets
from .signed_kernels import SignedKernels
from .telemetry import BoardGauges, TelemetryWindows
from .updater import Updater

log = logging.getLogger(__name__)

MAX_BATCH = 64
MAX_IDLE_S = 30.0
MAX_TROUBLE_S = 1.0
TELEMETRY_EXPIRY_WINDOWS = 30


def begin_session(journal: Journal, now: Instant) -> int:
    """Count this start, durably when the disk lets us: the next start then has a higher number."""
    record = journal.board(int(now.wall))
    session = record.session + 1
    try:
        journal.save_board(msgspec.structs.replace(record, session=session))
    except StorageError as error:
        log.warning("the session counter is not stored: %s", error.what)
    return session


def will(device: str, session: int) -> tuple[str, bytes]:
    """Topic and payload of the last will: this session is offline."""
    return topics.state(device), encode(DeviceState(device, False, session))


class Supervisor:
    """See the module.

    Args:
        session: from `begin_session`.
        log_lines: the last so many lines of this process's log.
        beat: called each time round the loop: a watchdog is fed only while the control thread makes progress.
        sysfs: the root of the kernel's ``/sys``.
        free_mb: memory that new work may take now, MB; 0: nobody knows.
        metrics: is told what there is to scrape.
        secret_store: what was sealed to this board; without one it takes no secrets.
        conditions: the board's power mode and clocks now. engines: what its class shares; without it models are compiled here.
        crops: the way out for what pipelines are not sure of; without one no picture leaves.
        sm: of this board's GPU, 0 without one: whose kernels it keeps.
        bench: measures for the host; without it the board measures only for itself.
    """

    def __init__(self, config: AgentConfig, session: int, inbox: Inbox, journal: Journal, link: Link, trust: Trust, store: Blobs,
                 fetcher: Transfers, uploads: Uploading, identity: Signer, chooser: Choices, pipelines: Pipelines,
                 clock: Callable[[], Instant], *, log_lines: Callable[[int], list[str]] = lambda _count: [],
                 beat: Callable[[], None] = lambda: None, sysfs: Path = Path("/sys"),
                 secret_store: Secrets | None = None, crops: Leaving | None = None, free_mb: Callable[[], float] = lambda: 0.0,
                 metrics: Metrics | None = None, conditions: Callable[[], Conditions] = Conditions,
                 engines: EngineCache | None = None, sm: int = 0, bench: Working | None = None) -> None:
        self._device = config.device
        self._session = session
        self._instance = secrets.token_hex(8)
        self._inbox = inbox
        self._journal = journal
        self._link = link
        self._trust = trust
        self._fetcher = fetcher
        self._uploads = uploads
        self._crops: Leaving = crops or NoCrops()
        self._identity = identity
        self._chooser = chooser
        self._pipelines = pipelines
        self._clock = clock
        self._beat = beat
        self._metrics = metrics or Metrics()
        self._crash_log = CrashLog(config.state_dir / CRASHES)
        self._outbox = Outbox(config.state_dir / "reports", config.device, session, self._signed_report, random.random)
        places = config.results
        settings = RunSettings(config.local_sources, config.threads, config.window_s, places.folder or str(config.state_dir / "results"),
                               places.max_mb, places.sockets or str(pipelines.result_folder), places.preview_address, config.stuck_s,
                               str(config.state_dir))
        self._secrets: Secrets = secret_store or NoSecrets()
        self._results = ResultDelivery(config.device, link, pipelines.config, self._secrets, places.webhook_ca,
                                       lambda: clock().mono, random.random)
        self._engines: EngineCache = engines or NoEngines()
        self._runner = EffectRunner(trust, store, fetcher, chooser, pipelines, self._outbox, inbox.put, clock, settings,
                                    self._secrets, free_mb, self._engines)
        self._updater = Updater(journal, self._runner, self._outbox, clock, config.external)
        self._alarms = StandingAlarms()
        self._governing = Governing(pipelines, config.governor.rule, self._alarms.note, lambda: clock().mono, sysfs)
        self._bench = BoardBench(config.state_dir / BENCH, bench, store, lambda: self._updater.states, lambda: read_thermal(sysfs),
                                 self._governing.reasons, lambda: self._engines.building) if bench is not None else None
        self._commands = Commands(config.device, link, trust, identity, pipelines, uploads, log_lines,
                                  self._updater.app_states, lambda: self._runner.choices, clock, self._secrets,
                                  self._updater.sources_changed, self._engines, self._bench)
        self._class_metadata = ClassMetadata(chooser.capability.device_class, trust, store, fetcher, clock)
        self._kernels = SignedKernels(config.state_dir / RECEIVED_FOLDER, sm, trust, store, fetcher, clock)
        self._desired = Desired(config.device, msgspec.structs.replace(journal.board(), session=session), trust, journal.save_board,
                                self._metadata_renewed, self._deploy, self._count, clock)
        now = clock()
        self._windows = TelemetryWindows(config.device, session, config.window_s, now.mono, now.wall)
        self._window_s = config.window_s
        self._gauges = BoardGauges(pipelines.pids, sysfs)
        self._heat = HeatWatch(self._gauges.heat, lambda: self._updater.states, pipelines.heat, self._updater.event,
                               lambda: clock().mono)
        self._refused: dict[str, int] = {}
        self._running = True
        again = Rechoice(conditions, chooser.chosen_under, lambda: self._updater.states, self._runner, lambda: clock().mono,
                         config.measure.settle_s)
        self._ticking: tuple[Ticking, ...] = (link, fetcher, self._updater, pipelines, uploads, self._crops, self._class_metadata,
                                              self._results, self._governing, self._heat, again, self._engines,
                                              self._kernels, self._commands)

    # --- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `Inbox.stop`; then stop the pipelines and say goodbye."""
        self._begin()
        while self._running:
            self._turn()
            self._beat()
        self._end()

    def _begin(self) -> None:
        for topic in (topics.META, topics.desired(self._device), topics.command(self._device), topics.ack(self._device)):
            self._link.subscribe(topic, 1)
        self._uploads.begin()
        self._crops.begin()
        self._pipelines.begin()
        self._updater.resume()
        self._guarded("stored deployment", self._desired.resume)
        self._link.start()

    def _turn(self) -> None:
        wait = self._deadlines()
        for _ in range(MAX_BATCH):
            item = self._inbox.take(wait)
            if item is None:
                return
            self._guarded(type(item).__name__, partial(self._handle, item))
            wait = 0.0

    def _deadlines(self) -> float:
        """Let every part do what is due; seconds until the first of them wants to be called again."""
        wait = min(MAX_IDLE_S, *(self._ticked(part) for part in self._ticking))
        now = self._clock()
        self._guarded("reports", lambda: self._send_reports(now))
        self._guarded("telemetry", lambda: self._send_telemetry(now))
        if self._updater.changed or self._desired.changed:
            self._guarded("birth", self._send_birth)
        if self._desired.metadata_due(now.mono):
            self._guarded("metadata", self._desired.take_metadata)
        if self._desired.deployment_due(now.mono):
            self._guarded("deployment", self._desired.take_deployment)
        due = self._outbox.next_due(now.mono) if self._link.connected else None
        return min(wait, self._windows.due_s(now.mono), wait if due is None else due, self._desired.due_s(now.mono))

    def _ticked(self, part: Ticking) -> float:
        waits = [MAX_TROUBLE_S]
        self._guarded(type(part).__name__, lambda: waits.append(part.tick()))
        return waits[-1]

    def _end(self) -> None:
        self._inbox.close()
        self._crash_log.close()
        self._pipelines.finish()
        self._results.close()
        self._chooser.stop()
        self._engines.close()
        if self._bench is not None:
            self._bench.close()
        self._fetcher.close()
        self._uploads.close()
        self._link.publish(*will(self._device, self._session), qos=1, retain=True)
        self._link.stop()

    def _guarded(self, what: str, work: Callable[[], None]) -> None:
        """One bad message must not end the loop that would receive its cure."""
        try:
            work()
        except JetfleetError as error:
            self._count(error.code)
            log.warning("%s: %s [%s]", what, error.what, error.code)
        except Exception:
            self._count("internal")
            log.exception("%s could not be handled", what)

    def _count(self, code: str) -> None:
        if code in self._refused or len(self._refused) < 16:
            self._refused[code] = self._refused.get(code, 0) + 1

    # --- what arrives -------------------------------------------------------------------------------------

    def _handle(self, item: Item) -> None:
        match item:
            case Arrived():
                self._message(item.topic, item.payload)
            case LinkUp():
                self._up()
            case LinkDown():
                log.info("broker lost: %s", item.reason)
                self._fetcher.on_link_down()
                self._uploads.on_link_down()
            case BlobDone():
                self._runner.blob_done(item.blob)
                self._class_metadata.blob_done(item.blob)
                self._engines.blob_done(item.blob)
                self._kernels.blob_done(item.blob)
            case BlobFailed():
                self._runner.blob_failed(item.blob, item.error)
                self._class_metadata.blob_failed(item.blob, item.error)
                self._engines.blob_failed(item.blob, item.error)
                self._kernels.blob_failed(item.blob, item.error)
            case AppEvent():
                self._updater.answered(item)
            case PipelineSaid():
                self._said(item)
            case PipelineEnded():
                self._alarms.forget(item.app)
                crash = self._pipelines.ended(item)
                if crash is not None:
                    log.warning("%s: pipeline ended: %s %s", item.app, crash.code, crash.detail)
                    now = self._clock()
                    self._crash_log.note(item.app, crash.code, crash.detail, now.wall, now.mono)
                    self._updater.event(item.app, crash)
                self._load_anew(item.app, crash.code if crash is not None else "")
            case StopAll():
                self._running = False

    def _load_anew(self, app: str, crash: str) -> None:
        """The next start of an app whose process ended is told what to load: an engine that came meanwhile, or none when it is doubted."""
        other = self._engines.ended(app, crash)
        if (other or self._engines.is_news(app)) and app in self._pipelines.configs() and app not in self._pipelines.pids():
            self._runner.load_anew(app, self._updater.states.get(app))

    def _message(self, topic: str, payload: bytes) -> None:
        if self._fetcher.on_message(topic, payload) or self._uploads.on_message(topic, payload) or (
                self._crops.on_message(topic, payload)):
            return
        if topic == topics.META:
            if payload:
                self._desired.metadata(payload)
        elif topic == topics.desired(self._device):
            if payload:
                self._desired.deployment(payload)
        elif topic == topics.ack(self._device):
            self._outbox.acknowledged(decode(payload, Ack, limit=1024).id)
        elif topic == topics.command(self._device):
            self._commands.arrived(payload)

    def _up(self) -> None:
        log.info("broker connected")
        self._link.publish(topics.state(self._device), encode(DeviceState(self._device, True, self._session)), qos=1, retain=True)
        self._send_birth()
        self._outbox.hurry()
        self._runner.try_again()
        self._class_metadata.follow()
        self._engines.follow()
        self._kernels.follow()
        self._fetcher.on_link_up()
        self._uploads.on_link_up()
        self._crops.on_link_up()

    def _said(self, item: PipelineSaid) -> None:
        if not self._pipelines.said(item):
            return
        app, event = item.app, item.event
        if isinstance(event, ipc.Running):
            self._engines.serves(app)
        news = news_of(app, event, self._pipelines.gap_ms, self._heat.since)
        if news is not None:
            self._updater.event(app, news)
            return
        match event:
            case ipc.Window():
                self._windows.add(app, event)
                self._governing.heard(app, event)
                self._metrics.add(app, event)
            case ipc.Results():
                self._results.send(app, event.results)
            case ipc.CropReady():
                self._crops.ready(app, event)
            case ipc.SourceEvent() | ipc.Raised() | ipc.Stuck():
                self._alarms.hear(app, event)
                if isinstance(event, ipc.Raised) and event.up and event.code.startswith("engine."):
                    self._engines.failed(app, event.code)
            case ipc.Failed():
                log.warning("%s: %s %s", app, event.code, event.detail)
            case ipc.Hello():
                log.info("%s: pipeline process %d", app, event.pid)

    def _deploy(self, deployment: Deployment) -> None:
        """What may leave the board counts first: a policy that is withdrawn must not wait for a model."""
        self._crops.follow(deployment)
        self._updater.deploy(deployment)

    def _metadata_renewed(self) -> None:
        self._runner.try_again()
        self._class_metadata.follow()
        self._engines.follow()
        self._kernels.follow()

    # --- what goes out ------------------------------------------------------------------------------------

    def _signed_report(self, report: Report) -> bytes:
        return self._identity.sign("report", report)

    def _send_reports(self, now: Instant) -> None:
        if not self._link.connected:
            return
        for body in self._outbox.due(now.mono):
            self._link.publish(topics.report(self._device), body, qos=1)

    def _send_telemetry(self, now: Instant) -> None:
        if self._windows.due_s(now.mono) > 0:
            return
        topic = topics.telemetry(self._device)
        room = payload_room(self._link.limits, topic, MAX_MESSAGE_BYTES)
        gauges, alarms = self._read_gauges(), self._alarms.now()
        self._metrics.board(gauges, self._updater.app_states(), alarms, connected=self._link.connected)
        for window in self._windows.take(now.mono, now.wall, gauges, room, alarms):
            self._link.publish(topic, self._identity.sign("telemetry", window), qos=1,
                               expiry_s=max(int(self._window_s * TELEMETRY_EXPIRY_WINDOWS), 60))

    def _read_gauges(self) -> dict[str, float]:
        counters = {"order_errors": self._updater.order_errors, "storage_errors": self._updater.storage_errors,
                    "reports_waiting": len(self._outbox), "uploads_waiting": self._uploads.waiting,
                    "upload_bytes": self._uploads.sent_bytes}
        crashes = {f"{app}.crashes": float(count) for app, count in self._pipelines.crashes().items()}
        refused = {f"refused.{code}": float(count) for code, count in {**self._link.refused, **self._refused}.items()}
        own = {name: float(value) for name, value in counters.items()}
        return {**self._gauges.read(), **self._governing.gauges(), **own, **self._link.gauges, **self._fetcher.gauges,
                **self._crops.gauges, **crashes, **refused, **self._results.gauges}

    def _send_birth(self) -> None:
        if not self._link.connected:
            return
        self._updater.changed = self._desired.changed = False
        birth = Birth(self._device, self._session, __version__, CONTRACT_VERSION, self._identity.public_hex, self._chooser.capability,
                      self._updater.app_states(), self._desired.seq, self._instance, self._secrets.public_hex)
        self._link.publish(topics.birth(self._device), self._identity.sign("birth", birth), qos=1, retain=True)

