"""What the demo promises is checked, and what it says follows from what was seen."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from jetfleet_contract.messages import AppState, Birth, Capability, Series
from jetfleet_contract.predictions import MatchCount
from jetfleet_contract.sketch import sketch_of
from jetfleet_host.demo.observations import ORIENT, TEXT, Frames, Observations, Update, Variant
from jetfleet_host.demo.scene import Truth
from jetfleet_host.demo.summary import BAD, BETTER, GOOD, Chosen, as_json, problems, tables

DEVICES = ("a", "b")
VARIANT = Variant(TEXT, BETTER, "fp32@openvino:fp32")


def update(device: str, app: str, to: str, outcome: str = "committed") -> Update:
    return Update(device, app, "", to, outcome, "", "because", "fp32@openvino:fp32", 0, 21.5, 20.0, 3.0)


def good_run() -> Observations:
    seen = Observations(Truth(640, 480, 25, ()))
    for device in DEVICES:
        seen.updates += [update(device, ORIENT, GOOD), update(device, TEXT, GOOD), replace(update(device, TEXT, BETTER), from_version=GOOD)]
        running = (AppState(TEXT, version=BETTER),)
        seen.births[device] = Birth(device, 1, "0", 1, "f" * 64, Capability("cpu-x86", "cpu-x86", "x86_64"), running)
        seen.results[device] = 10
    seen.updates.append(update("a", TEXT, BAD, "refused"))
    return seen


def test_a_good_run_has_no_problems() -> None:
    assert problems(good_run(), DEVICES) == []


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda seen: seen.updates.pop(), "refused nowhere"),
    (lambda seen: seen.updates.append(update("b", TEXT, BAD)), "was committed on b"),
    (lambda seen: seen.updates.pop(2), f"{TEXT} {BETTER} was not committed on a"),
    (lambda seen: seen.updates.pop(0), f"{ORIENT} {GOOD} was not committed on a"),
    (lambda seen: seen.births.pop("b"), "b ends with text nothing"),
    (lambda seen: seen.results.pop("b"), "b never sent a result"),
])
def test_what_did_not_happen_is_named(spoil: object, told: str) -> None:
    seen = good_run()
    spoil(seen)  # type: ignore[operator]
    found = problems(seen, DEVICES)
    assert any(told in problem for problem in found), found


def test_a_rolled_back_version_is_a_problem() -> None:
    seen = good_run()
    seen.updates.append(update("b", TEXT, BETTER, "rolled_back"))
    assert any("rolled_back" in problem for problem in problems(seen, DEVICES))


def test_json_and_tables_carry_the_numbers() -> None:
    seen = good_run()
    seen.scores[VARIANT], seen.answered[VARIANT] = MatchCount(9, 1, 1), 10
    series = Series(TEXT, "0" * 64, BETTER, VARIANT.candidate, "front", 12, 10, {"superseded": 2}, {"infer": sketch_of([4.0, 8.0])})
    seen._frames[("a", TEXT)] = Frames()
    seen._frames[("a", TEXT)].add(series)
    seen._sketches[("a", TEXT, "infer")] = series.stages["infer"]
    chosen = [Chosen("a", "cpu-x86", BETTER, VARIANT.candidate, "fastest")]
    outcome = json.loads(json.dumps(as_json(seen, DEVICES, chosen, {"latency": "l.png"}, {"build": 1.0})))
    assert outcome["passed"] is True
    assert outcome["frames"]["seen"] == 12
    assert outcome["frames"]["dropped"] == {"superseded": 2}
    assert outcome["latency_ms"]["a"]["infer"]["count"] == 2
    assert outcome["f1"] == {"text 2.0.0 fp32@openvino:fp32": 0.9}
    assert outcome["chosen"]["a"]["reason"] == "fastest"
    assert {u["outcome"] for u in outcome["updates"]} == {"committed", "refused"}
    assert outcome["updates"][0].keys() >= {"device", "app", "from", "to", "outcome", "reason", "frames_lost", "gap_ms"}
    console = Console(file=io.StringIO(), width=200)
    for table in tables(outcome):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "refused" in text
    assert "F1 0.900" in text
    assert "2 superseded" in text
