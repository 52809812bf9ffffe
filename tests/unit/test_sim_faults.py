"""The fault file and the schedule that follows from it and a seed."""

from __future__ import annotations

from itertools import islice, pairwise, takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.errors import InputError
from jetfleet_host.sim.faults import (
    EXAMPLE,
    DeviceFaults,
    Faults,
    ReaderFaults,
    default_faults,
    events_of,
    is_chosen,
    parse_faults,
    read_faults,
    schedule_digest,
)


def test_the_example_is_a_valid_file_and_the_default_mix(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(EXAMPLE)
    faults = read_faults(path)
    assert faults == default_faults()
    assert (faults.chunks.loss, faults.broker.restarts, faults.host.kills) == (0.02, 1, 1)


def test_an_empty_file_lets_nothing_go_wrong() -> None:
    assert parse_faults(b"", "here") == Faults()
    assert list(events_of(Faults(), 1, "sim-0001")) == []


@pytest.mark.parametrize(("text", "code", "hint"), [
    ("[chunks]\nlos = 0.1", "faults.unknown", "chunks.loss"),
    ("[chunk]\nloss = 0.1", "faults.unknown", "chunks"),
    ("[zebra]\n", "faults.unknown", "valid keys here"),
    ("[chunks]\nloss = 1.5", "faults.value", "$"),
    ("[chunks]\nloss = 'much'", "faults.value", "$"),
    ("[broker]\nrestarts = -1", "faults.value", "$"),
    ("[devices]\nkills = 1e9", "faults.value", "$"),
    ("chunks = 1", "faults.value", "$"),
    ("[chunks", "faults.syntax", "--faults-example"),
])
def test_bad_files_say_what_to_do(text: str, code: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_faults(text.encode(), "faults.toml")
    assert caught.value.code == code
    assert hint in caught.value.remedy


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_faults(tmp_path / "none.toml")
    assert caught.value.code == "faults.unreadable"


@given(st.integers(0, 1 << 32), st.integers(0, 50))
def test_the_same_seed_plans_the_same_events(seed: int, number: int) -> None:
    faults, device = default_faults(), f"sim-{number:04d}"
    once, again = (list(islice(events_of(faults, seed, device), 20)) for _ in range(2))
    assert once == again
    assert [event.at for event in once] == sorted(event.at for event in once)


def test_another_seed_or_another_file_plans_others() -> None:
    names = [f"sim-{number:04d}" for number in range(20)]
    faults = default_faults()
    digests = {schedule_digest(faults, 1, names), schedule_digest(faults, 2, names), schedule_digest(Faults(), 1, names),
               schedule_digest(faults, 1, names[:-1])}
    assert len(digests) == 4
    assert schedule_digest(faults, 1, names) == schedule_digest(faults, 1, names)


def test_rates_are_kept_on_average() -> None:
    faults = Faults(devices=DeviceFaults(kills=2.0, power_cuts=1.0, mid_write=0.5, clock_jumps=1.0))
    counts = {"kill": 0, "power-cut": 0, "clock-jump": 0}
    struck = 0
    for number in range(200):
        for event in takewhile(lambda one: one.at < 600, events_of(faults, 5, f"sim-{number}")):
            counts[event.kind] += 1
            struck += event.strike != ""
    assert counts["kill"] == pytest.approx(200 * 10 * 2, rel=0.1)
    assert counts["power-cut"] == pytest.approx(200 * 10, rel=0.1)
    assert counts["clock-jump"] == pytest.approx(200 * 10, rel=0.1)
    assert struck == pytest.approx(200 * 10 * 1.5, rel=0.1)


def test_a_sleeper_is_awake_again_before_it_sleeps_again() -> None:
    faults = Faults(readers=ReaderFaults(sleepy_share=1.0, sleep_s=3.0))
    sleeps = list(islice(events_of(faults, 1, "sim-0001"), 50))
    assert all(after.at >= before.at + before.lasts for before, after in pairwise(sleeps))


def test_shares_choose_about_that_many() -> None:
    chosen = sum(is_chosen(1, f"sim-{number:04d}", "slow", 0.2) for number in range(2000))
    assert chosen == pytest.approx(400, rel=0.2)
