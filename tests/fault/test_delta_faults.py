"""Applying a delta meets kills, full disks, hangs and too little memory: one named error, the base as it was, and the next try works."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from brokers import until
from delta_files import delta, moved, weights, write_onnx

from jetfleet_agent.patching import patch
from jetfleet_agent.supervisor.deltas import DeltaFetcher
from jetfleet_agent.supervisor.metering import Metering
from jetfleet_agent.supervisor.patch_process import PatchProcess
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.deltas import DeltaSource
from jetfleet_contract.errors import JetfleetError, StorageError

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


class Shop:
    """A store with a base, and a network that gives the delta at once."""

    def __init__(self, folder: Path, base: Path, target: Path, path: Path) -> None:
        self.store = BlobStore(folder / "board")
        self.path = path
        self.base, self.target, self.size = base.name, target.name, target.stat().st_size
        self.store.put_bytes(self.base, base.read_bytes())
        data = self.path.read_bytes()
        self.source = DeltaSource(self.base, hashlib.sha256(data).hexdigest(), len(data), "tensor", 1 << 20)
        self.done: list[str] = []
        self.failed: list[str] = []

    def fetcher(self, patching: PatchProcess) -> DeltaFetcher:
        return DeltaFetcher(self.store, lambda done, _failed: Network(self, done), patching, self._done, self._failed)

    def _done(self, blob: str) -> None:
        self.done.append(blob)

    def _failed(self, _blob: str, error: JetfleetError) -> None:
        self.failed.append(error.code)


class Network:
    """A Fetcher that has everything."""

    held: set[str] = set()
    progress: dict[str, tuple[int, int]] = {}
    gauges: dict[str, float] = {}

    def __init__(self, shop: Shop, done: Callable[[str], None]) -> None:
        self.shop, self.done, self.kept = shop, done, set[str]()
        self.meter = Metering(shop.store.folder / "meter.json")

    def want(self, blob: str, info: BlobInfo) -> None:
        self.shop.store.put_bytes(blob, self.shop.path.read_bytes())
        self.done(blob)

    def cancel_except(self, blobs: set[str]) -> None:
        self.kept = blobs

    def on_message(self, topic: str, payload: bytes) -> bool:
        return False

    def on_link_up(self) -> None: ...
    def on_link_down(self) -> None: ...

    def close(self) -> None:
        self.meter.close()

    def tick(self) -> float:
        return 1.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder, old = tmp_path_factory.mktemp("made"), weights()
    base, target = write_onnx(folder / "base", old), write_onnx(folder / "target", moved(old, 2e-5))
    return base, target, delta(base, target, methods=("tensor",))[1]


@pytest.fixture
def shop(tmp_path: Path, made: tuple[Path, Path, Path]) -> Shop:
    return Shop(tmp_path, *made)


def settled(shop: Shop, fetcher: DeltaFetcher) -> bool:
    fetcher.tick()
    return bool(shop.done or shop.failed)


def ask(shop: Shop, patching: PatchProcess) -> None:
    shop.done, shop.failed = [], []
    fetcher = shop.fetcher(patching)
    fetcher.want_by_delta(shop.target, BlobInfo(shop.size), shop.source)
    assert {shop.base, shop.target, shop.source.delta} <= fetcher.held, "garbage collection must leave these alone"
    until(lambda: settled(shop, fetcher), "an end")
    assert not {shop.base, shop.target} & fetcher.held
    fetcher.close()


def test_a_blob_is_made_of_its_base_and_a_delta(shop: Shop) -> None:
    ask(shop, PatchProcess())
    assert (shop.done, shop.failed) == ([shop.target], [])
    assert shop.store.sound(shop.target)
    assert not shop.store.part(shop.target).exists()


def test_a_kill_in_the_middle_costs_one_try(shop: Shop) -> None:
    program = f"import os, sys; open(sys.argv[3], 'r+b').write(b'half'); os.kill(os.getpid(), {int(signal.SIGKILL)})"
    ask(shop, PatchProcess((sys.executable, "-c", program)))
    assert (shop.done, shop.failed) == ([], ["delta.crash"])
    assert not shop.store.has(shop.target)
    assert shop.store.part(shop.target).exists(), "what the killed program left"
    ask(shop, PatchProcess())
    assert shop.done == [shop.target]
    assert shop.store.sound(shop.base)


def test_the_supervisors_death_leaves_nothing_that_counts(shop: Shop) -> None:
    child = os.fork()
    if child == 0:
        shop.store.part(shop.target).write_bytes(b"x" * (shop.size // 2))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    again = BlobStore(shop.store.folder.parent)
    assert not again.has(shop.target)
    ask(shop, PatchProcess())
    assert again.sound(shop.target)


def test_a_program_that_hangs_is_ended(shop: Shop) -> None:
    ask(shop, PatchProcess(SLEEPER, start_s=0.3))
    assert shop.failed == ["delta.timeout"]


def test_a_stop_ends_the_program_in_hand(shop: Shop) -> None:
    patching = PatchProcess(SLEEPER)
    codes: list[str] = []

    def work() -> None:
        try:
            patching.apply(shop.store.path(shop.base), shop.path, shop.store.part(shop.target), shop.size)
        except JetfleetError as error:
            codes.append(error.code)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: patching._running is not None, "the program")
    patching.stop()
    thread.join(30)
    assert codes == ["delta.stopped"]


def test_too_little_memory_is_an_error_of_the_board(shop: Shop) -> None:
    ask(shop, PatchProcess(memory_mb=60))
    assert len(shop.failed) == 1
    assert shop.failed[0] in ("delta.memory", "delta.crash")


def test_a_full_disk_is_named(shop: Shop) -> None:
    with pytest.raises(StorageError) as full:
        patch(shop.store.path(shop.base), shop.path, Path("/dev/full"), 1)
    assert full.value.code == "store.full"


def test_what_nobody_wants_any_more_is_not_told(shop: Shop) -> None:
    fetcher = shop.fetcher(PatchProcess())
    fetcher.want_by_delta(shop.target, BlobInfo(shop.size), shop.source)
    fetcher.cancel_except(set())
    deadline = time.monotonic() + 60
    while fetcher._applying and time.monotonic() < deadline:
        fetcher.tick()
    assert (shop.done, shop.failed, fetcher._applying) == ([], [], {})
    fetcher.close()
