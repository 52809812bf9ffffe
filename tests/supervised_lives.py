"""A board's update path with real files and a simulated outside, for kills and disk faults.

Real: Updater, EffectRunner, Journal, Outbox, BlobStore and the bundles. Simulated, each in a few lines: the network (a folder that
blobs are copied from), the chooser and the pipelines, which answer at once, and the clock, which jumps when nothing else is left to do.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from bundle_maker import make_bundle, parts

from jetfleet_agent import ipc
from jetfleet_agent.patching import patch
from jetfleet_agent.supervisor.downloads import Bundles
from jetfleet_agent.supervisor.effects import EffectRunner, RunSettings
from jetfleet_agent.supervisor.footing import Footing
from jetfleet_agent.supervisor.inbox import AppEvent
from jetfleet_agent.supervisor.journal import Disk, Journal, RealDisk
from jetfleet_agent.supervisor.metering import Metering
from jetfleet_agent.supervisor.outbox import Outbox
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_agent.supervisor.updater import Updater
from jetfleet_contract import slot_records as r
from jetfleet_contract.bundle import Evaluation, ModelSpec, ProbeSet, Variant, digest_of
from jetfleet_contract.chunks import BlobInfo, ChunkTable
from jetfleet_contract.deltas import DeltaSource
from jetfleet_contract.errors import JetfleetError, UntrustedError
from jetfleet_contract.evaluation import EvaluationResult
from jetfleet_contract.messages import AppSpec, Deployment, Instant, Report, Source, TrialPolicy, encode
from jetfleet_contract.policy import Candidate, Choice, ChoiceRow
from jetfleet_contract.slots import live_slot
from jetfleet_contract.trials import TrialNumbers
from jetfleet_contract.trust import BundleTarget, DeltaTarget
from jetfleet_contract.tuning import Tuning
from jetfleet_host.bundles import write_bundle

CANDIDATE = Candidate("fp32", "onnxruntime", "fp32")
APP = "gate"


class Shelf:
    """Published bundles in a folder: what trust vouches for, and where the network gets its bytes.

    `plans` gives a version's weights: JSON that `fake_pipeline.py` reads. `keep_s` is for its deployments.
    """

    def __init__(self, folder: Path, versions: tuple[str, ...], plans: Mapping[str, str] | None = None, keep_s: float = 30.0) -> None:
        self.keep_s = keep_s
        self.paths: dict[str, Path] = {}
        self.targets: dict[str, BundleTarget] = {}
        self.bundles: dict[str, str] = {}
        self.indexes: dict[str, DeltaTarget] = {}
        for version in versions:
            out = folder / version
            manifest = _made(out, version, (plans or {}).get(version)).removeprefix("sha256:")
            blobs = {path.name: path for path in (out / "blobs" / "sha256").iterdir()}
            self.paths.update(blobs)
            infos = {blob: BlobInfo(path.stat().st_size, 65536, "") for blob, path in blobs.items()}
            self.targets[manifest] = BundleTarget("toy", version, manifest, infos.pop(manifest), infos)
            self.bundles[version] = manifest

    def bundle(self, manifest_blob: str) -> BundleTarget:
        if manifest_blob not in self.targets:
            raise UntrustedError("trust.unknown-bundle", "nobody signed it")
        return self.targets[manifest_blob]

    def deltas(self, manifest_blob: str) -> DeltaTarget | None:
        return self.indexes.get(manifest_blob)

    def deployment(self, seq: int, version: str) -> Deployment:
        spec = AppSpec(APP, self.bundles[version], "toy", version, sources=(Source("cam", "synthetic:64x48"),),
                       trial=TrialPolicy(frames=10, lease_s=600, keep_s=self.keep_s))
        return Deployment("board", seq, 4e9, (spec,), f"r{seq}")

    def empty(self, seq: int) -> Deployment:
        """A deployment of no app at all."""
        return Deployment("board", seq, 4e9, ())


def _made(out: Path, version: str, plan: str | None) -> str:
    if plan is None:
        return make_bundle(out, version=version, weight_bytes=2000, seed=sum(version.encode()))
    made: dict[str, Any] = parts(out.parent / "weights", version=version)
    weights = out.parent / "weights" / f"plan-{version}.json"
    weights.write_text(plan)
    variant = Variant("fp32", digest_of(plan.encode()), len(plan), "fp32")
    made["spec"] = msgspec.structs.replace(made["spec"], variants=(variant,))
    return write_bundle(out, **{**made, "weights": [(variant, weights)]})


class DiesAt:
    """Counts points of a life and ends the process at one of them, as a power cut would. `phase` is where in its life the board is."""

    def __init__(self, point: int = -1) -> None:
        self.point = point
        self.phase = "start"
        self.passed: list[tuple[str, str]] = []

    def __call__(self, what: str) -> None:
        if len(self.passed) == self.point:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed.append((self.phase, what))


def phase_of(state: r.AppSlots) -> str:
    """Where in its life the app is, a step finer than its phase."""
    if state.phase == "fetching":
        return f"fetching {state.fetch_step}"
    if state.phase == "keeping":
        return "keeping" if state.switched else "switch"
    if state.paused:
        return "paused"
    if state.phase == "idle" and state.last is not None:
        return {"committed": "commit", "rolled_back": "rollback", "refused": "refusal"}.get(state.last.outcome, "failure")
    return state.phase


class MortalRunner(EffectRunner):
    """The real runner, with a point of death before and after each effect."""

    point: DiesAt

    def run(self, app: str, state: r.AppSlots, effect: r.Effect) -> None:
        self.point.phase = phase_of(state)
        self.point(f"before {type(effect).__name__}")
        super().run(app, state, effect)
        self.point(f"after {type(effect).__name__}")

    def collect(self) -> None:
        phase, self.point.phase = self.point.phase, "garbage"
        super().collect()
        self.point.phase = phase


class MortalJournal(Journal):
    """The real journal, which says in which phase of its life the board stores something."""

    point: DiesAt

    def save_app(self, state: r.AppSlots) -> None:
        self.point.phase = phase_of(state)
        super().save_app(state)


class Life:
    """One run of the supervisor's update path, from its start to the outcome of the last deployment.

    `crashing` are versions whose pipeline crashes whenever it runs. `tight`: the board's memory holds one model at a time.
    """

    def __init__(self, folder: Path, shelf: Shelf, *, disk: Disk | None = None, point: DiesAt | None = None, good: bool = True,
                 bundles: Bundles | None = None, session: int = 1, crashing: tuple[str, ...] = (), tight: bool = False) -> None:
        self.tight = tight
        self.shelf = shelf
        self.good = good
        self.crashing = {shelf.bundles[version] for version in crashing}
        self.mono = 50.0
        self.boot = "boot"
        self.events: deque[AppEvent] = deque()
        self.started: list[str] = []
        self.running: str = ""
        self.loaded: set[str] = set()
        self.pending: list[Callable[[], None]] = []
        self.effects: list[str] = []
        self.disk = disk or RealDisk()
        self.point = point or DiesAt()
        self.store = BlobStore(folder)
        self.journal = MortalJournal(folder / "journal", self.disk)
        self.journal.point = self.point
        self.outbox = Outbox(folder / "reports", "board", session, self._sign, lambda: 0.5, self.disk)
        self.reports: list[Report] = []
        self.by_delta: list[str] = []
        self.meter = Metering(folder / "delivery-days.json")
        self.runner = MortalRunner(bundles or shelf, self.store, self, self, self, self.outbox, self.events.append, self.now, RunSettings(),
                                   free_mb=self._free_mb)
        self.runner.point = self.point
        self.updater = Updater(self.journal, self.runner, self.outbox, self.now)

    def _free_mb(self) -> float:
        return (500.0 if self.running else 900.0) if self.tight else 0.0

    def now(self) -> Instant:
        return Instant(self.mono, self.boot, 1.8e9 + self.mono, wall_trusted=True)

    def _sign(self, report: Report) -> bytes:
        self.reports.append(report)
        return encode(report)

    def live(self, deployments: tuple[Deployment, ...]) -> r.AppSlots:
        """Resume, then each deployment to its end; the final state."""
        self.updater.resume()
        self.check()
        for deployment in deployments:
            if APP in self.updater.states and self.updater.states[APP].seq > deployment.seq:
                continue
            self.updater.deploy(deployment)
            self.settle(deployment.seq)
        return self.updater.states[APP]

    def settle(self, seq: int, until: str = "idle") -> None:
        """Work until the deployment has its outcome, or has come to another phase.

        At any time a committed model has its files, and something runs."""
        for _ in range(400):
            self.check()
            if self._is_settled(seq, until):
                return
            self._work_once()
        raise AssertionError(f"no end of {self.updater.states}")

    def settle_unchecked(self, seq: int) -> None:
        """The same for a board whose committed model was damaged."""
        while not self._is_settled(seq):
            self._work_once()

    def work(self, times: int) -> None:
        """Let so much happen, until nothing is left to do."""
        for _ in range(times):
            state = self.updater.states.get(APP)
            if not self.events and not self.pending and (state is None or state.phase == "idle"):
                return
            self._work_once()

    def _is_settled(self, seq: int, until: str = "idle") -> bool:
        state = self.updater.states.get(APP)
        if state is None or state.seq != seq or state.phase not in (until, "idle"):
            return False
        self.updater.tick()
        return True

    def _work_once(self) -> None:
        if self.events:
            self.updater.answered(self.events.popleft())
        elif self.pending:
            self.pending.pop(0)()
        else:
            self.mono += 6.0
            self.updater.tick()

    def check(self) -> None:
        """A committed model has its files, and something runs."""
        state = self.updater.states.get(APP)
        if state is None or state.champion is None:
            return
        for blob in (state.champion.bundle, state.champion.weights):
            assert self.store.has(blob), f"the committed model {state.champion.version} lost its files"
        assert self.running or state.paused, f"nothing runs although {state.champion.version} is committed"
        live = live_slot(state)
        assert live is not None or state.paused

    # --- Fetching ---------------------------------------------------------------------------------------------

    @property
    def held(self) -> set[str]:
        return set()

    def want(self, blob: str, info: BlobInfo) -> None:
        def arrive() -> None:
            state = self.updater.states.get(APP)
            self.point.phase = "repair" if state is None or state.phase == "idle" else phase_of(state)
            try:
                self.store.put_bytes(blob, self.shelf.paths[blob].read_bytes())
            except JetfleetError as error:
                self.runner.blob_failed(blob, error)
                return
            self.runner.blob_done(blob)

        self.pending.append(arrive)

    def want_by_delta(self, blob: str, info: BlobInfo, source: DeltaSource) -> None:
        def arrive() -> None:
            self.point.phase = "delta"
            self.by_delta.append(blob)
            try:
                delta = self.store.put_bytes(source.delta, self.shelf.paths[source.delta].read_bytes())
                with self.store.open_partial(blob, ChunkTable(info.size, info.chunk_size, b"")) as part:
                    patch(self.store.folder / source.base, delta, self.store.part(blob), 1)
                    part.finish()
            except JetfleetError as error:
                self.runner.blob_failed(blob, error)
                return
            self.runner.blob_done(blob)

        self.pending.append(arrive)

    def cancel_except(self, blobs: set[str]) -> None:
        pass

    # --- Choosing ---------------------------------------------------------------------------------------------

    def wanted(self, spec: ModelSpec, evaluation: Evaluation) -> tuple[Candidate, ...]:
        return (CANDIDATE,)

    def choose(self, spec: ModelSpec, evaluation: Evaluation, paths: Mapping[str, Path], images: tuple[Path, ...],
               done: Callable[[Choice], None]) -> None:
        assert set(paths) == {"fp32"}
        self.pending.append(lambda: done(Choice((ChoiceRow(CANDIDATE, "chosen", "the only one"),), CANDIDATE)))

    def probe_model(self, model_path: Path, candidate: Candidate, spec: ModelSpec, probe: ProbeSet, images: tuple[Path, ...],
                    done: Callable[[EvaluationResult, float], None]) -> None:
        assert model_path.is_file()

        def probed() -> None:
            if self.tight and self.running:
                done(EvaluationResult("onnxruntime", error="backend.memory", detail="predicted: 700 MB", predicted_mb=700.0), 0.0)
            else:
                done(EvaluationResult("onnxruntime", peak_rss_mb=600.0), 0.99 if self.good else 0.1)

        self.pending.append(probed)

    def tuning(self, spec: ModelSpec, candidate: Candidate) -> Tuning:
        return Tuning()

    def chosen_under(self, name: str, version: str) -> None: ...

    def eco(self, spec: ModelSpec, candidate: Candidate) -> Tuning | None:
        return None

    def lean(self, spec: ModelSpec, candidate: Candidate) -> Candidate | None:
        return None

    # --- Running ----------------------------------------------------------------------------------------------

    @property
    def feed_folder(self) -> Path:
        return Path("/run/feed")

    def start(self, name: str, run: ipc.Run) -> None:
        if self.running == run.model.bundle:
            return
        assert Path(run.model.path).is_file()
        self.running, self.loaded = run.model.bundle, {run.model.bundle}
        self.pending.append(lambda: self.updater.event(name, r.Ran(run.model.bundle)))
        self._crash_if_bad(name, run.model.bundle)

    def _crash_if_bad(self, name: str, bundle: str) -> None:
        def crash() -> None:
            if self.running == bundle:
                self.running, self.loaded = "", set()
                self.updater.event(name, r.Crashed(bundle, "runtime.crash"))

        if bundle in self.crashing:
            self.pending.append(crash)

    def configure(self, name: str, setup: r.Setup, sources: ipc.Configure) -> None:
        pass

    def try_beside(self, name: str, model: ipc.Model, policy: TrialPolicy) -> None:
        self.loaded.add(model.bundle)
        numbers = TrialNumbers(live_frames=policy.frames, live_agreement=0.99, champion_p99_ms=10, challenger_p99_ms=9)
        self.pending.append(lambda: self.updater.event(name, r.Compared(model.bundle, numbers)))

    def switch(self, name: str, bundle: str, keep_s: float) -> None:
        if bundle in self.loaded:
            self.running = bundle
            self.pending.append(lambda: self.updater.event(name, r.TookOver(bundle, 5.0, 0, 9.0)))
            self._crash_if_bad(name, bundle)

    def watch(self, name: str, bundle: str, policy: TrialPolicy, old_p99_ms: float) -> None:
        pass

    def footing(self, name: str) -> Footing:
        return Footing(300.0, 10.0)

    def drop(self, name: str, bundle: str) -> None:
        self.loaded.discard(bundle)

    def back(self, name: str, run: ipc.Run) -> None:
        self.start(name, run)

    def stop(self, name: str) -> None:
        self.running = ""
