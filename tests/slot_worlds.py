"""A board in memory for the slot machine's tests: runs effects against a model of store, pipeline and journal that forgets nothing else."""

from __future__ import annotations

from collections.abc import Callable

from jetfleet_contract import slot_records as r
from jetfleet_contract.messages import AppConfig, AppSpec, Instant, Source, TrialPolicy
from jetfleet_contract.policy import Candidate
from jetfleet_contract.slots import blobs_in_use, live_slot, next_tick, step
from jetfleet_contract.trials import TrialNumbers

BUNDLES = {letter: letter * 64 for letter in "abcdef"}
CANDIDATE = Candidate("fp32", "onnxruntime", "fp32")
GOOD = TrialNumbers(live_frames=30, live_agreement=0.99, champion_p99_ms=10.0, challenger_p99_ms=9.0)
POLICY = TrialPolicy(frames=30, lease_s=600.0, keep_s=30.0)


def target(seq: int, letter: str, *, config: int = 1, policy: TrialPolicy = POLICY, feed_to: tuple[str, ...] = (),
           input_from: str = "", release: int = 0, downgrade: bool = False, name: str = "model") -> r.Target:
    spec = AppSpec("app", BUNDLES[letter], name, letter, AppConfig(config), (Source("cam", "synthetic:bars"),), input_from, trial=policy,
                   downgrade=downgrade)
    return r.Target(seq, spec, f"rollout-{seq}", feed_to, release)


def weights_of(bundle: str) -> str:
    return bundle[:63] + "9"


def parts_of(bundle: str) -> tuple[str, ...]:
    return (bundle[:63] + "7", bundle[:63] + "8")


class World:
    """One app on one board. `disk` survives `restart`, everything else does not; `log` keeps every effect that ran."""

    def __init__(self) -> None:
        self.disk: r.AppSlots = r.AppSlots("app")
        self.state = self.disk
        self.store: set[str] = set()
        self.mono = 100.0
        self.boot = "boot-1"
        self.log: list[r.Effect] = []
        self.reports: list[r.Progress] = []
        self.work: r.Effect | None = None
        self.running: str | None = None
        self.loaded: set[str] = set()
        self.tried: str | None = None
        self.watched: r.Watch | None = None
        self.setup: r.Setup | None = None
        self.releases: dict[str, int] = {}  # what signed targets say, by bundle

    def now(self) -> Instant:
        return Instant(self.mono, self.boot, 1.8e9 + self.mono, wall_trusted=True)

    def send(self, event: r.Event, *, die_after: int | None = None) -> r.Effects:
        """Step and run the effects; `die_after` counts effects that run before the board dies."""
        self.state, effects = step(self.state, event, self.now())
        for index, effect in enumerate(effects):
            if die_after is not None and index >= die_after:
                self.restart()
                break
            self.run(effect)
        return effects

    def restart(self, *, reboot: bool = False) -> None:
        self.work, self.running, self.tried, self.loaded, self.setup = None, None, None, set(), None
        if reboot:
            self.boot, self.mono = self.boot + "+", 5.0
        self.state = self.disk
        self.send(r.Resume())

    def run(self, effect: r.Effect) -> None:  # noqa: C901 - one line an effect
        self.log.append(effect)
        if isinstance(effect, r.Persist):
            self.disk = effect.state
        elif isinstance(effect, (r.Fetch, r.Choose, r.Probe)):
            self.work = effect
        elif isinstance(effect, r.StartPipeline):
            self._start(effect.slot)
        elif isinstance(effect, r.Configure):
            self.setup = effect.setup
        elif isinstance(effect, r.Try):
            self._need(effect.slot)
            self.tried = effect.slot.bundle
            self.loaded.add(effect.slot.bundle)
        elif isinstance(effect, r.Switch):
            if effect.bundle in self.loaded:
                self.running = effect.bundle
        elif isinstance(effect, r.Watch):
            assert self.running == effect.bundle
            self.watched = effect
        elif isinstance(effect, r.DropChallenger):
            self.loaded.discard(effect.bundle)
            self.tried = None
        elif isinstance(effect, r.Back):
            self._start(effect.slot)
        elif isinstance(effect, r.StopPipeline):
            self.running = None
        elif isinstance(effect, r.Abandon):
            self.work = None
        elif isinstance(effect, r.SendReport):
            self.reports.append(effect.progress)
        elif isinstance(effect, r.CollectGarbage):
            self.store &= blobs_in_use(self.disk)

    def _start(self, slot: r.Slot) -> None:
        self._need(slot)
        self.running, self.setup = slot.bundle, slot.setup
        self.loaded = {slot.bundle}

    def _need(self, slot: r.Slot) -> None:
        assert {slot.bundle, slot.weights} <= self.store, f"{slot.version} is to run but its files are gone"

    # --- what the outside does ----------------------------------------------------------------------------

    def fetch_step(self) -> None:
        work = self.work
        assert isinstance(work, r.Fetch)
        self.store |= set(work.blobs)
        following = {"manifest": parts_of(work.bundle), "parts": (weights_of(work.bundle),), "weights": ()}[work.step]
        self.send(r.Fetched(work.bundle, work.step, following, 1000, release=self.releases.get(work.bundle, 0)))

    def fetch_all(self) -> None:
        for _ in range(3):
            self.fetch_step()

    def go(self, phase: str, seq: int = 1, letter: str = "a", **options: object) -> World:
        """From idle to a phase of the update to `letter`."""
        self.send(r.Deploy(target(seq, letter, **options)))  # type: ignore[arg-type]
        bundle = BUNDLES[letter]
        steps = {
            "fetching": lambda: None,
            "choosing": self.fetch_all,
            "probing": lambda: self.send(r.Chosen(bundle, CANDIDATE, weights_of(bundle))),
            "trial": lambda: self.send(r.Probed(bundle, 0.99)),
            "keeping": lambda: self.send(r.Compared(bundle, GOOD)) if self.state.champion else self.send(r.Ran(bundle)),
        }
        acts: dict[str, Callable[[], object]] = dict(steps)
        for name, act in acts.items():
            act()
            assert self.state.phase == name
            if name == phase:
                return self
        raise AssertionError(phase)

    def install(self, letter: str = "a", seq: int = 1, **options: object) -> World:
        """Through all of it, to committed."""
        self.go("keeping", seq, letter, **options)
        if not self.state.switched:
            self.send(r.TookOver(BUNDLES[letter], 12.5, 0, 40.0))
        self.mono += 31.0
        self.send(r.Tick())
        assert self.state.phase == "idle"
        assert self.state.last is not None
        assert self.state.last.outcome == "committed"
        return self

    def check(self) -> None:
        """What must hold after every event."""
        assert self.disk == self.state, "the state in memory is not the one on disk"
        for slot in (self.state.champion, self.state.challenger if self.state.phase in ("trial", "keeping") else None):
            if slot is not None:
                self._need(slot)
        live = live_slot(self.state)
        if live is not None and self.state.phase != "keeping":
            assert self.running == live.bundle
        if self.state.paused:
            assert (self.state.phase, self.running) == ("probing", None)
        due = next_tick(self.state, self.now())
        assert due is None or due >= 0


def updating(phase: str) -> World:
    """A board that has a model and is in this phase of getting the next one."""
    world = World().install()
    return world if phase == "idle" else world.go(phase, 2, "b")
