"""A plan, its events and its evidence, for tests of the rollout machine."""

from __future__ import annotations

import msgspec

from jetfleet_contract.gates import BoardEvidence
from jetfleet_contract.messages import Instant
from jetfleet_contract.rollout import step
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import (
    Effect,
    Event,
    Evidence,
    Outcome,
    Rollout,
)
from jetfleet_contract.sketch import Sketch, sketch_of

FAST, SLOW = sketch_of([10.0] * 200), sketch_of([50.0] * 200)
NONE = Sketch()


def shown(old: Sketch, new: Sketch, *devices: str, **more: float) -> Evidence:
    return Evidence(tuple(BoardEvidence(device, old, new, **more) for device in devices or ("a",)))  # type: ignore[arg-type]


def at(seconds: float) -> Instant:
    return Instant(mono=seconds, boot_id="boot", wall=1e9 + seconds, wall_trusted=True)


def plan(*waves: tuple[str, ...], **changes: object) -> Plan:
    base = Plan("r1", "reader", "b" * 64, "ocr", "2", waves, before={d: "1" for wave in waves for d in wave})
    return msgspec.structs.replace(base, **changes)


def run(state: Rollout, *events: tuple[Event, float]) -> tuple[Rollout, list[Effect]]:
    effects: list[Effect] = []
    for event, when in events:
        state, some = step(state, event, at(when))
        effects += some
    return state, effects


def committed(device: str) -> Outcome:
    return Outcome(device, "committed")
