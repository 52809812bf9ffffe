"""Obeys the command `bench`: checks what is asked for, begins, watches that it disturbs nobody, keeps the answer until it is on its way.

One at a time. What is under way stands in a file, because a command is obeyed at most once: an agent that was killed meanwhile answers at
its next start that nothing was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from jetfleet_agent.bundle_folder import BundleFolder
from jetfleet_agent.durable import need_folder, write_file
from jetfleet_agent.thermal import Thermal
from jetfleet_contract.bench_orders import BenchOrder, check_free, order_of, share_of, slot_of
from jetfleet_contract.errors import MalformedError, TransportError
from jetfleet_contract.messages import decode, encode
from jetfleet_contract.slot_records import AppSlots

from .bench_work import BenchJob, BenchOutcome
from .bundle_reader import Blobs, BundleReader, blob_of_digest

log = logging.getLogger(__name__)

BENCH = "bench"
"""The folder's name below the agent's state folder."""
POLL_S = 0.5
IDLE_S = 3600.0
MAX_ORDER_BYTES = 4096


class Working(Protocol):
    """What is used of BenchWork."""

    def start(self, job: BenchJob) -> None: ...
    def take(self) -> BenchOutcome | None: ...
    def stop(self) -> None: ...


class BoardBench:
    """See the module. Used by the control thread only.

    Args:
        folder: below the agent's state folder; made when missing.
        states: the durable state of each app. heat: what the kernel tells of it now. held: by app why the governor holds it back.
        building: whether an engine is being built.

    Raises:
        StorageError: `store.write` when the folder cannot be made.
    """

    def __init__(self, folder: Path, work: Working, store: Blobs, states: Callable[[], Mapping[str, AppSlots]],
                 heat: Callable[[], Thermal], held: Callable[[], Mapping[str, str]], building: Callable[[], bool]) -> None:
        need_folder(folder)
        self._record = folder / "under-way.json"
        self._work = work
        self._store = store
        self._reader = BundleReader(store)
        self._states = states
        self._heat = heat
        self._held = held
        self._building = building
        self._running: BenchOrder | None = None
        self._outcome = self._left_behind()

    def begin(self, command: int, args: Mapping[str, str]) -> BenchOrder:
        """Begin what a command asks for.

        Raises:
            TransportError: `device.busy`. InputError: `app.unknown`. MalformedError: `bench.order`, `name.bad`, and a bundle that is none.
            IncompatibleError: `bench.share`, `bench.runner`. StorageError: `bench.no-bundle`, `store.*`. UntrustedError: `store.rotten`.
        """
        order = order_of(command, args)
        other = self._running or (self._outcome.order if self._outcome is not None else None)
        if other is not None:
            raise TransportError("device.busy", f"this board is at a bench of {other.text} already", remedy="ask again later")
        states = self._states()
        bundle = self._bundle(order, states)
        self._check_free(states)
        share = share_of(states.values())
        write_file(self._record, encode(order))
        self._running = order
        self._work.start(BenchJob(order, bundle, share))
        return order

    def tick(self) -> float:
        """Look after a bench under way. Seconds until the next call is wanted."""
        if self._running is None:
            return IDLE_S
        outcome = self._work.take()
        if outcome is None:
            outcome = self._in_the_way(self._running)
        if outcome is not None:
            log.info("the bench of %s ended: %s", self._running.text, outcome.code or "measured")
            self._running, self._outcome = None, outcome
        return POLL_S

    @property
    def outcome(self) -> BenchOutcome | None:
        """What has not been answered yet."""
        return self._outcome

    def answered(self) -> None:
        """The outcome is on its way."""
        self._outcome = None
        self._record.unlink(missing_ok=True)

    def close(self) -> None:
        """Kill what is under way; it is answered at the next start."""
        self._work.stop()

    def _in_the_way(self, running: BenchOrder) -> BenchOutcome | None:
        try:
            self._check_free(self._states())
        except TransportError as error:
            self._work.stop()
            return BenchOutcome(running, code=error.code, detail=f"the bench was ended: {error.what}")
        return None

    def _check_free(self, states: Mapping[str, AppSlots]) -> None:
        heat = self._heat()
        check_free(states.values(), slowed=heat.throttling, headroom_c=heat.tightest.headroom_c if heat.tightest is not None else None,
                   held=self._held(), building=self._building())

    def _bundle(self, order: BenchOrder, states: Mapping[str, AppSlots]) -> BundleFolder:
        contents = self._reader.contents(slot_of(order, states).bundle)
        blobs = {variant.name: blob_of_digest(variant.digest) for variant in contents.spec.variants}
        paths = {name: self._store.verified(blob) for name, blob in blobs.items() if self._store.has(blob)}
        return BundleFolder(contents.spec, contents.evaluation, contents.probe, paths, contents.images)

    def _left_behind(self) -> BenchOutcome | None:
        """What an agent that was killed, or stopped, owes."""
        try:
            order = decode(self._record.read_bytes()[:MAX_ORDER_BYTES], BenchOrder)
        except FileNotFoundError:
            return None
        except (OSError, MalformedError) as error:
            log.warning("what bench was under way cannot be read: %s", error)
            self._record.unlink(missing_ok=True)
            return None
        return BenchOutcome(order, code="bench.interrupted", detail=f"the agent ended during the bench of {order.text}; nothing was kept")
