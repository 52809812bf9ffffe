"""The agent's command line and the device's one composition root: reads arguments and environment, wires, runs.

Each command is a function from parsed arguments to an exit code. Every JetfleetError ends as one clear message and its own
exit code; with ``--json`` it is also an object on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import msgspec

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError, StorageError
from jetfleet_contract.footings import footing_of, why_no_footing
from jetfleet_contract.messages import Capability, encode
from jetfleet_contract.policy import Choice, Measurement, leaner

from . import doctor, state_lock
from .arguments import parser
from .bench import Wish, bench, lone_model, record_of
from .boards import board_names, detect_board, load_board
from .bundle_folder import BundleFolder, read_bundle
from .capability import Machine, l4t_release, probe, probe_machine
from .clocks import BoardClock
from .config import EXAMPLE, AgentConfig, MeasureConfig, load
from .doctor_kernels import kernels_line
from .explained import Explained, with_engines
from .gpu_probe import gpu_of
from .power import read_conditions
from .recent_log import FORMAT, RecentLines
from .status import CHOOSER, ENGINES, JOURNAL, model_of, read_status
from .supervisor.audit import read_audit
from .supervisor.bench_work import BenchWork
from .supervisor.board_bench import BENCH
from .supervisor.chooser import Chooser
from .supervisor.core import Supervisor, begin_session, will
from .supervisor.crops import Crops
from .supervisor.deltas import DeltaFetcher
from .supervisor.engine_record import EngineMemory
from .supervisor.engine_work import EngineWork
from .supervisor.engines import Engines
from .supervisor.evaluation_process import EvaluationProcess
from .supervisor.fetch import Fetcher
from .supervisor.identity import Identity
from .supervisor.inbox import Inbox
from .supervisor.journal import Journal
from .supervisor.measurements import ChoiceRecord, MeasurementStore
from .supervisor.memory import BoardMemory
from .supervisor.metrics import Metrics
from .supervisor.metrics_server import MetricsServer
from .supervisor.mirror import Mirror
from .supervisor.mqtt import BrokerSettings, MqttLink
from .supervisor.patch_process import PatchProcess
from .supervisor.pipeline_link import PipelineLink, run_folder
from .supervisor.pipelines import Pipelines
from .supervisor.sealed_secrets import SecretStore
from .supervisor.store import BlobStore
from .supervisor.trust import TrustStore
from .supervisor.upload_store import UploadStore
from .supervisor.uploads import Uploads
from .supervisor.watched_link import WatchedLink
from .supervisor.web import WebFolder, WebSettings
from .systemd_notify import Heartbeat, ServiceManager
from .tables import audit_text, bench_text, capability_text, checks_text, choice_text, status_text

log = logging.getLogger(__name__)

def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    parsed = parser(COMMANDS).parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING, stream=sys.stderr, format=FORMAT)
    try:
        code = parsed.command(parsed)
    except JetfleetError as error:
        if parsed.json:
            print(json.dumps({"error": {"code": error.code, "what": error.what, "where": error.where, "remedy": error.remedy}}))
        print(f"jetfleet-agent: {error.diagnostics()}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("jetfleet-agent: stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


# --- commands -----------------------------------------------------------------------------------------------


def _run(parsed: argparse.Namespace) -> int:
    if parsed.example:
        print(EXAMPLE, end="")
        return 0
    config = load(parsed.config)
    with state_lock.hold(config.state_dir):
        return run_agent(config, parsed.config, _configured_capability(config), _kept_lines())


def _probe(parsed: argparse.Namespace) -> int:
    if parsed.boards:
        boards = [load_board(name) for name in board_names()]
        _show(parsed, boards, "\n".join(f"{b.board:20} {b.title} ({b.support}) {b.why_not}".rstrip() for b in boards))
        return 0
    capability = _capability(parsed.board)
    gpu = capability.gpu
    found = kernels_line(gpu.sm, int(gpu.driver.partition(".")[0] or 0)) if gpu is not None else ""
    _show(parsed, capability, capability_text(capability, found))
    return 0


def _explain(parsed: argparse.Namespace) -> int:
    if parsed.bundle:
        bundle, capability = read_bundle(parsed.bundle), _capability(parsed.board)
        choice = _choose_now(bundle, capability, parsed.threads)
        records: tuple[Explained, ...] = (Explained(bundle.spec.name, bundle.spec.version, time.time(), capability, choice,
                                                    conditions=read_conditions()),)
    else:
        config = load(parsed.config)
        records = with_engines(config, _kept_choices(config, parsed.app))
    text = "\n\n".join(choice_text(f"{r.name} {r.version} on {r.capability.board}", r.choice, r.conditions.text if r.conditions else "",
                                  leaner(r.choice, r.measured), r.engines) for r in records)
    _show(parsed, records, text)
    return 0 if all(record.choice.chosen for record in records) else IncompatibleError.exit_code


def _bench(parsed: argparse.Namespace) -> int:
    bundle = _bench_input(parsed)
    capability = _capability(parsed.board)
    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as folder:
        process = EvaluationProcess(Path(folder), parsed.timeout, nice=0)
        interrupted = _interrupts(process.stop)
        wish = Wish(parsed.source, parsed.threads, parsed.runs, parsed.warmup, parsed.rounds, parsed.tune, parsed.provider,
                    tuple(parsed.candidate))
        rows = bench(bundle, capability, process.run, wish, functools.partial(_say_progress, interrupted))
        _end_if(interrupted)
    if parsed.record:
        _write_record(parsed.record, encode(record_of(bundle, capability, read_conditions(), wish, rows, time.time())))
    _show(parsed, rows, bench_text(f"{bundle.spec.name} on {capability.board}, {capability.cpu}, {capability.cores} cores", rows))
    return 0 if any(not row.error for row in rows) else IncompatibleError.exit_code


def _doctor(parsed: argparse.Namespace) -> int:
    checks = doctor.examine(parsed.config, _configured_capability, try_broker)
    _show(parsed, checks, checks_text(checks))
    return doctor.exit_code(checks)


def _status(parsed: argparse.Namespace) -> int:
    status = read_status(load(parsed.config))
    _show(parsed, status, status_text(status))
    return 0


def _audit(parsed: argparse.Namespace) -> int:
    config = load(parsed.config)
    lines = [line for line in read_audit(config.state_dir / "audit") if parsed.app in ("", line.app)][-parsed.last:]
    _show(parsed, lines, audit_text(lines))
    return 0


# --- the agent itself ---------------------------------------------------------------------------------------


def _kept_lines() -> RecentLines:
    """Keep the last lines of the log at level INFO, whatever standard error shows."""
    recent, root = RecentLines(), logging.getLogger()
    for shown in root.handlers:
        shown.setLevel(root.level)
    for ours in (logging.getLogger("jetfleet_agent"), log):
        ours.setLevel(logging.INFO)
    root.addHandler(recent)
    return recent


def run_agent(config: AgentConfig, path: Path, capability: Capability, recent: RecentLines) -> int:
    """Wire the supervisor and run it in this thread until SIGTERM or SIGINT; then stop the pipelines and end with 0. `path`: its config."""
    state, clock, inbox = config.state_dir, BoardClock(), Inbox()
    journal = Journal(state / JOURNAL)
    trust = TrustStore(state / "trust", config.root.read_bytes(), config.clock.policy)
    identity = Identity.load_or_create(state / "identity")
    store = BlobStore(state)
    session = begin_session(journal, clock())
    link = WatchedLink(lambda: MqttLink(_broker_settings(config), config.device, inbox.message, inbox.link_up, inbox.link_down,
                                        will=will(config.device, session)), inbox.link_down, time.monotonic)
    fetcher = DeltaFetcher(store, lambda done, failed: Fetcher(store, link, config.device, clock, done, failed, _mirror(config)),
                           PatchProcess(), inbox.blob_done, inbox.blob_failed)
    waiting = UploadStore(state, config.device, config.upload.pending, config.upload.pending_mb << 20)
    uploads = Uploads(waiting, link, config.device, identity, trust, clock, config.upload)
    run = run_folder(state)
    pipelines = Pipelines(PipelineLink(run / "supervisor.sock", inbox.put), time.monotonic, random.random,
                          external=(sys.executable, "-m", "jetfleet_agent.external", "--config", str(path.resolve())),
                          external_start_s={app: settings.start_s for app, settings in config.external.items()})
    crops = Crops(state, run, link, config.device, session, identity, trust, pipelines.tell, clock)
    memory = BoardMemory()
    chooser = Chooser(capability, state / CHOOSER, threads=config.threads, memory_mb=config.memory_mb, measure=config.measure,
                      free_mb=memory.free_mb, conditions=read_conditions, kernels=str(state))
    work = EngineWork(state / ENGINES, threads=config.threads, nice=config.measure.nice, free_mb=memory.free_mb)
    engines = Engines(config.device, capability.device_class, functools.partial(footing_of, capability), trust, store, fetcher, uploads,
                      identity, link, work, EngineMemory(state / ENGINES), clock, random.random,
                      lacks=functools.partial(why_no_footing, capability), under=lambda: read_conditions().text)
    manager = ServiceManager(os.environ, os.getpid())
    heart = Heartbeat(manager, f"{config.device}, {capability.board}, session {session}", time.monotonic)
    metrics = Metrics()
    supervisor = Supervisor(config, session, inbox, journal, link, trust, store, fetcher, uploads, identity, chooser, pipelines,
                            clock, log_lines=recent.last, beat=heart.beat,
                            secret_store=SecretStore(state / "identity", config.device), crops=crops,
                            free_mb=memory.free_mb, metrics=metrics, conditions=read_conditions, engines=engines,
                            sm=gpu_of(load_board(capability.board), l4t_release(Path("/"))).sm,
                            bench=BenchWork(state / BENCH, capability, threads=config.threads, free_mb=memory.free_mb,
                                            conditions=read_conditions, kernels=str(state)))
    server = MetricsServer(config.metrics.address, config.metrics.port, metrics.text) if config.metrics.port else None
    _stop_on_signals(inbox.stop)
    log.info("agent of %s runs on %s, session %d", config.device, capability.board, session)
    supervisor.run()
    manager.stopping()
    if server is not None:
        server.stop()
    return 0


def _stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` once a signal asks us to end.

    The handler only writes a byte: the queue that `stop` uses has a lock, and the interrupted thread may be holding it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        os.read(reader, 1)
        stop()

    def note(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"s")

    threading.Thread(target=wait, name="signals", daemon=True).start()
    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)


def try_broker(config: AgentConfig) -> doctor.Tried:
    """Connect once, as this agent would but under another client id: why the broker does not accept us, or what it takes."""
    attempt = doctor.BrokerProbe()
    link = MqttLink(_broker_settings(config), f"{config.device}-doctor", lambda _topic, _payload: None, attempt.up, attempt.down)
    link.start()
    try:
        return doctor.Tried(attempt.outcome(doctor.BROKER_WAIT_S), link.limits)
    finally:
        link.stop()


def _mirror(config: AgentConfig) -> Mirror | None:
    """The second transport, when there is one."""
    section = config.mirror
    if not section.url:
        return None
    return Mirror(WebFolder(WebSettings(section.url, section.ca, section.cert, section.key, section.min_kbit_s * 125.0)), section.mode)


def _broker_settings(config: AgentConfig) -> BrokerSettings:
    broker = config.broker
    return BrokerSettings(host=broker.host, port=broker.port, username=broker.username, password_file=broker.password_file, ca=broker.ca,
                          cert=broker.cert, key=broker.key, keepalive_s=broker.keepalive_s, limits=broker.limits)


# --- what the commands share --------------------------------------------------------------------------------


def _configured_capability(config: AgentConfig) -> Capability:
    machine = probe_machine()
    board = _detected(machine) if config.board == "auto" else load_board(config.board)
    return probe(board, config.simulate, machine=machine)


def _detected(machine: Machine) -> BoardFile:
    return detect_board(machine.arch, machine.compatible, machine.isa, machine.drivers)


def _capability(name: str) -> Capability:
    """This machine; or, when another board is named, that board put over this machine (and the output says so)."""
    machine = probe_machine()
    if name == "auto":
        return probe(_detected(machine), False, machine=machine)
    board = load_board(name)
    try:
        return probe(board, False, machine=machine)
    except IncompatibleError:
        return probe(board, True, machine=machine)


def _choose_now(bundle: BundleFolder, capability: Capability, threads: int) -> Choice:
    chosen: list[Choice] = []
    ready = threading.Event()

    def done(choice: Choice) -> None:
        chosen.append(choice)
        ready.set()

    with tempfile.TemporaryDirectory(prefix="jetfleet-explain-") as folder:
        chooser = Chooser(capability, Path(folder), threads=threads, measure=MeasureConfig(nice=0), progress=_say_measured)
        try:
            chooser.choose(bundle.spec, bundle.evaluation, bundle.paths, bundle.images, done)
            ready.wait()
        finally:
            chooser.stop()
    return chosen[0]


def _kept_choices(config: AgentConfig, app: str) -> tuple[ChoiceRecord, ...]:
    records = MeasurementStore(config.state_dir / CHOOSER).choices()
    if app:
        name, version = model_of(config, app)
        records = tuple(record for record in records if (record.name, record.version) == (name, version))
    if not records:
        raise InputError("explain.nothing", "this board has not chosen anything yet" + (f" for app {app!r}" if app else ""),
                         where=str(config.state_dir), remedy="roll a model out to it, or give --bundle DIR to measure a bundle now")
    return records


def _bench_input(parsed: argparse.Namespace) -> BundleFolder:
    if parsed.bundle:
        return read_bundle(parsed.bundle)
    width, _, height = parsed.size.partition("x")
    if not (width.isdigit() and height.isdigit() and 0 < int(width) <= 8192 and 0 < int(height) <= 8192):
        raise InputError("bench.size", f"--size {parsed.size!r} is not WIDTHxHEIGHT", remedy="for example --size 640x480")
    return lone_model(parsed.model, width=int(width), height=int(height), precision=parsed.precision, task=parsed.task)


def _write_record(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageError("bench.record", f"cannot write the record: {error.strerror}", where=str(path),
                           remedy="give a file in a writable folder with --record") from None


def _show(parsed: argparse.Namespace, value: object, text: str) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() if parsed.json else text)


def _interrupts(stop: Callable[[], None]) -> threading.Event:
    """From now on Ctrl-C calls `stop` and sets the event, and raises nowhere: a child that is just being started is not lost."""
    interrupted = threading.Event()

    def both() -> None:
        interrupted.set()
        stop()

    _stop_on_signals(both)
    return interrupted


def _end_if(interrupted: threading.Event) -> None:
    if interrupted.is_set():
        raise KeyboardInterrupt


def _say_progress(interrupted: threading.Event, name: str, number: int, total: int) -> None:
    _end_if(interrupted)
    print(f"[{number}/{total}] {name}", file=sys.stderr, flush=True)


def _say_measured(name: str, measurement: Measurement) -> None:
    print(f"{name}: {measurement.error or f'{measurement.p50_ms:.2f} ms'}", file=sys.stderr, flush=True)


COMMANDS = {"run": _run, "probe": _probe, "explain": _explain, "bench": _bench, "doctor": _doctor, "status": _status,
            "audit": _audit}

if __name__ == "__main__":
    main()
