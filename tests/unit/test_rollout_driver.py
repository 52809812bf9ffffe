"""The driver: a process that dies anywhere issues each board once, signs growing numbers, and misses no stored answer."""

from __future__ import annotations

import msgspec
import pytest
from rollout_host import GATES, V1, V2, Host, host

from jetfleet_contract.messages import (
    AppConfig,
    AppSpec,
    Source,
)
from jetfleet_contract.rollout_plan import Plan
from jetfleet_host import views
from jetfleet_host.deployments import DEPLOYMENT_LIFE_S, RENEW_BEFORE_S
from jetfleet_host.store import journal
from jetfleet_host.store.journal import ControlRequest, StartRequest
from jetfleet_host.store.models import Device

__all__ = ["host"]  # a fixture


def test_waves_until_done(host: Host) -> None:
    host.add("a", "b")
    assert host.start("r1", ("a",), ("b",)) == ("", "")
    assert host.sent("b") == []
    host.answer("a")
    host.tick(11)
    assert host.sent("b") == [(1, [V1])]
    host.answer("b")
    host.tick(11)
    assert host.phase("r1") == "done"


def test_numbers_grow_beyond_what_the_board_has_seen(host: Host) -> None:
    host.add("a")
    with host.database.session() as session:
        session.get_one(Device, "a").seq = 41  # the database was lost once; the board remembers
    host.start("r1", ("a",))
    assert host.sent("a") == [(42, [V1])]


def test_a_slow_bundle_goes_back(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a")
    host.tick(11)
    host.window("a", 1, V1, 10.0)
    host.start("r2", ("a",), bundle=V2, keep=True, before="1")
    host.answer("a", bundle=V2)
    host.window("a", 2, V2, 50.0)
    host.tick(11)
    assert host.phase("r2") == "reverting"
    assert host.sent("a") == [(1, [V1]), (2, [V2]), (3, [V1])]
    host.answer("a", bundle=V1)
    assert host.phase("r2") == "reverted"
    with host.database.reading() as session:
        assert views.rollout(session, "r2").code == "rollout.latency"


def test_answers_under_a_later_number_count_and_older_ones_do_not(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a", seq=0)
    host.tick(11)
    host.start("r2", ("a",), bundle=V2, keep=True)
    host.answer("a", bundle=V2, seq=1)
    assert host.phase("r2") == "running"
    host.answer("a", bundle=V2, seq=9)
    assert host.phase("r2") == "holding"


def test_two_apps_share_a_board_and_keep_their_settings(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    chained = AppSpec("sorter", V1, "ocr", "1", input_from="reader", config=AppConfig(3, {"x": 1.0}))
    host.start("r2", ("a",), app="sorter", spec=chained)
    assert [app.app for app in host.published[-1].apps] == ["reader", "sorter"]
    host.answer("a")
    host.answer("a", app="sorter")
    host.tick(11)
    host.start("r3", ("a",), app="sorter", bundle=V2, keep=True, spec=AppSpec("sorter", V2, "ocr", "2"))
    assert host.published[-1].apps[1] == msgspec.structs.replace(chained, bundle=V2, version="2")
    host.start("r4", ("a",), bundle=V2)
    assert host.published[-1].apps[0].sources == (Source("front", "local:front"),)


def test_changed_settings_get_a_new_config_version(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a")
    host.tick(11)
    host.start("r2", ("a",), spec=AppSpec("reader", V1, "ocr", "1", config=AppConfig(options={"threshold": 0.5})))
    assert host.published[-1].apps[0].config == AppConfig(2, {"threshold": 0.5})


def test_taking_an_app_off_takes_off_what_it_feeds(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.start("r2", ("a",), app="sorter", spec=AppSpec("sorter", V1, "ocr", "1", input_from="reader"))
    host.answer("a", "refused")
    assert host.published[-1].apps == ()


@pytest.mark.parametrize(("prepare", "code"), [
    (lambda h: h.start("r1", ("nobody",)), "rollout.unknown-device"),
    (lambda h: h.start("r1", ("a",), bundle="99" * 32), "rollout.unpublished"),
    (lambda h: h.start("r1", ("a",), spec=AppSpec("reader", V1, "ocr", "1", input_from="ghost")), "rollout.deployment"),
    (lambda h: [h.start("r0", ("a",)), h.start("r1", ("a",))][1], "rollout.busy"),
    (lambda h: h.ask("r9", ControlRequest("abort")), "rollout.over"),
])
def test_requests_that_cannot_be_met(host: Host, prepare: object, code: str) -> None:
    host.add("a")
    assert prepare(host)[0] == code  # type: ignore[operator]


def test_a_withdrawn_request_is_not_carried_out(host: Host) -> None:
    host.add("a")
    plan = Plan("r1", "reader", V1, "ocr", "1", (("a",),), gates=GATES)
    with host.database.session() as session:
        number = journal.ask(session, "r1", StartRequest(plan, AppSpec("reader", V1, "ocr", "1"), False), 1.0)
        assert journal.withdraw(session, number)
        assert not journal.take(session, number)
    host.driver.poll_requests(host.now())
    assert host.published == []


def test_a_request_that_was_begun_cannot_be_withdrawn_and_is_begun_again_after_a_kill(host: Host) -> None:
    host.add("a")
    plan = Plan("r1", "reader", V1, "ocr", "1", (("a",),), gates=GATES)
    with host.database.session() as session:
        number = journal.ask(session, "r1", StartRequest(plan, AppSpec("reader", V1, "ocr", "1"), False), 1.0)
        assert journal.take(session, number)
        assert not journal.withdraw(session, number)
    host.restart().poll_requests(host.now())
    assert host.sent("a") == [(1, [V1])]


def test_a_deployment_is_renewed_before_it_expires(host: Host) -> None:
    host.add("a")
    host.start("r1", ("a",))
    host.answer("a")
    host.tick(11)
    host.tick(DEPLOYMENT_LIFE_S - RENEW_BEFORE_S - 100)
    assert len(host.published) == 1
    host.tick(3700)
    assert host.sent("a") == [(1, [V1]), (2, [V1])]
    assert host.published[-1].expires == pytest.approx(host.now().wall + DEPLOYMENT_LIFE_S)
