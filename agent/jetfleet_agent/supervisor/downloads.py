"""Which blobs an app waits for: the steps of its challenger, and the files of a committed model that were damaged.

Space is made and checked before the first byte of a step; what nobody holds any more is removed here too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

import msgspec

from jetfleet_contract.bundle import Evaluation, ModelSpec
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.deltas import DeltaSource
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import DeliveryPolicy, Instant
from jetfleet_contract.policy import Candidate
from jetfleet_contract.slot_records import AppSlots, Faulted, Fetch, Fetched, FetchStep, Progress, Slot
from jetfleet_contract.slots import blobs_in_use, live_slot
from jetfleet_contract.trust import BundleTarget, DeltaTarget

from . import deltas
from .bundle_reader import Blobs, BundleReader, blob_of_digest
from .inbox import AppEvent
from .metering import Metering

log = logging.getLogger(__name__)


class Bundles(Protocol):
    """What is used of a TrustStore here."""

    def bundle(self, manifest_blob: str) -> BundleTarget: ...
    def deltas(self, manifest_blob: str) -> DeltaTarget | None: ...


class Fetching(Protocol):
    """What is used of a DeltaFetcher here."""

    @property
    def held(self) -> set[str]: ...
    @property
    def meter(self) -> Metering: ...
    def want(self, blob: str, info: BlobInfo) -> None: ...
    def want_by_delta(self, blob: str, info: BlobInfo, source: DeltaSource) -> None: ...
    def cancel_except(self, blobs: set[str]) -> None: ...


class Reports(Protocol):
    """What is used of an Outbox here."""

    def add(self, app: str, progress: Progress, at: float) -> None: ...


class _Download(msgspec.Struct):
    """What one app waits for: a step of its challenger, or the files of its damaged champion, which it then repairs.

    `index`: deltas may lead to what is missing. `routes`: the delta that a missing blob comes by, all others come in full. `sources`:
    every blob that was asked for, deltas and their index included.
    """

    bundle: str
    step: FetchStep
    blobs: tuple[str, ...]
    release: int = 0
    repairs: Slot | None = None
    missing: set[str] = msgspec.field(default_factory=set)
    received: int = 0
    policy: DeliveryPolicy = DeliveryPolicy()
    waiting: Progress | None = None
    held: frozenset[str] = frozenset()
    index: DeltaTarget | None = None
    then: Callable[[], None] | None = None
    routes: dict[str, DeltaSource] = {}
    by_delta: int = 0
    saved: int = 0
    sources: set[str] = msgspec.field(default_factory=set)
    again: bool = False


class Downloads:
    """See the module. All methods belong to the control thread.

    Args:
        wanted: the candidates of a bundle whose weights this board wants to measure.
        repaired: starts a committed model whose files are whole again.
        post: takes `AppEvent`s, from any thread.
        clock: for the time of reports.
        engines: what was compiled of these bundles, and stays with them.
    """

    def __init__(self, bundles: Bundles, store: Blobs, fetcher: Fetching, reports: Reports,
                 wanted: Callable[[ModelSpec, Evaluation], tuple[Candidate, ...]], repaired: Callable[[str, Slot], None],
                 post: Callable[[AppEvent], None], clock: Callable[[], Instant],
                 engines: Callable[[set[str]], set[str]] = lambda _bundles: set()) -> None:
        self._engines = engines
        self._bundles = bundles
        self._store = store
        self._reader = BundleReader(store)
        self._fetcher = fetcher
        self._reports = reports
        self._wanted = wanted
        self._repaired = repaired
        self._states: Callable[[], Iterable[AppSlots]] = tuple
        self._post = post
        self._clock = clock
        self._downloads: dict[tuple[str, bool], _Download] = {}  # by app, and whether it is a repair
        self._awaiting: dict[tuple[str, bool], Callable[[], None]] = {}
        self._garbage = False
        fetcher.meter.on_held = self._waits

    def know(self, states: Callable[[], Iterable[AppSlots]]) -> None:
        """Where to ask for the durable state of every app that this board has: what one of them holds is no garbage."""
        self._states = states

    # --- a challenger's steps -------------------------------------------------------------------------------

    def fetch(self, app: str, state: AppSlots, effect: Fetch) -> None:
        """Get the blobs of a step, then say `Fetched`; waits for the metadata that vouches for them.

        Raises:
            UntrustedError: `trust.mix`, `bundle.unsigned`. StorageError: `store.full`, `store.io`.
        """
        waiting = _waiting_for_metadata(state)
        try:
            target = self._bundles.bundle(effect.bundle)
        except UntrustedError as error:
            self._awaiting[app, False] = partial(self._fetch_later, app, state, effect)
            self._reports.add(app, msgspec.structs.replace(waiting, code=error.code, detail=error.what), self._clock().wall)
            return
        _check_label(state, target)
        download = _Download(effect.bundle, effect.step, effect.blobs, target.release, policy=_policy(state), waiting=waiting)
        if effect.step == "weights" and state.target is not None:
            download.held = _held_before(state)
            download.index = self._bundles.deltas(effect.bundle)
        self._want(app, download, effect.blobs, target.every())

    def _fetch_later(self, app: str, state: AppSlots, effect: Fetch) -> None:
        try:
            self.fetch(app, state, effect)
        except JetfleetError as error:
            self.fault(app, effect.bundle, error)

    def fault(self, app: str, bundle: str, error: JetfleetError) -> None:
        """Say `Faulted` of the challenger."""
        model = isinstance(error, (MalformedError, UntrustedError)) and error.code != "store.rotten"
        self._post(AppEvent(app, Faulted(bundle, error.code, error.what, model)))

    def _want(self, app: str, download: _Download, blobs: Iterable[str], infos: Mapping[str, BlobInfo]) -> None:
        missing = {blob for blob in blobs if not self._store.sound(blob)}
        strange = missing - infos.keys()
        if strange:
            raise UntrustedError("bundle.unsigned", f"blob {min(strange)} of the bundle is not in its signed target")
        if missing and download.index is not None:
            if not self._store.sound(download.index.index):
                self._want_index(app, download, download.index, tuple(blobs))
                return
            download.routes = self._routes(app, download, download.index, missing)
        coming = {blob: infos[blob].size for blob in missing - download.routes.keys()}
        coming |= {source.delta: source.size for source in download.routes.values()}
        bases = {source.base: 0 for source in download.routes.values()}
        self.make_room({**bases, **{blob: infos[blob].size for blob in missing}, **coming}, self._ahead(download, infos))
        download.missing, download.received = missing, download.received + sum(coming.values())
        download.by_delta = sum(source.size for source in download.routes.values())
        download.saved = sum(infos[blob].size for blob in download.routes) - download.by_delta
        key = (app, download.repairs is not None)
        self._downloads[key] = download
        if not missing:
            self._complete(key)
            return
        self._meter(app, download, coming)
        self._want_anew(download, infos)

    # --- deltas ---------------------------------------------------------------------------------------------

    def _want_index(self, app: str, download: _Download, index: DeltaTarget, blobs: tuple[str, ...]) -> None:
        """Which deltas there are has to be known before anything is chosen."""
        self.make_room({index.index: index.info.size})
        download.missing, download.received = {index.index}, index.info.size
        download.then = partial(self._fetch_known, app, download, blobs)
        self._downloads[app, False] = download
        self._meter(app, download, (index.index,))
        self._fetcher.want(index.index, index.info)

    def _fetch_known(self, app: str, download: _Download, blobs: tuple[str, ...]) -> None:
        download.then = None
        self._want(app, download, blobs, self._bundles.bundle(download.bundle).every())

    def _routes(self, app: str, download: _Download, index: DeltaTarget, missing: set[str]) -> dict[str, DeltaSource]:
        """Raises what is wrong with the deltas when the deployment's policy does not allow the full download instead."""
        try:
            known = deltas.read_index(self._store, index.index, self._bundles.bundle(download.bundle))
            return deltas.routes(known, missing, download.held, self._store.has)
        except JetfleetError as error:
            if not self._allows_full(app, download, error):
                raise
            return {}

    def _allows_full(self, app: str, download: _Download, error: JetfleetError) -> bool:
        """Whether policy lets the full blobs come after a delta failed; the host is told of the failure first."""
        if download.policy.on_delta_failure != "full" or download.waiting is None:
            return False
        self._reports.add(app, msgspec.structs.replace(download.waiting, code=error.code, detail=error.what), self._clock().wall)
        return True

    def _in_full(self, app: str, download: _Download, blob: str, error: JetfleetError) -> bool:
        """Fetch in full what no delta could make, if policy says so."""
        source = download.routes.get(blob)
        if source is None or not error.code.startswith(deltas.PREFIX) or not self._allows_full(app, download, error):
            return False
        info = self._bundles.bundle(download.bundle).every()[blob]
        self.make_room({blob: info.size})
        del download.routes[blob]
        download.received += info.size
        download.saved -= info.size
        self._meter(app, download, (blob,))
        self._fetcher.want(blob, info)
        return True

    def _ahead(self, download: _Download, infos: Mapping[str, BlobInfo]) -> int:
        """Bytes that a later step needs at the least: as soon as the manifest is here, the smallest of its weight files."""
        if download.step != "parts":
            return 0
        weights = self._reader.weights(download.bundle)
        return min((self._store.needed(blob, infos[blob].size) for blob in weights if blob in infos), default=0)

    def make_room(self, sizes: Mapping[str, int], scratch: int = 0) -> None:
        """See that these blobs (size in bytes by id) and `scratch` bytes besides will fit. What is here already or reserved by a part
        counts as had; what nobody holds is removed if the rest would not fit otherwise.

        Raises:
            StorageError: `store.full`, `store.io`.
        """
        needed = scratch + sum(self._store.needed(blob, size) for blob, size in sizes.items())
        try:
            self._store.check_space(needed)
        except StorageError:
            if not self._remove_unused(sizes.keys()):
                raise
            self._store.check_space(needed)

    def _meter(self, app: str, download: _Download, blobs: Iterable[str]) -> None:
        """These blobs come by the app's delivery policy, and count as its bytes."""
        download.sources |= set(blobs)
        self._fetcher.meter.assign(app, download.policy, blobs)

    def _waits(self, blob: str, code: str, why: str) -> None:
        """A blob must wait for its hour or its day: the host is told; it goes on by itself."""
        for (app, _), download in self._downloads.items():
            if blob in download.sources:
                log.info("%s: %s", app, why)
                told = download.waiting or Progress(0, "idle", download.bundle)
                self._reports.add(app, msgspec.structs.replace(told, code=code, detail=why), self._clock().wall)

    def blob_done(self, blob: str) -> None:
        """A blob is in the store."""
        for key, download in list(self._downloads.items()):
            if blob in download.missing:
                download.missing.discard(blob)
                if not download.missing:
                    self._complete(key)

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        """A blob cannot be had."""
        for key, download in list(self._downloads.items()):
            if blob in download.missing:
                self._blob_lost(key, download, blob, error)

    def _blob_lost(self, key: tuple[str, bool], download: _Download, blob: str, error: JetfleetError) -> None:
        try:
            if self._in_full(key[0], download, blob, error):
                return
        except JetfleetError as another:
            error = another
        del self._downloads[key]
        if download.repairs is None:
            self.fault(key[0], download.bundle, error)
        else:
            self._awaiting[key] = partial(self.repair, key[0], download.repairs)

    def try_again(self) -> None:
        """New signed metadata, or the broker is back: what could not be had may be there now."""
        awaiting, self._awaiting = self._awaiting, {}
        for retry in awaiting.values():
            retry()
        for download in list(self._downloads.values()):
            with contextlib.suppress(UntrustedError):  # withdrawn: the deployment that follows says what to do instead
                self._want_anew(download, self._bundles.bundle(download.bundle).every())

    def _want_anew(self, download: _Download, infos: Mapping[str, BlobInfo]) -> None:
        """Ask for what is missing, each blob in its own way; they may have been published again, cut into other chunks."""
        for blob in sorted(download.missing & infos.keys()):
            source = download.routes.get(blob)
            if source is None:
                self._fetcher.want(blob, infos[blob])
            else:
                self._fetcher.want_by_delta(blob, infos[blob], source)

    def abandon(self, app: str) -> None:
        """Nobody waits for the app's challenger any more; a repair of its champion goes on."""
        self._downloads.pop((app, False), None)
        self._awaiting.pop((app, False), None)
        self._fetcher.cancel_except({blob for download in self._downloads.values() for blob in download.missing})

    def _complete(self, key: tuple[str, bool]) -> None:
        app, download = key[0], self._downloads.pop(key)
        try:
            if download.repairs is not None:
                self._start_repaired(app, download.repairs)
                return
            if download.then is not None:
                download.then()
                return
            following = self._following(download)
        except JetfleetError as error:
            if error.code != "store.rotten" or not self._want_again(app, download):
                self.fault(app, download.bundle, error)
            return
        carried = sum(self._fetcher.meter.take(blob).received for blob in download.sources)
        self._post(AppEvent(app, Fetched(download.bundle, download.step, following, download.received, download.release,
                                         download.by_delta, download.saved, carried)))

    def _want_again(self, app: str, download: _Download) -> bool:
        """Rot in a file that was complete: fetch it once more within the same step. False when that is not possible."""
        if download.again:
            return False
        download.again = True
        try:
            self._want(app, download, download.blobs, self._bundles.bundle(download.bundle).every())
        except JetfleetError as error:
            log.warning("%s: %s", app, error.what)
            return False
        return True

    def _following(self, download: _Download) -> tuple[str, ...]:
        if download.step == "manifest":
            return self._reader.parts(download.bundle)
        if download.step == "parts":
            contents = self._reader.contents(download.bundle)
            wanted = self._wanted(contents.spec, contents.evaluation)
            return tuple(dict.fromkeys(blob_of_digest(contents.spec.variant(candidate.variant).digest) for candidate in wanted))
        return ()

    # --- a committed model's files --------------------------------------------------------------------------

    def damaged(self, app: str, state: AppSlots, slot: Slot, error: JetfleetError) -> None:
        """Files of a committed model are damaged or missing: tell the host, and get what is damaged again."""
        log.warning("%s: the committed model cannot be started: %s", app, error.what)
        told = Progress(state.seq, state.phase, slot.bundle, slot.version, slot.version, code=error.code, detail=error.what)
        self._reports.add(app, told, self._clock().wall)
        self.repair(app, slot)

    def repair(self, app: str, slot: Slot) -> None:
        """Fetch what is missing of a committed model, then start it."""
        try:
            infos = self._bundles.bundle(slot.bundle).every()
            blobs = (slot.bundle, *slot.blobs)
            state = next((state for state in self._states() if state.app == app), AppSlots(app))
            told = Progress(state.seq, state.phase, slot.bundle, slot.version, slot.version)
            self._want(app, _Download(slot.bundle, "", blobs, repairs=slot, policy=_policy(state), waiting=told), blobs, infos)
        except JetfleetError as error:
            log.warning("%s: not yet: %s", app, error.what)
            self._awaiting[app, True] = partial(self.repair, app, slot)

    def _start_repaired(self, app: str, slot: Slot) -> None:
        """Start it unless another model has taken its place since."""
        live = next((live_slot(state) for state in self._states() if state.app == app), None)
        if live is None or live.bundle != slot.bundle:
            return
        try:
            self._repaired(app, live)
        except JetfleetError as error:
            log.warning("%s: still not whole: %s", app, error.what)
            self._awaiting[app, True] = partial(self.repair, app, live)

    # --- garbage --------------------------------------------------------------------------------------------

    def ask_for_collection(self) -> None:
        """Something may have become unused."""
        self._garbage = True

    def collect(self) -> None:
        """Drop unused blobs, if asked for and nothing is being fetched: a table that was fetched already saves asking for it again."""
        if not self._garbage or self._downloads:
            return
        self._garbage = False
        try:
            self._remove_unused(())
        except StorageError as error:
            log.warning("unused blobs could not be removed: %s", error.what)

    def _remove_unused(self, wanted: Iterable[str]) -> bool:
        """Remove what no slot of any app holds, and what no download needs or will need. Whether anything went."""
        under_way = {blob for download in self._downloads.values() for blob in download.missing}
        held = {blob for state in self._states() for blob in blobs_in_use(state)}
        gone = self._store.remove_except({*held, *self._engines(held), *under_way, *wanted, *self._fetcher.held})
        if gone:
            log.info("%d unused blobs removed", len(gone))
        return bool(gone)


def _policy(state: AppSlots) -> DeliveryPolicy:
    return state.target.spec.delivery if state.target is not None else DeliveryPolicy()


def _waiting_for_metadata(state: AppSlots) -> Progress:
    slot, target = state.challenger, state.target
    if slot is None or target is None:
        return Progress(state.seq, state.phase)
    return Progress(state.seq, state.phase, slot.bundle, slot.version, state.champion.version if state.champion else "",
                    rollout=target.rollout)


def _held_before(state: AppSlots) -> frozenset[str]:
    """What this board holds for the app beside the challenger."""
    return blobs_in_use(msgspec.structs.replace(state, challenger=None))


def _check_label(state: AppSlots, target: BundleTarget) -> None:
    """What the deployment calls the bundle is what it was signed as; metadata may have come after the deployment."""
    slot = state.challenger
    if slot is not None and (slot.name, slot.version) != (target.name, target.version):
        raise UntrustedError("trust.mix", f"{state.app} is to run {slot.name}:{slot.version}, but its bundle was signed as "
                                          f"{target.name}:{target.version}")
