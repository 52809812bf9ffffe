"""What the class cache of engines uses of the supervisor's other parts, and what stands in its place on a board without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_contract.bundle import ModelSpec
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import DelegationBlob, EngineTarget
from jetfleet_contract.engine_use import Judged
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.policy import Candidate
from jetfleet_contract.slot_records import Slot
from jetfleet_contract.tuning import Tuning
from jetfleet_contract.uploads import Kind

from .bundle_reader import Blobs
from .engine_work import EngineAnswer, EngineOrder


class Vouching(Protocol):
    """What is used of a TrustStore."""

    @property
    def clock_floor(self) -> float: ...
    def engine(self, device_class: str, path: str) -> EngineTarget: ...
    def engines(self, device_class: str) -> tuple[EngineTarget, ...]: ...
    def delegation(self, device_class: str) -> DelegationBlob | None: ...
    def builders(self, device_class: str) -> Mapping[str, str]: ...
    def uncertified(self, device_class: str) -> frozenset[str]: ...
    def vouched(self, device_class: str) -> bytes | None: ...


class Storing(Blobs, Protocol):
    """What is used of a BlobStore."""

    def put_bytes(self, blob: str, data: bytes) -> Path: ...


class Wanting(Protocol):
    """What is used of a DeltaFetcher."""

    def want(self, blob: str, info: BlobInfo) -> None: ...


class Giving(Protocol):
    """What is used of Uploads."""

    def offer_bytes(self, data: bytes, kind: Kind, name: str, *, command: int = 0) -> str: ...
    def is_waiting(self, blob: str) -> bool: ...


class Signing(Protocol):
    """What is used of an Identity."""

    @property
    def public_hex(self) -> str: ...
    def sign(self, kind: str, message: msgspec.Struct) -> bytes: ...
    def sign_bytes(self, data: bytes) -> bytes: ...


class Saying(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class Working(Protocol):
    """What is used of EngineWork."""

    def put(self, order: EngineOrder) -> None: ...
    def answers(self) -> list[EngineAnswer]: ...
    def stop(self) -> None: ...


class NoEngines:
    """A board that compiles everything itself, and builds for nobody."""

    building = False

    def engine(self, app: str, slot: Slot, spec: ModelSpec,  # noqa: ARG002
               candidate: Candidate, tuning: Tuning, threads: int) -> EngineFile | None:  # noqa: ARG002
        return None

    def held(self, bundles: set[str]) -> set[str]:  # noqa: ARG002
        return set()

    def obey(self, op: str, command: int, args: Mapping[str, str]) -> tuple[str, str, str]:  # noqa: ARG002
        return "command.unsupported", f"{op}: this board has no engines", ""

    def explained(self) -> dict[str, str]:
        return {}

    def judged(self) -> tuple[Judged, ...]:
        return ()

    def failed(self, app: str, code: str) -> bool:  # noqa: ARG002
        return False

    def serves(self, app: str) -> None: ...

    def ended(self, app: str, code: str) -> bool:  # noqa: ARG002
        return False

    def is_news(self, app: str) -> bool:  # noqa: ARG002
        return False

    def follow(self) -> None: ...
    def blob_done(self, blob: str) -> None: ...
    def blob_failed(self, blob: str, error: JetfleetError) -> None: ...
    def close(self) -> None: ...

    def tick(self) -> float:
        return 3600.0


class EngineCache(Protocol):
    """What the supervisor uses of `Engines`."""

    @property
    def building(self) -> bool: ...

    def engine(self, app: str, slot: Slot, spec: ModelSpec, candidate: Candidate, tuning: Tuning, threads: int) -> EngineFile | None: ...
    def held(self, bundles: set[str]) -> set[str]: ...
    def obey(self, op: str, command: int, args: Mapping[str, str]) -> tuple[str, str, str]: ...
    def explained(self) -> dict[str, str]: ...
    def judged(self) -> tuple[Judged, ...]: ...
    def failed(self, app: str, code: str) -> bool: ...
    def serves(self, app: str) -> None: ...
    def ended(self, app: str, code: str) -> bool: ...
    def is_news(self, app: str) -> bool: ...
    def follow(self) -> None: ...
    def blob_done(self, blob: str) -> None: ...
    def blob_failed(self, blob: str, error: JetfleetError) -> None: ...
    def close(self) -> None: ...
    def tick(self) -> float: ...
