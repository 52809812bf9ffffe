"""Hours and bytes a day: judged in UTC, never by a clock that is not trusted; the board's day survives its restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.supervisor.metering import STEPS_A_DAY, Metering
from jetfleet_contract import budgets
from jetfleet_contract.budgets import DAY_S, HOUR_S, DayCount
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import DeliveryPolicy, Instant

DAY = 20_000
CHUNK = 65536
NIGHT = ((22, 6),)


def at(hour: float, day: int = DAY, *, trusted: bool = True, boot: str = "boot", mono: float = 0.0) -> Instant:
    return Instant(mono, boot, day * DAY_S + hour * HOUR_S, trusted)


@pytest.mark.parametrize(("hour", "may"), [(0, True), (5.99, True), (6, False), (12, False), (21.99, False), (22, True), (23.5, True)])
def test_hours_may_span_midnight(hour: float, may: bool) -> None:
    assert (budgets.judge(NIGHT, 0, DayCount(), at(hour)).code == "") is may


def test_outside_its_hours_it_waits_until_they_begin() -> None:
    verdict = budgets.judge(((22, 6), (12, 13)), 0, DayCount(), at(7.5))
    assert (verdict.code, verdict.wait_s) == ("delivery.hours", 4.5 * HOUR_S)
    assert "22-06, 12-13" in verdict.why
    assert budgets.judge(NIGHT, 0, DayCount(), at(23)).wait_s == 7 * HOUR_S


@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 24)).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=4),
       st.floats(0, 23.999))
def test_after_waiting_the_verdict_is_another(hours: list[tuple[int, int]], hour: float) -> None:
    verdict = budgets.judge(tuple(hours), 0, DayCount(), at(hour))
    assert 0 < verdict.wait_s <= DAY_S
    later = budgets.judge(tuple(hours), 0, DayCount(), at(hour + verdict.wait_s / HOUR_S + 1e-6))
    if verdict.code:
        assert not later.code


def test_an_untrusted_clock_judges_no_hours_and_says_so() -> None:
    verdict = budgets.judge(NIGHT, 0, DayCount(), at(12, trusted=False))
    assert (verdict.code, verdict.note) == ("", "the clock is not trusted: hours are not judged")


def test_a_day_s_bytes_come_back_the_next_day() -> None:
    count = budgets.used(DayCount(), 900, at(10))
    assert budgets.judge((), 1000, count, at(11)).left == 100
    count = budgets.used(count, 100, at(11))
    verdict = budgets.judge((), 1000, count, at(18))
    assert (verdict.code, verdict.wait_s) == ("delivery.day-budget", 6 * HOUR_S)
    assert budgets.judge((), 1000, count, at(0, DAY + 1)).left == 1000


def test_less_than_is_needed_counts_as_nothing() -> None:
    assert budgets.judge((), 1000, budgets.used(DayCount(), 950, at(1)), at(2), least=100).code == "delivery.day-budget"


def test_a_clock_that_jumped_ahead_and_back_forgives_nothing_and_locks_nobody_out() -> None:
    count = budgets.used(DayCount(), 600, at(10, DAY + 3650))
    count = budgets.used(count, 100, at(10))
    assert (count.day, count.used) == (DAY, 700)
    assert budgets.judge((), 1000, count, at(0, DAY + 1)).left == 1000


def test_without_a_trusted_clock_a_day_is_24_hours_of_running() -> None:
    count = budgets.used(DayCount(), 1000, at(3, 0, trusted=False, mono=50.0))
    assert budgets.judge((), 1000, count, at(9, 9, trusted=False, mono=DAY_S)).code == "delivery.day-budget"
    rebooted = budgets.counted(count, at(9, 9, trusted=False, boot="other", mono=3.0))
    assert rebooted.used == 1000
    assert budgets.judge((), 1000, rebooted, at(9, 9, trusted=False, boot="other", mono=DAY_S)).code
    assert budgets.judge((), 1000, rebooted, at(9, 9, trusted=False, boot="other", mono=DAY_S + 4.0)).left == 1000


@pytest.mark.parametrize("interval", [(-1, 5), (24, 5), (3, 25), (7, 7)])
def test_no_interval_of_hours(interval: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="no interval"):
        budgets.check_hours((interval,), "here")


# --- the board's meter ---------------------------------------------------------------------------------------

POLICY = DeliveryPolicy(bytes_per_day=10 * CHUNK)


def meter(folder: Path, policy: DeliveryPolicy = POLICY) -> Metering:
    made = Metering(folder / "days.json")
    made.assign("reader", policy, ("a" * 64, "b" * 64))
    return made


def test_a_blob_without_a_policy_is_never_held(tmp_path: Path) -> None:
    admission = Metering(tmp_path / "days.json").admit("c" * 64, "c" * 64, 99, CHUNK, at(3))
    assert (admission.free, admission.allowed) == (True, None)


def test_what_fits_well_joins_the_others_and_what_hardly_fits_is_counted_apart(tmp_path: Path) -> None:
    made = meter(tmp_path, DeliveryPolicy(bytes_per_day=100 * CHUNK))
    plenty = made.admit("a" * 64, "a" * 64, 20, CHUNK, at(3))
    assert (plenty.free, plenty.allowed, plenty.apart) == (True, 38, False)
    rest = made.admit("b" * 64, "b" * 64, 99, CHUNK, at(3))
    assert (rest.free, rest.allowed, rest.apart) == (True, 61, True)  # never more than is left, all blobs together


def test_the_day_is_told_once_and_survives_a_kill(tmp_path: Path) -> None:
    made = meter(tmp_path)
    told: list[str] = []
    made.on_held = lambda _blob, code, _why: told.append(code)
    for _ in range(9):
        made.count("a" * 64, "a" * 64, CHUNK, "unicast", at(3))
    again = meter(tmp_path)  # nothing was closed
    left = again.admit("a" * 64, "a" * 64, 99, CHUNK, at(4)).allowed or 0
    assert left * CHUNK <= CHUNK
    made.count("a" * 64, "a" * 64, CHUNK, "unicast", at(3))
    for _ in range(3):
        assert not made.admit("a" * 64, "a" * 64, 99, CHUNK, at(5)).free
    assert told == ["delivery.day-budget"]
    assert made.admit("a" * 64, "a" * 64, 99, CHUNK, at(1, DAY + 1)).free


def test_a_kill_counts_at_most_one_step_too_much(tmp_path: Path) -> None:
    policy = DeliveryPolicy(bytes_per_day=3200 * 1000)
    made = meter(tmp_path, policy)
    for _ in range(700):
        made.count("a" * 64, "a" * 64, 1000, "broadcast", at(3))
    allowed = meter(tmp_path, policy).admit("a" * 64, "a" * 64, 9999, 992, at(4)).allowed
    assert allowed is not None
    assert 2500 - 3200 // STEPS_A_DAY - 1 <= allowed <= 2500


def test_a_damaged_or_unwritable_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "days.json").write_bytes(b"{]")
    made = meter(tmp_path)
    assert made.admit("a" * 64, "a" * 64, 3, CHUNK, at(4)).free
    lost = Metering(tmp_path / "gone" / "days.json")
    lost.assign("reader", POLICY, ("a" * 64,))
    lost.count("a" * 64, "a" * 64, 11 * CHUNK, "unicast", at(4))
    assert not lost.admit("a" * 64, "a" * 64, 3, CHUNK, at(4)).free


def test_traffic_is_told_apart_and_taken_once(tmp_path: Path) -> None:
    made = meter(tmp_path)
    for kind, size in (("unicast", 1), ("broadcast", 20), ("mirror", 300)):
        made.count("a" * 64, "a" * 64, size, kind, at(3))
    made.useful("a" * 64, 310)
    made.close()
    kept = meter(tmp_path).take("a" * 64)
    assert (kept.useful, kept.unicast, kept.broadcast, kept.mirror, kept.received) == (310, 1, 20, 300, 321)
    assert made.take("a" * 64).received == 321
    assert made.take("a" * 64).received == 0
