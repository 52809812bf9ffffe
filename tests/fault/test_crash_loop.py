"""A model whose pipeline process really crashes: the whole supervisor, real child processes, no network. It goes back by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from brokers import until
from supervised_lives import APP, Shelf
from supervisor_rig import DEVICE, Rig

from jetfleet_contract import topics
from jetfleet_contract.messages import encode


@pytest.mark.parametrize(("plan", "code"), [
    ('{"do": "crash", "version": 2}', "trial.crash"), ('{"do": "exit", "version": 2}', "trial.crash"),
    ('{"do": "fail", "version": 2}', "trial.crash"), ('{"do": "garbage", "version": 2}', "trial.crash"),
])
def test_a_model_that_crashes_after_the_switch_is_rolled_back(tmp_path: Path, plan: str, code: str) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1", "2"), {"1": '{"version": 1}', "2": plan}, keep_s=2.0)
    rig = Rig(tmp_path / "state", shelf)
    try:
        rig.trust.ready = True
        rig.up()
        rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
        until(lambda: any(r.outcome == "committed" for r in rig.reports()), "the first model")
        rig.link.connected = False
        rig.inbox.link_down("nobody is there any more")
        rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(2, "2")))

        def rolled_back() -> bool:
            state = rig.journal.app(APP)
            return state.last is not None and state.last.seq == 2 and bool(state.last.outcome)

        until(rolled_back, "the way back", 60)
        last = rig.journal.app(APP).last
        assert last is not None
        assert (last.outcome, last.code) == ("rolled_back", code)
        until(lambda: rig.running == shelf.bundles["1"], "the first model to run again")
        rig.up()
        until(lambda: any(r.outcome == "rolled_back" for r in rig.reports()), "the report, once somebody listens")
    finally:
        rig.stop()


def test_a_first_model_that_crashes_is_refused_and_nothing_is_left_running(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1",), {"1": '{"do": "crash"}'}, keep_s=0.3)
    rig = Rig(tmp_path / "state", shelf)
    try:
        rig.trust.ready = True
        rig.up()
        rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
        until(lambda: any(r.outcome for r in rig.reports()), "the refusal", 60)
        report = next(r for r in rig.reports() if r.outcome)
        assert (report.outcome, report.code) == ("refused", "trial.crash")
        assert "SIGSEGV" in report.detail
        until(lambda: not rig.pipelines.pids(), "no process")
    finally:
        rig.stop()


def test_a_camera_that_dies_in_keeping_does_not_roll_back(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1",), {"1": '{"do": "camera"}'}, keep_s=0.3)
    rig = Rig(tmp_path / "state", shelf)
    try:
        rig.trust.ready = True
        rig.up()
        rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
        until(lambda: rig.pipelines.crashes().get(APP, 0) >= 5, "five camera failures", 60)
        state = rig.journal.app(APP)
        assert (state.phase, state.attempt) == ("trial", 0)
        assert not any(r.outcome for r in rig.reports())
    finally:
        rig.stop()
