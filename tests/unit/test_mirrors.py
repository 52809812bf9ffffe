"""Which transport has its turn, which ranges are asked for, and how our own server reads a Range header."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract import mirrors
from jetfleet_contract.chunks import Bitmap
from jetfleet_contract.errors import InputError
from jetfleet_contract.mirrors import Health, Turn, absent, failed, holds_mqtt, judge, ranges, spoiled, worked
from jetfleet_host.mirror import parse_bind, wanted_range


@given(st.integers(1, 3000), st.data(), st.sampled_from([1024, 65536, 1 << 20, 8 << 20]))
def test_ranges_cover_what_is_missing_and_nothing_else(count: int, data: st.DataObject, most: int) -> None:
    missing = Bitmap.of(count, data.draw(st.sets(st.integers(0, count - 1))))
    chunk = 65536
    found = list(ranges(missing, chunk, most))
    assert [index for first, length in found for index in range(first, first + length)] == list(missing)
    assert all(length == 1 or length * chunk <= most for _, length in found)
    full = max(1, most // chunk)
    joined = [after for (first, length), (after, _) in pairwise(found) if first + length == after and length < full]
    assert not joined, "neighbours that fit into one request are asked for in one"


def test_preferred_has_its_turn_until_it_fails_and_again_later() -> None:
    turn = judge("prefer", Turn(10, 0.0), 10, Health(), 0.0)
    assert holds_mqtt("prefer", turn)
    health = failed(Health(), "mirror.slow", 1.0, 0.0)
    turn = judge("prefer", turn, 9, health, 1.0)
    assert not holds_mqtt("prefer", turn)
    assert holds_mqtt("prefer", judge("prefer", turn, 8, health, health.retry_at))
    again = failed(health, "mirror.slow", health.retry_at, 1.0)
    assert again.retry_at - health.retry_at > health.retry_at - 1.0, "it doubles"
    assert worked(again) == Health(retry_at=again.retry_at)


def test_a_fallback_waits_until_mqtt_is_silent_and_then_keeps_the_blob() -> None:
    turn = Turn(10, 0.0)
    for now, left in ((5.0, 9), (14.0, 8), (20.0, 7), (34.9, 7)):
        turn = judge("fallback", turn, left, Health(), now)
        assert not holds_mqtt("fallback", turn)
    turn = judge("fallback", turn, 7, Health(), 35.0)
    assert holds_mqtt("fallback", turn)
    turn = judge("fallback", turn, 3, Health(), 36.0)
    assert holds_mqtt("fallback", turn)
    lost = absent(turn, 37.0, 0.0)
    turn = judge("fallback", lost, 3, Health(), 37.1)
    assert not holds_mqtt("fallback", turn), "MQTT is asked when the mirror does not have it"
    assert not holds_mqtt("fallback", judge("fallback", turn, 3, Health(), 51.9))
    assert holds_mqtt("fallback", judge("fallback", turn, 3, Health(), 52.1)), "and it is tried again when that is silent too"


def test_only_never_asks_mqtt() -> None:
    dead = failed(Health(), "mirror.unreachable", 0.0, 1.0)
    assert holds_mqtt("only", judge("only", Turn(3, 0.0), 3, dead, 1.0))


def test_a_liar_is_left_alone_for_an_hour() -> None:
    health = Health()
    for number in range(mirrors.MAX_WRONG):
        assert health.usable(10.0), number
        health = spoiled(health, 10.0)
    assert (health.usable(10.0 + mirrors.DROPPED_S - 1), health.code) == (False, "mirror.wrong")
    assert health.usable(10.0 + mirrors.DROPPED_S)


@given(st.text(max_size=40), st.integers(0, 10_000))
def test_any_range_header_has_an_answer_within_the_blob(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        span = wanted_range(text, size)
        assert span is None or 0 <= span[0] <= span[1] <= size


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 400))
def test_a_range_means_what_the_standard_says(first: int, last: int, size: int) -> None:
    span = wanted_range(f"bytes={first}-{last}", size)
    if last < first:
        assert span == (0, size)
    elif first >= size:
        assert span is None
    else:
        assert span == (first, min(last, size - 1) + 1)
    assert wanted_range(f"bytes=-{last}", size) == (None if not last else (max(0, size - last), size))


@pytest.mark.parametrize(("text", "value"), [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0)), ("host:443", ("host", 443))])
def test_addresses(text: str, value: tuple[str, int]) -> None:
    assert parse_bind(text) == value


@pytest.mark.parametrize("text", ["", ":80", "host", "host:", "host:x", "host:99999", "host:-1", "host:٣"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(InputError):
        parse_bind(text)
