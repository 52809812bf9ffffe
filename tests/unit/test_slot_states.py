"""The A/B machine's stored state: read back as it was, from older and later releases, and when it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from slot_worlds import BUNDLES, World, updating

from jetfleet_contract import slot_records as r
from jetfleet_contract.slots import blobs_in_use

A, B, C = BUNDLES["a"], BUNDLES["b"], BUNDLES["c"]


GOLDEN = json.loads((Path(__file__).parent.parent / "vectors/slot_states_v1.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_state_of_an_older_release_of_the_agent_goes_on_where_it_was(name: str) -> None:
    state = r.restore("app", json.dumps(GOLDEN[name]).encode())
    assert state.phase == GOLDEN[name].get("phase", "idle")
    assert json.loads(msgspec.json.encode(state)) == GOLDEN[name]
    world = World()
    world.store = set(blobs_in_use(state))
    world.disk = state
    world.restart()
    world.check()


def test_a_state_of_a_later_release_keeps_the_committed_slot() -> None:
    world = updating("trial")
    assert world.state.champion is not None
    stored = json.loads(msgspec.json.encode(world.state))
    stored["later"] = 1
    stored["champion"]["later"] = {"deep": [1]}
    stored["champion"]["candidate"]["later"] = True
    stored["champion"]["setup"]["sources"][0]["later"] = "x"
    found = r.restore("app", json.dumps(stored).encode())
    assert found == r.AppSlots("app", champion=world.state.champion)


@pytest.mark.parametrize("phase", r.PHASES)
def test_every_phase_is_read_back_as_it_was(phase: str) -> None:
    world = updating(phase)
    assert r.restore("app", msgspec.json.encode(world.state)) == world.state


@pytest.mark.parametrize("change", [
    {"phase": "levitating"}, {"schema": 99}, {"later_field": 1}, {"phase": "keeping", "challenger": None}, {"target": {"seq": "x"}},
])
def test_a_state_that_is_not_understood_keeps_the_committed_slot(change: dict[str, object]) -> None:
    world = updating("trial")
    stored = {**msgspec.json.decode(msgspec.json.encode(world.state)), **change}
    found = r.restore("app", msgspec.json.encode(stored))
    assert (found.phase, found.champion, found.seq) == ("idle", world.state.champion, 0)


@pytest.mark.parametrize("data", [None, b"", b"\xff\x00", b"[]", b"{}", b'{"app":"other"}', b"[" * 100_000])
def test_what_is_no_state_at_all_is_an_empty_one(data: bytes | None) -> None:
    assert r.restore("app", data) == r.AppSlots("app")
