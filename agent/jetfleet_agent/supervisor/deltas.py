"""Deltas on the board: which way each blob comes, and making a blob from its base once its delta is here.

`DeltaFetcher` stands where a Fetcher stands. A blob that comes by a delta is, to whoever wants it, a blob like any other: it is done when
it is verified in the store, or it fails with a code. Which of the two ways is taken, and what follows a failure, is not decided here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from jetfleet_contract.chunks import BlobInfo, ChunkTable
from jetfleet_contract.deltas import MAX_INDEX_BYTES, DeltaIndex, DeltaSource, decode_index, route
from jetfleet_contract.errors import JetfleetError, StorageError, UntrustedError
from jetfleet_contract.trust import BundleTarget

from .bundle_reader import Blobs
from .metering import Metering
from .store import BlobStore

log = logging.getLogger(__name__)

PREFIX = "delta."
WORK_POLL_S = 0.02


class Fetching(Protocol):
    """What is used of a Fetcher here."""

    @property
    def held(self) -> set[str]: ...
    @property
    def progress(self) -> dict[str, tuple[int, int]]: ...
    @property
    def gauges(self) -> dict[str, float]: ...
    @property
    def meter(self) -> Metering: ...
    def want(self, blob: str, info: BlobInfo) -> None: ...
    def cancel_except(self, blobs: set[str]) -> None: ...
    def on_message(self, topic: str, payload: bytes) -> bool: ...
    def on_link_up(self) -> None: ...
    def on_link_down(self) -> None: ...
    def tick(self) -> float: ...
    def close(self) -> None: ...


class Patching(Protocol):
    """What is used of a PatchProcess."""

    def apply(self, base: Path, delta: Path, target: Path, size: int) -> None: ...
    def stop(self) -> None: ...


Done = Callable[[str], None]
Failed = Callable[[str, JetfleetError], None]


def read_index(store: Blobs, index: str, bundle: BundleTarget) -> DeltaIndex:
    """The fetched index of the deltas to `bundle`. Raises as `decode_index` and `BlobStore.read`."""
    return decode_index(store.read(index, MAX_INDEX_BYTES), bundle)


def routes(index: DeltaIndex, missing: Collection[str], held: Collection[str], has: Callable[[str], bool]) -> dict[str, DeltaSource]:
    """The delta that each missing blob comes by; a blob for which the host made none, or none from what this board runs, is not in it.

    Args:
        held: what the slots of this board hold. has: whether a blob is in the store.

    Raises:
        StorageError: `delta.base-missing` when the only bases for a blob are ones that the board should have and has not.
    """
    found: dict[str, DeltaSource] = {}
    for blob in missing:
        way = route(index, blob, has)
        if way.source is not None:
            found[blob] = way.source
            continue
        lost = [source.base for source in index.targets.get(blob, ()) if source.base in held]
        if lost:
            raise StorageError("delta.base-missing", f"the base {lost[0][:16]}... of the delta to {blob[:16]}... is not in the store",
                               remedy="allow the full download with delivery.on_delta_failure = 'full'")
    return found


class DeltaFetcher:
    """See the module. Called from the control thread; one worker thread applies.

    Args:
        make: makes the Fetcher from its `done` and `failed`.
        done, failed: told of every blob that was wanted, from the calling thread.
    """

    def __init__(self, store: BlobStore, make: Callable[[Done, Failed], Fetching], patching: Patching, done: Done, failed: Failed) -> None:
        self._store = store
        self._patching = patching
        self._done = done
        self._failed = failed
        self._by_delta: dict[str, list[tuple[str, BlobInfo, DeltaSource]]] = {}
        self._applying: dict[str, tuple[DeltaSource, Future[None]]] = {}
        self._wanted: set[str] = set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="patch")
        self._fetcher = make(self._arrived, self._lost)

    # --- what a Fetcher does ----------------------------------------------------------------------------------

    def want(self, blob: str, info: BlobInfo) -> None:
        """Fetch `blob` in full. As `Fetcher.want`."""
        self._wanted.add(blob)
        self._fetcher.want(blob, info)

    def cancel_except(self, blobs: set[str]) -> None:
        """Stop fetching whatever is not in `blobs`, or leads to one of them. What is being applied is finished and then not told."""
        for delta, users in list(self._by_delta.items()):
            kept = [user for user in users if user[0] in blobs]
            if kept:
                self._by_delta[delta] = kept
            else:
                del self._by_delta[delta]
        self._wanted &= blobs
        self._fetcher.cancel_except(blobs | self._by_delta.keys())

    def on_message(self, topic: str, payload: bytes) -> bool:
        return self._fetcher.on_message(topic, payload)

    def on_link_up(self) -> None:
        self._fetcher.on_link_up()

    def on_link_down(self) -> None:
        self._fetcher.on_link_down()

    def tick(self) -> float:
        """As `Fetcher.tick`; takes up what the worker has finished."""
        for blob, (source, work) in list(self._applying.items()):
            if work.done():
                del self._applying[blob]
                self._settle(blob, source, work)
        wait = self._fetcher.tick()
        return min(wait, WORK_POLL_S) if self._applying else wait

    def close(self) -> None:
        """Kill what is being applied, end the worker, close the Fetcher."""
        self._patching.stop()
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._fetcher.close()

    @property
    def progress(self) -> dict[str, tuple[int, int]]:
        return self._fetcher.progress

    @property
    def meter(self) -> Metering:
        return self._fetcher.meter

    @property
    def gauges(self) -> dict[str, float]:
        return self._fetcher.gauges

    @property
    def held(self) -> set[str]:
        """Blobs that must stay in the store: those of the Fetcher, and base, delta and result of every delta that is under way."""
        users = [user for users in self._by_delta.values() for user in users]
        held = self._fetcher.held | self._by_delta.keys() | {blob for blob, _, _ in users} | {source.base for _, _, source in users}
        for blob, (source, _) in self._applying.items():
            held |= {blob, source.base, source.delta}
        return held

    # --- deltas -----------------------------------------------------------------------------------------------

    def want_by_delta(self, blob: str, info: BlobInfo, source: DeltaSource) -> None:
        """Fetch `source.delta` and make `blob` of it. Idempotent.

        Fails with the codes of `PatchProcess.apply`, or as `want` does for the delta.
        """
        users = self._by_delta.setdefault(source.delta, [])
        if all(user[0] != blob for user in users):
            users.append((blob, info, source))
        if blob not in self._applying:
            self._fetcher.want(source.delta, source.info)

    def _arrived(self, blob: str) -> None:
        for target, info, source in self._by_delta.get(blob, ()):
            if target not in self._applying:
                self._applying[target] = source, self._worker.submit(self._apply, target, info, source)
        if blob in self._wanted:
            self._wanted.discard(blob)
            self._done(blob)

    def _lost(self, blob: str, error: JetfleetError) -> None:
        for target, _, _ in self._by_delta.pop(blob, ()):
            self._failed(target, error)
        if blob in self._wanted:
            self._wanted.discard(blob)
            self._failed(blob, error)

    def _apply(self, blob: str, info: BlobInfo, source: DeltaSource) -> None:
        """In the worker: make the blob, verify what the disk gives back, give it its name."""
        base = self._store.folder / source.base
        with self._store.open_partial(blob, ChunkTable(info.size, info.chunk_size, b"")) as part:
            self._patching.apply(base, self._store.path(source.delta), self._store.part(blob), info.size)
            try:
                part.finish()
            except UntrustedError:
                raise UntrustedError("delta.wrong-result", f"what a delta made of blob {blob[:16]}... reads back wrong from disk") from None

    def _settle(self, blob: str, source: DeltaSource, work: Future[None]) -> None:
        """Tell how it went, unless nobody wants to know any more."""
        users = self._by_delta.get(source.delta, [])
        rest = [user for user in users if user[0] != blob]
        if rest:
            self._by_delta[source.delta] = rest
        else:
            self._by_delta.pop(source.delta, None)
        if len(rest) == len(users):
            return
        try:
            work.result()
        except JetfleetError as error:
            log.warning("%s: %s", error.code, error.what)
            if error.code == "delta.base-damaged":
                self._store.doubt(source.base)  # a running model's file: read again, and repaired, before it is started next
            self._failed(blob, error)
            return
        self._done(blob)
