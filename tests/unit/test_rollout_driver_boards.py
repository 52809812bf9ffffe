"""The rollout driver and its boards: downgrades, joiners, late ones, bytes, figures of business."""

from __future__ import annotations

import msgspec
import pytest
from rollout_host import GATES, V1, V2, Host, host

from jetfleet_contract.kpis import KpiBound
from jetfleet_contract.messages import (
    AppSpec,
    DeliveryPolicy,
    Instant,
    Report,
    Source,
)
from jetfleet_contract.rollout_plan import Budget, Selector
from jetfleet_host import views
from jetfleet_host.store import accounting, evidence, fleet, journal, tags
from jetfleet_host.store.journal import ControlRequest, Overrides

__all__ = ["host"]  # a fixture


def brought(host: Host, rollout: str, bundle: str, *devices: str, **more: object) -> None:
    """A rollout of one wave that everybody accepts."""
    assert host.start(rollout, tuple(devices), bundle=bundle, **more) == ("", "")  # type: ignore[arg-type]
    for device in devices:
        host.answer(device, bundle=bundle)
    host.tick(11)
    assert host.phase(rollout) == "done"


def test_an_older_release_needs_an_operators_word(host: Host) -> None:
    host.add("a", "b")
    brought(host, "r1", V2, "a", "b")
    code, text = host.start("r2", ("a",), ("b",))
    assert code == "rollout.downgrade"
    assert "2 boards: a, b" in text
    assert "--allow-downgrade" in text
    spec = AppSpec("reader", V1, "ocr", "1", downgrade=True)
    assert host.start("r3", ("a",), ("b",), keep=True, spec=spec, approved_by="ada@desk", before="2") == ("", "")
    assert host.published[-1].apps[0].downgrade
    with host.database.reading() as session:
        assert views.rollout(session, "r3").plan.approved_by == "ada@desk"


def test_the_way_back_is_an_approved_downgrade_and_the_next_issue_is_none(host: Host) -> None:
    host.add("a")
    brought(host, "r1", V1, "a")
    host.start("r2", ("a",), bundle=V2, keep=True, before="1")
    assert not host.published[-1].apps[0].downgrade
    host.answer("a", "rolled_back", bundle=V2)
    assert (host.published[-1].apps[0].bundle, host.published[-1].apps[0].downgrade) == (V1, True)
    host.tick(1)
    host.start("r3", ("a",), bundle=V2, keep=True, before="1")
    assert not host.published[-1].apps[0].downgrade


def test_a_plan_overrides_what_the_board_keeps(host: Host) -> None:
    host.add("a")
    brought(host, "r1", V1, "a")
    host.start("r2", ("a",), bundle=V2, keep=True, overrides=Overrides(delivery=DeliveryPolicy("full", 1000)))
    app = host.published[-1].apps[0]
    assert (app.delivery, app.sources) == (DeliveryPolicy("full", 1000), (Source("front", "local:front"),))


def test_tags_travel_with_the_next_deployment(host: Host) -> None:
    host.add("a")
    with host.database.session() as session:
        tags.put(session, "a", {"site": "berlin"})
    host.start("r1", ("a",))
    assert host.published[-1].tags == {"site": "berlin"}


def test_boards_that_come_later_join_and_others_do_not(host: Host) -> None:
    host.add("dock-1")
    host.start("r1", ("dock-1",), select=Selector(names=("dock-*",)), follow=True)
    host.add("dock-2", "gate-1")
    host.tick(6)
    assert host.sent("dock-2") == []
    host.answer("dock-1")
    host.tick(11)
    assert (host.sent("dock-2"), host.sent("gate-1")) == ([(1, [V1])], [])
    host.answer("dock-2")
    host.tick(11)
    assert host.phase("r1") == "done"


def test_a_board_that_was_off_is_silent_and_noted_when_it_wakes(host: Host) -> None:
    host.add("a", "b")
    lenient = msgspec.structs.replace(GATES, min_success=0.5)
    host.start("r1", ("a", "b"), gates=lenient)
    host.answer("a")
    host.tick(101)
    host.tick(11)
    assert host.phase("r1") == "done"
    assert host.driver.retained()[1][0] == "b"  # its deployment waits for it
    host.answer("b")
    with host.database.reading() as session:
        late = views.rollout(session, "r1").devices["b"]
    assert (late.status, late.code) == ("committed", "rollout.late")


def test_a_late_answer_that_a_killed_host_only_stored_is_noted_by_the_next(host: Host) -> None:
    host.add("a", "b")
    host.start("r1", ("a", "b"), gates=msgspec.structs.replace(GATES, min_success=0.5))
    host.answer("a")
    host.tick(101)
    host.tick(11)
    with host.database.session() as session:
        fleet.save_report(session, Report("b", 77, 1, "reader", 0.0, "idle", V1, "x", "", "committed"), host.now().wall)
    host.restart()
    with host.database.reading() as session:
        assert views.rollout(session, "r1").devices["b"].status == "committed"


def test_every_byte_is_accounted_for(host: Host) -> None:
    host.add("a", "b")
    brought(host, "r0", V1, "a", "b")
    host.start("r1", ("a", "b"), bundle=V2, keep=True, before="1", board_bytes=1000, gates=msgspec.structs.replace(GATES, max_bad=1))
    for received in (100.0, 900.0, 700.0):  # reports may come out of order
        host.answer("a", "", bundle=V2, bytes=received - 50, bytes_received=received, bytes_saved=300.0, bytes_delta=200.0)
    host.answer("b", "", bundle=V2, bytes=500.0)
    host.answer("b", "", bundle=V2, seq=9, bytes=40.0)  # a second attempt
    with host.database.session() as session:
        accounting.add_published(session, {"aa" * 32: 600, "bb" * 32: 50})
        accounting.add_published(session, {"aa" * 32: 20})
    with host.database.reading() as session:
        counted = views.rollout_bytes(session, views.rollout(session, "r1"), ["aa" * 32])
    assert msgspec.to_builtins(counted.devices["a"]) == {"received": 900, "useful": 850, "delta": 200, "saved": 300, "back": 0}
    assert (counted.devices["b"].received, counted.total.received, counted.planned, counted.published) == (540, 1440, 2000, 620)


def test_the_budget_pauses_and_its_day_is_the_utc_day(host: Host) -> None:
    host.add("a", "b")
    host.start("r1", ("a",), ("b",), board_bytes=1000, budget=Budget(max_bytes=1500))
    host.answer("a", bytes_received=900.0)
    host.tick(11)
    assert host.phase("r1") == "paused"
    with host.database.reading() as session:
        assert views.rollout(session, "r1").code == "rollout.budget"
        assert accounting.spending(session, "r1", "reader", host.now().wall).today == 900
        assert accounting.spending(session, "r1", "reader", host.now().wall + 86400).today == 0
    assert host.ask("r1", ControlRequest("resume", accept=True, by="ada")) == ("", "")
    assert host.sent("b") == [(1, [V1])]


def test_evidence_leaves_noisy_windows_out_and_counts_crashes(host: Host) -> None:
    host.add("a")
    brought(host, "r1", V1, "a")
    host.window("a", 1, V1, 10.0, **{"reader.crashes": 3.0})
    host.start("r2", ("a",), bundle=V2, keep=True, before="1")
    host.answer("a", bundle=V2, agreement=0.93)
    host.window("a", 2, V2, 11.0, throttled=0.0, temperature_c=55.0, **{"reader.crashes": 3.0})
    host.window("a", 3, V2, 99.0, throttled=1.0, temperature_c=88.0, **{"reader.crashes": 4.0})
    host.window("a", 4, V2, 99.0, board_cpu_pct=95.0, cpu_pct=10.0)
    with host.database.reading() as session:
        [seen] = evidence.of_boards(session, "r2", "reader", ["a"], sketches=True)
    assert (seen.old.count, seen.new.count, seen.noisy) == (200, 200, 2)
    assert seen.new.quantile(0.95) == pytest.approx(11.0, rel=0.02)
    assert (seen.crashes, seen.temperature_c, seen.throttled, seen.agreement) == (1.0, 88.0, 0.5, 0.93)


@pytest.mark.parametrize(("people", "phase", "code"), [(3.0, "done", ""), (1.5, "reverted", "rollout.kpi")])
def test_a_business_figure_gates_a_rollout(host: Host, people: float, phase: str, code: str) -> None:
    """The new model runs as fast, but sees half of the people: it goes back."""
    host.add("a", "b")
    brought(host, "r1", V1, "a", "b")
    for number in range(1, 9):
        for device in ("a", "b"):
            host.figures(device, number, V1, 3.0 + 0.1 * (number % 3))
    gates = msgspec.structs.replace(GATES, max_p95_ratio=0.0, kpis={"people": KpiBound(min_ratio=0.9)})
    host.start("r2", ("a", "b"), bundle=V2, keep=True, before="1", gates=gates)
    for device in ("a", "b"):
        host.answer(device, bundle=V2)
    host.tick(1)
    for number in range(9, 17):
        for device in ("a", "b"):
            host.figures(device, number, V2, people + 0.1 * (number % 3))
    host.tick(11)
    for _ in range(60):
        if host.phase("r2") in ("done", "reverted"):
            break
        for device in ("a", "b"):
            if host.phase("r2") == "reverting":
                host.answer(device, bundle=V1)
        host.tick(5)
    with host.database.reading() as session:
        state = views.rollout(session, "r2")
    assert (state.phase, state.code) == (phase, code)
    [verdict] = [v for v in state.verdicts if v.gate == "kpi"]
    assert verdict.passed is (phase == "done")
    assert "people: mean" in verdict.why


def test_two_rollouts_of_one_app_on_other_boards_and_of_two_apps_on_the_same(host: Host) -> None:
    host.add("a", "b", "c")
    host.start("r1", ("a",))
    host.start("r2", ("b",), ("c",))
    host.start("r3", ("a",), ("b",), app="sorter", spec=AppSpec("sorter", V2, "ocr", "2", sources=(Source("back", "local:back"),)))
    host.restart()
    host.answer("a")
    host.answer("b")
    host.answer("a", app="sorter", bundle=V2)
    host.tick(11)
    host.answer("b", app="sorter", bundle=V2)
    host.answer("c")
    host.restart()
    host.tick(11)
    assert {host.phase(r) for r in ("r1", "r2", "r3")} == {"done"}
    for device in "abc":
        numbers = [seq for seq, _ in host.sent(device)]
        assert numbers == sorted(set(numbers))
    with host.database.reading() as session:
        apps = {d: {app.app: app.bundle for app in deployment.apps} for d in "abc" if (deployment := journal.deployment_of(session, d))}
    assert apps == {"a": {"reader": V1, "sorter": V2}, "b": {"reader": V1, "sorter": V2}, "c": {"reader": V1}}


def test_clocks_go_on_over_a_boot(host: Host) -> None:
    host.add("a", "b")
    host.start("r1", ("a",), ("b",))
    host.answer("a")
    wall = host.now().wall
    host.driver.tick(Instant(1.0, "another boot", wall + 5, True))
    assert host.sent("b") == []
    host.driver.tick(Instant(7.0, "another boot", wall + 11, True))
    assert host.sent("b") == [(1, [V1])]
