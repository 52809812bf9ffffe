"""A real `Supervisor` in a thread, with real pipelines that run `fake_pipeline.py`, and simulated link, trust, fetcher and chooser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from pipeline_bench import PROGRAM
from supervised_lives import CANDIDATE, Shelf

from jetfleet_agent.config import AgentConfig, BrokerConfig
from jetfleet_agent.supervisor.core import Supervisor, begin_session
from jetfleet_agent.supervisor.inbox import Inbox
from jetfleet_agent.supervisor.journal import Journal
from jetfleet_agent.supervisor.metering import Metering
from jetfleet_agent.supervisor.pipeline_link import PipelineLink, run_folder
from jetfleet_agent.supervisor.pipelines import Pipelines
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_agent.supervisor.upload_store import UploadStore
from jetfleet_agent.supervisor.uploads import Uploads
from jetfleet_contract import topics
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.delegations import DelegationBlob
from jetfleet_contract.deltas import DeltaSource
from jetfleet_contract.errors import UntrustedError
from jetfleet_contract.evaluation import EvaluationResult
from jetfleet_contract.kernel_sets import KernelsTarget
from jetfleet_contract.messages import (
    Capability,
    Command,
    Deployment,
    Instant,
    Report,
    decode,
    encode,
)
from jetfleet_contract.policy import Candidate, Choice, ChoiceRow
from jetfleet_contract.trust import BundleTarget, DeltaTarget
from jetfleet_contract.tuning import Tuning

DEVICE = "board"


class FakeLink:
    """Keeps what is published; `up` and `down` are the broker's."""

    def __init__(self) -> None:
        self.connected = False
        self.limits = BrokerLimits()
        self.refused: dict[str, int] = {}
        self.gauges = {"link_hangs": 0.0}
        self.backlog = 0
        self.limits = BrokerLimits()
        self.subscribed: dict[str, int] = {}
        self.published: list[tuple[str, bytes, int, bool, int]] = []

    def start(self) -> None: ...
    def stop(self) -> None: ...

    def tick(self) -> float:
        return 5.0

    def subscribe(self, topic: str, qos: int) -> None:
        self.subscribed[topic] = qos

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        self.published.append((topic, payload, qos, retain, expiry_s))
        return True

    def last(self, topic: str, kind: type[Any]) -> Any:
        found = [payload for name, payload, *_ in self.published if name == topic]
        return decode(found[-1], kind) if found else None


class FakeTrust:
    """Trusts what the shelf has, once metadata came."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.ready = self.clock_is_wrong = False

    def delegation(self, device_class: str) -> DelegationBlob | None:
        return None

    def accept_delegation(self, device_class: str, data: bytes, now: Instant) -> None: ...

    def kernels(self, interface: int) -> KernelsTarget | None:
        return None

    def bundle(self, manifest_blob: str) -> BundleTarget:
        return self.shelf.bundle(manifest_blob)

    def deltas(self, manifest_blob: str) -> DeltaTarget | None:
        return self.shelf.deltas(manifest_blob)

    def update(self, package: bytes, now: Instant) -> bool:
        if package == b"bad":
            raise UntrustedError("trust.signature", "not ours")
        if self.clock_is_wrong:
            raise UntrustedError("trust.clock", "no time service has set the clock")
        self.ready = True
        return True

    def deployment(self, data: bytes, device: str, last_seq: int, last_digest: str, now: Instant) -> Deployment:
        if not self.ready:
            raise UntrustedError("trust.no-metadata", "no metadata yet")
        if data == b"forged":
            raise UntrustedError("trust.signature", "not ours")
        found = decode(data, Deployment)
        if found.seq < last_seq:
            raise UntrustedError("trust.seq-lower", "older")
        return found

    def command(self, data: bytes, device: str, now: Instant) -> Command:
        return decode(data, Command)

    def from_host(self, data: bytes, kind: str, message: type[Any]) -> Any:
        return decode(data, message)


class FakeFetcher:
    def __init__(self, store: BlobStore, shelf: Shelf, done: Callable[[str], None]) -> None:
        self.store, self.shelf, self.done = store, shelf, done
        self.ups = self.downs = 0
        self.explode = False
        self.gauges: dict[str, float] = {}
        self.meter = Metering(store.folder.with_name("delivery-days.json"))

    def want(self, blob: str, info: BlobInfo) -> None:
        self.store.put_bytes(blob, self.shelf.paths[blob].read_bytes())
        self.done(blob)

    def want_by_delta(self, blob: str, info: BlobInfo, source: DeltaSource) -> None:
        raise AssertionError("no bundle of this rig has deltas")

    @property
    def held(self) -> set[str]:
        return set()

    def cancel_except(self, blobs: set[str]) -> None: ...
    def close(self) -> None: ...

    def on_message(self, topic: str, payload: bytes) -> bool:
        if self.explode:
            raise RuntimeError("a bug somewhere")
        return False

    def on_link_up(self) -> None:
        self.ups += 1

    def on_link_down(self) -> None:
        self.downs += 1

    def tick(self) -> float:
        return 60.0


class FakeChooser:
    """Chooses `winners` one after the other, the last one for ever; `under` is what it remembers of its last choice."""

    capability = Capability("cpu-x86", "cpu-x86", "x86_64")

    def __init__(self) -> None:
        self.winners = [CANDIDATE]
        self.under: Conditions | None = None
        self.cheaper: Candidate | None = None
        self.agreement = 0.99

    def wanted(self, spec: Any, evaluation: Any) -> Any:
        return (CANDIDATE,)

    def choose(self, spec: Any, evaluation: Any, paths: Any, images: Any, done: Callable[[Choice], None]) -> None:
        winner = self.winners.pop(0) if len(self.winners) > 1 else self.winners[0]
        done(Choice((ChoiceRow(winner, "chosen", "the fastest"),), winner))

    def probe_model(self, path: Any, candidate: Any, spec: Any, probe: Any, images: Any,
                    done: Callable[[EvaluationResult, float], None]) -> None:
        done(EvaluationResult("onnxruntime"), self.agreement)

    def tuning(self, spec: Any, candidate: Any) -> Tuning:
        return Tuning()

    def eco(self, spec: Any, candidate: Any) -> Tuning | None:
        return None

    def chosen_under(self, name: str, version: str) -> Conditions | None:
        return self.under

    def lean(self, spec: Any, candidate: Any) -> Candidate | None:
        return self.cheaper

    def stop(self) -> None: ...


class PlainIdentity:
    public_hex = "ab" * 32

    def sign(self, kind: str, message: msgspec.Struct) -> bytes:
        return encode(message)


class Rig:
    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self.inbox = Inbox()
        self.journal = Journal(folder / "journal")
        self.link = FakeLink()
        self.trust = FakeTrust(shelf)
        self.store = BlobStore(folder)
        self.fetcher = FakeFetcher(self.store, shelf, self.inbox.blob_done)
        self.session = begin_session(self.journal, self.now())
        link = PipelineLink(run_folder(folder) / "s", self.inbox.put)
        self.pipelines = Pipelines(link, time.monotonic, lambda: 0.0, program=PROGRAM)
        config = AgentConfig(DEVICE, folder / "root.json", BrokerConfig("127.0.0.1"), folder, window_s=0.2)
        waiting = UploadStore(folder, DEVICE, 4, 1 << 20)
        self.uploads = Uploads(waiting, self.link, DEVICE, PlainIdentity(), self.trust, self.now, config.upload)
        self.beats = 0
        self.chooser = FakeChooser()
        self.supervisor = Supervisor(config, self.session, self.inbox, self.journal, self.link, self.trust, self.store, self.fetcher,
                                     self.uploads, PlainIdentity(), self.chooser, self.pipelines, self.now, beat=self.beat,
                                     log_lines=lambda count: [f"line {n}" for n in range(count)])
        self.thread = threading.Thread(target=self.supervisor.run)
        self.thread.start()

    def now(self) -> Instant:
        return Instant(time.monotonic(), "boot", time.time(), wall_trusted=True)

    def beat(self) -> None:
        self.beats += 1

    def up(self) -> None:
        self.link.connected = True
        self.inbox.link_up()

    def stop(self) -> None:
        self.inbox.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    @property
    def running(self) -> str:
        """The bundle that the app's pipeline said last that it runs."""
        return next((app.live for app in self.pipelines._apps.values()), "")

    def reports(self) -> list[Report]:
        return [decode(payload, Report) for topic, payload, *_ in self.link.published if topic == topics.report(DEVICE)]
