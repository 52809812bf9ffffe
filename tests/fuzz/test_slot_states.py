"""Stored states and pipeline lines, broken at random: a usable state or a MalformedError, never anything else."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from slot_worlds import World

from jetfleet_agent import ipc
from jetfleet_contract import slot_records as r
from jetfleet_contract.errors import MalformedError, OrderError
from jetfleet_contract.messages import Instant
from jetfleet_contract.slots import app_state, blobs_in_use, live_slot, next_tick, step

NOW = Instant(500.0, "boot", 1.8e9, wall_trusted=True)
STATES = [msgspec.to_builtins(World().install().go(phase, 2, "b").state) for phase in r.PHASES if phase != "idle"]
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


def usable(data: bytes) -> None:
    state = r.restore("app", data)
    assert state.app == "app"
    for event in (r.Resume(), r.Tick(), r.Crashed()):
        with contextlib.suppress(OrderError):
            after, _ = step(state, event, NOW)
            assert r.restore("app", msgspec.json.encode(after)) == after
    app_state(state), blobs_in_use(state), live_slot(state), next_tick(state, NOW)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    usable(data)


@given(st.sampled_from(STATES), st.data())
def test_a_real_state_with_one_field_replaced(state: dict[str, Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(state)))
    usable(msgspec.json.encode({**state, field: data.draw(JSON)}))


@given(st.sampled_from(STATES), st.integers(0, 4000), st.integers(0, 255))
def test_a_real_state_with_one_byte_replaced(state: dict[str, Any], at: int, byte: int) -> None:
    stored = bytearray(msgspec.json.encode(state))
    stored[at % len(stored)] = byte
    usable(bytes(stored))


@given(st.binary(max_size=300) | JSON.map(msgspec.json.encode))
def test_any_line_of_a_pipeline(line: bytes) -> None:
    with contextlib.suppress(MalformedError):
        ipc.event_from(line)
    with contextlib.suppress(MalformedError):
        ipc.order_from(line)
