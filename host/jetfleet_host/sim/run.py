"""A run from its first process to its last: broker, host, devices, install, faults, rollout, healing, judgement."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from sqlalchemy import select

from jetfleet_contract import topics
from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.rollout_records import FINAL
from jetfleet_contract.trust import BundleTarget
from jetfleet_host.bundles import open_bundle
from jetfleet_host.project import Project
from jetfleet_host.publish import find_bundle, publish
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device as DeviceRow
from jetfleet_host.store.models import RolloutRow

from . import oracle, summary
from .children import Broker, Serve, Usage, command, measure, own_broker
from .faults import Faults, schedule_digest, stream
from .fleet import Fleet, Sample
from .inference import ModelTraits
from .links import Address, Connector
from .rehearsal_bundles import make_bundle
from .tap import Tap
from .trust import Packages
from .world import World

APP = "camera"
APPS = """\
[camera]
sources = [{ name = "front", uri = "local:front", fps = 10.0 }]
trial = { frames = 30, max_p99_ratio = 2.5, lease_s = 120.0, keep_s = 0.5 }
"""
LATENCY_LIMIT = 1.4
EVIDENCE_S = 8.0
PLANTED_LATENCY = 1.8
POLL_S = 0.25
SAMPLE_S = 0.5
MIN_SETTLE_S = 60.0
MOMENT_S = 0.05
MIN_CANARIES = 6  # the gates compare board by board from five on, and one may be down

_log = logging.getLogger(__name__)

Scenario = Literal["canary", "bad-model"]


class Settings(msgspec.Struct, frozen=True):
    """What is asked for. `bundles`: folders of the old and the new version in place of made-up ones. `broker`: embedded, mosquitto, or
    an address. `canary` and `wave`: devices; `hold_s`: as of a rollout; `deadline_s` bounds the rollout, and as much the healing."""

    devices: int
    seed: int
    faults: Faults
    scenario: Scenario = "canary"
    bundle_bytes: int = 256 * 1024
    bundles: tuple[Path, ...] = ()
    broker: Literal["embedded", "mosquitto"] | Address = "embedded"
    canary: int = 0
    wave: int = 0
    hold_s: float = 2.0
    window_s: float = 0.0
    deadline_s: float = 600.0

    @property
    def canaries(self) -> int:
        return self.canary or min(self.devices, max(MIN_CANARIES, self.devices // 25))

    @property
    def wave_size(self) -> int:
        return self.wave or max(1, math.ceil((self.devices - self.canaries) / 3))

    @property
    def window(self) -> float:
        """Seconds of a telemetry window: so many that a host on one core can take them all."""
        return self.window_s or min(10.0, max(1.0, self.devices / 100))

    @property
    def evidence_s(self) -> float:
        """How long the gates may look at a wave: boards speak once a window."""
        return max(EVIDENCE_S, 3 * self.window)

    @property
    def traits(self) -> ModelTraits:
        """Of the version that is rolled out."""
        model = self.faults.model
        planted = self.scenario == "bad-model" and model.latency == 1.0 and not model.bad_share
        return ModelTraits(PLANTED_LATENCY if planted else model.latency, model.bad_share)

    @property
    def options(self) -> tuple[str, ...]:
        """Of `rollout start` for the version that is rolled out. A device that is killed too often in one update may give it up."""
        bad = 0 if self.scenario == "bad-model" else max(1, self.devices // 50)
        given = {"--canary": self.canaries, "--wave": self.wave_size, "--hold": self.hold_s, "--max-latency-ratio": LATENCY_LIMIT,
                 "--max-bad": bad, "--min-success": 0.6, "--evidence": self.evidence_s}
        return (*(part for name, value in given.items() for part in (name, f"{value:g}")), "--on-undecided", "pass")

    @property
    def expected(self) -> str:
        return "reverted" if self.scenario == "bad-model" else "done"


class Progress(Protocol):
    """Told how far a run is: what it does now, and how many devices are through."""

    def step(self, what: str, total: int) -> None: ...
    def at(self, done: int, note: str) -> None: ...


class Simulation:
    """One run below `folder`, which the caller makes and removes."""

    def __init__(self, settings: Settings, folder: Path, progress: Progress) -> None:
        self._settings = settings
        self._folder = folder
        self._progress = progress
        self._began = time.monotonic()
        self._usage = {"serve": Usage(), "broker": Usage(), "sim": Usage()}
        self._cpu_seen: dict[int, float] = {}
        self._broker: Broker | None = None
        self._happened: dict[str, int] = {}
        self._upsetting = False
        self._next_upset = 0
        self._rolling = ""
        self.samples: list[Sample] = []

    async def run(self) -> dict[str, Any]:
        """Everything; the outcome as plain values: `lost` is False when every rule of the oracle holds.

        Raises:
            InputError, TransportError, IncompatibleError: it cannot be started as asked. RuntimeFailure: `sim.serve`, `sim.deadline`.
        """
        async with contextlib.AsyncExitStack() as ending:
            address = self._start_broker(ending)
            self._connector = Connector(address)
            ending.callback(self._connector.close)
            self._connector.start()
            self._project = await asyncio.to_thread(Project.init, self._folder / "project", broker=f"{address.host}:{address.port}")
            self._targets = await asyncio.to_thread(self._publish)
            tap = await self._start_tap(ending)
            self._serve = Serve(self._project.dir, self._folder / "serve.log")
            ending.push_async_callback(self._serve.kill)
            await self._serve.start()
            self._database = await asyncio.to_thread(Database.open, self._project.database_url)
            ending.callback(self._database.close)
            fleet = self._make_fleet()
            ending.push_async_callback(fleet.close)
            if isinstance(self._settings.broker, Address):
                ending.push_async_callback(self._clear_retained, tap, list(fleet.devices))
            watching = asyncio.create_task(self._watch(fleet))
            ending.callback(watching.cancel)
            return await self._course(fleet, tap)

    async def _course(self, fleet: Fleet, tap: Tap) -> dict[str, Any]:
        settings, count = self._settings, len(fleet.devices)
        old, new = self._targets
        await self._phase("devices introduce themselves", fleet.start, self._known_devices)
        await self._rollout(fleet, old, "--canary", str(count), "--hold", "0", "--max-latency-ratio", "0")
        await asyncio.sleep(settings.window * 1.5)  # what the new version will be compared with
        fleet.begin_faults()
        self._world.learn(new.manifest, settings.traits)
        upsets = asyncio.create_task(self._upset(fleet, new.manifest))
        started = time.monotonic()
        try:
            await self._rollout(fleet, new, *settings.options)
            await self._finish_upsets(upsets, fleet, new.manifest)
        finally:
            upsets.cancel()
        took = time.monotonic() - started
        unsettled = await self._heal(fleet)
        await self._serve.stop()
        measure(self._usage, None, self._cpu_seen)
        self.samples = fleet.samples
        return await asyncio.to_thread(self._outcome, fleet, tap, unsettled, took)

    # --- preparing --------------------------------------------------------------------------------------------

    def _start_broker(self, ending: contextlib.AsyncExitStack) -> Address:
        wanted = self._settings.broker
        if isinstance(wanted, Address):
            return wanted
        self._broker = own_broker(wanted, self._folder, _free_port())
        self._broker.start()
        ending.callback(self._broker.stop)
        return Address("127.0.0.1", self._broker.port)

    def _publish(self) -> tuple[BundleTarget, BundleTarget]:
        """Both versions, signed; made-up ones unless real ones were given."""
        settings = self._settings
        folders = list(settings.bundles)
        missing = ("1", "2")[len(folders):]
        made = [make_bundle(self._folder / "bundles", version, settings.bundle_bytes, settings.seed) for version in missing]
        targets = []
        for folder in (*folders, *made):
            publish(self._project, folder)
            spec = open_bundle(folder, verify=False).spec
            targets.append(find_bundle(self._project, spec.name, spec.version))
        return targets[0], targets[1]

    async def _start_tap(self, ending: contextlib.AsyncExitStack) -> Tap:
        tap = Tap(self._connector, f"sim-tap-{secrets.token_hex(4)}")
        ending.push_async_callback(tap.link.close)
        await tap.start()
        return tap

    def _make_fleet(self) -> Fleet:
        self._world = World(self._connector, Packages(self._project.root_file.read_bytes()), self._settings.window)
        names = [f"sim-{number:04d}" for number in range(self._settings.devices)]
        return Fleet(names, self._world, self._settings.faults, self._settings.seed)

    async def _clear_retained(self, tap: Tap, names: list[str]) -> None:
        """A broker that goes on after us keeps nothing of ours."""
        for topic in (topics.META, *(make(name) for name in names for make in (topics.desired, topics.birth, topics.state))):
            tap.link.publish(topic, b"", retain=True)
        deadline = time.monotonic() + 5.0
        while not tap.link.idle and time.monotonic() < deadline:
            await asyncio.sleep(MOMENT_S)

    # --- the rollout ------------------------------------------------------------------------------------------

    async def _rollout(self, fleet: Fleet, target: BundleTarget, *options: str) -> None:
        """Start it with the command that an operator uses, and wait for its end."""
        apps = self._folder / "apps.toml"
        apps.write_text(APPS, encoding="utf-8")
        model = f"{target.name}:{target.version}"
        started = await command(self._project.dir, "rollout", "start", "--app", APP, "--model", model, "--apps", str(apps), "--all",
                                "--timeout", f"{self._settings.deadline_s / 2:g}", *options)
        rollout = started["rollout"]
        self._rolling = target.manifest

        async def nothing() -> None:
            return None

        async def over() -> int:
            done = fleet.running(target.manifest)
            phase = await asyncio.to_thread(self._rollout_phase, rollout)
            return len(fleet.devices) if phase in FINAL else min(done, len(fleet.devices) - 1)

        await self._phase(f"{model} is rolled out", nothing, over)

    def _rollout_phase(self, rollout: str) -> str:
        with self._database.reading() as session:
            return session.scalar(select(RolloutRow.phase).where(RolloutRow.id == rollout)) or ""

    async def _known_devices(self) -> int:
        def known() -> int:
            with self._database.reading() as session:
                return len(session.scalars(select(DeviceRow.device)).all())

        return await asyncio.to_thread(known)

    async def _phase(self, what: str, begin: Callable[[], Awaitable[None]], done: Callable[[], Awaitable[int]]) -> None:
        """Begin something and wait until all devices are through. RuntimeFailure `sim.deadline`."""
        total = self._settings.devices
        self._progress.step(what, total)
        await begin()
        deadline = time.monotonic() + self._settings.deadline_s
        while (count := await done()) < total:
            if time.monotonic() > deadline:
                raise RuntimeFailure("sim.deadline", f"{what}: {count} of {total} devices after {self._settings.deadline_s:g} s",
                                     where=str(self._folder), remedy="give it more with --deadline; --keep leaves serve's log")
            self._progress.at(count, self._note())
            await asyncio.sleep(POLL_S)
        self._progress.at(total, self._note())

    def _note(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self._happened.items())

    # --- what happens to broker and host ----------------------------------------------------------------------

    async def _upset(self, fleet: Fleet, new: str) -> None:
        """Kill broker and host when so many devices have the new version, by lot of the seed."""
        settings = self._settings
        base = settings.canaries if settings.scenario == "bad-model" else settings.devices
        draws = stream(settings.seed, "fleet", "moments")
        moments = [(draws.uniform(0.1, 0.8), "broker restart") for _ in range(settings.faults.broker.restarts if self._broker else 0)]
        moments += [(draws.uniform(0.1, 0.8), "host kill") for _ in range(settings.faults.host.kills)]
        for share, what in sorted(moments):
            self._next_upset = math.ceil(share * base)
            while fleet.running(new) < self._next_upset:
                await asyncio.sleep(MOMENT_S)
            self._happened[what] = self._happened.get(what, 0) + 1
            self._upsetting = True
            await (self._kill_host() if what == "host kill" else self._restart_broker())
            self._upsetting = False

    async def _kill_host(self) -> None:
        await self._serve.kill()
        await asyncio.sleep(self._settings.faults.host.down_s)
        await self._serve.start()

    async def _restart_broker(self) -> None:
        if self._broker is not None:
            self._broker.stop()
            await asyncio.to_thread(self._broker.start)

    async def _finish_upsets(self, upsets: asyncio.Task[None], fleet: Fleet, new: str) -> None:
        """What was begun, or is due, is finished; what the rollout's end came before is left out."""
        while not upsets.done() and (self._upsetting or fleet.running(new) >= self._next_upset):
            await asyncio.sleep(MOMENT_S)
        if upsets.done():
            upsets.result()

    async def _watch(self, fleet: Fleet) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            fleet.sample(self._rolling)
            measure(self._usage, self._serve.pid, self._cpu_seen)

    # --- the end ----------------------------------------------------------------------------------------------

    async def _heal(self, fleet: Fleet) -> list[str]:
        """Nothing goes wrong any more: wait until everything that was under way has ended. Gives the devices that have not."""
        fleet.heal()
        total = len(fleet.devices)
        self._progress.step("everything settles", total)
        deadline = time.monotonic() + max(MIN_SETTLE_S, self._settings.deadline_s / 2)
        while (left := fleet.unsettled()) and time.monotonic() < deadline:
            self._progress.at(total - len(left), self._note())
            await asyncio.sleep(POLL_S)
        last = fleet.close_windows()
        while await asyncio.to_thread(self._window_missing, last) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return fleet.unsettled()

    def _window_missing(self, last: dict[str, tuple[int, int]]) -> bool:
        with self._database.reading() as session:
            rows = session.execute(select(DeviceRow.device, DeviceRow.window_session, DeviceRow.last_window))
            seen = {device: (number, window) for device, number, window in rows}
        return any(seen.get(device, (0, 0)) < wanted for device, wanted in last.items())

    def _outcome(self, fleet: Fleet, tap: Tap, unsettled: list[str], took: float) -> dict[str, Any]:
        settings = self._settings
        with self._database.reading() as session:
            rollouts = oracle.load_rollouts(session)
            rules = oracle.judge(oracle.Facts(session, fleet.devices, tap, rollouts, settings.expected, unsettled))
            waves = summary.wave_times(session, rollouts, fleet.devices)
        needed = sum(sum(info.size for info in target.every().values()) for target in self._targets)
        whole = summary.totals(fleet.devices.values())
        whole["faults"] |= self._happened
        return {
            "lost": any(rules.values()), "scenario": settings.scenario, "devices": settings.devices, "seed": settings.seed,
            "schedule": schedule_digest(settings.faults, settings.seed, list(fleet.devices)),
            "broker": settings.broker if isinstance(settings.broker, str) else f"{settings.broker.host}:{settings.broker.port}",
            "seconds": round(time.monotonic() - self._began, 2), "rollout_seconds": round(took, 2),
            "rollouts": [{"id": state.plan.id, "phase": state.phase, "reason": state.reason} for state in rollouts],
            "waves": [msgspec.to_builtins(row) for row in waves], "rules": rules, **whole,
            "delivery": summary.delivery(tap, needed, settings.devices), "usage": summary.usage_view(self._usage),
            "serve_starts": self._serve.starts,
        }


@contextlib.asynccontextmanager
async def run_folder(keep: Path | None) -> AsyncIterator[Path]:
    """Where a run lives: the folder to keep, or one that is removed at the end, however that comes."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="jetfleet-sim-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
