"""Whatever comes over the broker, the intake gives a bounded message or one of our errors, and the store takes what it gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics
from jetfleet_contract.errors import MalformedError, UntrustedError
from jetfleet_contract.messages import Birth, Capability, DeviceState, Envelope, Report, Result, Series, Signature, Telemetry, encode
from jetfleet_contract.sketch import sketch_of
from jetfleet_host import intake
from jetfleet_host.collector import Collector, Incoming
from jetfleet_host.signing import verify_device
from jetfleet_host.store.database import Database

KEY = "ab" * 32
BIRTH = Birth("dock-1", 1, "0.1", 1, KEY, Capability("cpu-x86", "cpu-x86", "x86_64"))
REPORT = Report("dock-1", 1, 1, "reader", 0.0, "idle", "cd" * 32, "2", "1", "committed")
WINDOW = Telemetry("dock-1", 1, 1, 0.0, 1.0, (Series("reader", "cd" * 32, "1", "c", "front", 1, 1, {"stale": 1},
                                                       {"total": sketch_of([1.0])}),), {"cpu_pct": 1.0})
RESULT = Result("reader", "front", 1, 0.0, 1.0, "1", "c")

_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30), lambda inner: st.lists(
    inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=12)


def trusting(envelope: bytes, _key: str, _kind: str, message: type[Any]) -> Any:
    """Takes every signature for good, so that the bounds behind it are what is tested."""
    return msgspec.json.decode(envelope, type=message)


READERS: dict[str, tuple[Any, Callable[[bytes], object]]] = {
    "birth": (BIRTH, lambda data: intake.birth_from(topics.birth("dock-1"), data, KEY, trusting)),
    "report": (REPORT, lambda data: intake.report_from(topics.report("dock-1"), data, KEY, trusting)),
    "state": (DeviceState("dock-1", True, 1), lambda data: intake.state_from(topics.state("dock-1"), data)),
    "telemetry": (WINDOW, lambda data: intake.telemetry_from(topics.telemetry("dock-1"), data, KEY, trusting)),
    "result": (RESULT, lambda data: intake.result_from(topics.result("dock-1"), data)),
}


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_a_changed_field_is_within_bounds_or_refused(kind: str, data: st.DataObject) -> None:
    message, read = READERS[kind]
    plain = msgspec.json.decode(encode(message))
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(_JSON)
    try:
        body = msgspec.json.encode(plain)
        found = read(body)
    except (MalformedError, UntrustedError, msgspec.MsgspecError, UnicodeEncodeError):
        return
    for text in _texts(msgspec.to_builtins(found)):
        if kind != "result":  # kept as bytes
            assert "\0" not in text
    for number in _numbers(msgspec.to_builtins(found)):
        assert math.isfinite(number)


@pytest.mark.parametrize("kind", READERS)
@given(noise=st.binary(max_size=300))
def test_noise_is_refused(kind: str, noise: bytes) -> None:
    with pytest.raises((MalformedError, UntrustedError, msgspec.MsgspecError, UnicodeDecodeError)):
        READERS[kind][1](noise)


@given(noise=st.binary(max_size=300) | st.builds(
    lambda keyid, body: encode(Envelope("birth", msgspec.Raw(msgspec.json.encode(body)), (Signature(keyid, "00" * 64),))),
    st.text(max_size=70), st.integers()))
def test_claimed_keys(noise: bytes) -> None:
    with suppress(MalformedError):
        assert len(intake.claimed_key(noise)) == 64


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collector, Path, bytes]:
    folder = tmp_path_factory.mktemp("fleet")
    collector = Collector(Database.open(f"sqlite:///{folder / 'fleet.db'}"), verify_device)
    identity = Identity.load_or_create(folder / "board")
    birth = msgspec.structs.replace(BIRTH, key=identity.public_hex)
    assert collector.ingest([Incoming(topics.birth("dock-1"), identity.sign("birth", birth), 1.0)]).rejected == 0
    return collector, folder, identity.sign("telemetry", WINDOW)


@given(kind=st.sampled_from(sorted(READERS)), noise=st.binary(max_size=200), topic=st.text(max_size=40), device=st.text(max_size=10))
def test_the_collector_takes_any_batch(fleet: tuple[Collector, Path, bytes], kind: str, noise: bytes, topic: str, device: str) -> None:
    good = Incoming(topics.telemetry("dock-1"), fleet[2], 1.0)
    bad = [Incoming(where, noise, 1.0) for where in (f"jf/1/d/dock-1/{kind}", topic, f"jf/1/d/{device}/{kind}")]
    assert fleet[0].ingest([*bad, good]).rejected <= 3


def test_the_batches_before_left_one_window(fleet: tuple[Collector, Path, bytes]) -> None:
    fleet[0].ingest([Incoming(topics.telemetry("dock-1"), fleet[2], 1.0)])
    with closing(Database.open(f"sqlite:///{fleet[1] / 'fleet.db'}")) as database, database.reading() as session:
        from jetfleet_host.store.models import Device

        assert session.get_one(Device, "dock-1").windows == 1


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [text for part in parts for text in _texts(part)]


def _numbers(value: object) -> list[float]:
    if isinstance(value, (int, float)):
        return [float(value)]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [number for part in parts for number in _numbers(part)]
