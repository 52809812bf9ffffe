"""What brokers take: every topic and message of ours fits the strictest one that is named, sizes are exact, and limits combine."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract import broker_limits, topics
from jetfleet_contract.broker_limits import (
    PROFILES,
    BrokerLimits,
    PublishRate,
    announced,
    check_chunks,
    configured,
    findings,
    fits_chunks,
    largest_chunk,
    packet_bytes,
    payload_room,
    refusal,
    tightest,
    without,
)
from jetfleet_contract.chunks import CHUNK_BYTES, page_digests
from jetfleet_contract.errors import InputError
from jetfleet_contract.trust import MAX_PACKAGE_BYTES
from jetfleet_host.brokers import MAX_PAYLOAD_BYTES

AWS = PROFILES["aws-iot-core"]
BLOB = "f" * 64
NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?", fullmatch=True)
BUILDERS = [function for name, function in inspect.getmembers(topics, inspect.isfunction)
            if function.__module__ == topics.__name__ and not name.startswith(("_", "check_", "is_"))
            and "topic" not in inspect.signature(function).parameters]  # what reads a topic builds none


def built(function: object, device: str, seq: int) -> str:
    values = {"device": device, "blob": BLOB, "seq": seq, "lane": seq % 256}
    return str(function(*(values[name] for name in inspect.signature(function).parameters)))  # type: ignore[operator,arg-type]


@given(NAMES, st.integers(0, 1 << 53))
def test_every_topic_fits_the_strictest_broker(device: str, seq: int) -> None:
    assert len(BUILDERS) >= 15
    for function in BUILDERS:
        topic = built(function, device, seq)
        assert topic.count("/") <= 7
        assert len(topic.encode()) <= 256
        assert topic.count("/") < broker_limits.MAX_TOPIC_LEVELS
        assert len(topic) <= broker_limits.MAX_TOPIC_BYTES
        assert refusal(AWS, topic, 1) is None


def test_the_longest_topic_is_as_long_as_is_said() -> None:
    longest = [built(function, "x" * 63, 1 << 53) for function in BUILDERS]
    assert max(map(len, longest)) == broker_limits.MAX_TOPIC_BYTES
    assert max(topic.count("/") + 1 for topic in longest) == broker_limits.MAX_TOPIC_LEVELS


@pytest.mark.parametrize("filter_", [value for name, value in vars(topics).items() if name.startswith("ALL_")])
def test_every_subscription_fits_the_strictest_broker(filter_: str) -> None:
    assert filter_.count("/") <= 7


def test_what_jetfleet_sends_by_default_fits_the_128_kb_of_aws() -> None:
    assert refusal(AWS, topics.META, MAX_PACKAGE_BYTES) is None
    assert fits_chunks(AWS, CHUNK_BYTES)
    assert fits_chunks(AWS, 32 * page_digests(CHUNK_BYTES))
    check_chunks(AWS, [CHUNK_BYTES, 1024], "here")


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_largest_chunk_of_each_profile_fits_and_one_more_kib_does_not(name: str) -> None:
    limits = PROFILES[name]
    size = largest_chunk(limits, 1 << 20)
    assert fits_chunks(limits, size)
    assert size == 1 << 20 or not fits_chunks(limits, size + 1024)
    assert not [finding for finding in findings(limits) if finding.hinders]


def test_the_embedded_profile_is_what_the_embedded_broker_is_given() -> None:
    assert PROFILES["embedded"].max_payload_bytes == MAX_PAYLOAD_BYTES


def test_chunks_that_do_not_fit_are_named_with_the_size_that_would() -> None:
    with pytest.raises(InputError) as caught:
        check_chunks(PROFILES["thingsboard"], [CHUNK_BYTES], "jetfleet.toml")
    assert (caught.value.code, caught.value.where) == ("broker.packet-size", "jetfleet.toml")
    assert "chunk_kb = 63" in caught.value.remedy


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60), st.integers(0, 3_000_000), st.integers(0, 2),
       st.integers(0, 1 << 32 - 1))
def test_packet_sizes_are_those_of_paho(topic: str, payload: int, qos: int, expiry: int) -> None:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties, VariableByteIntegers

    properties = Properties(PacketTypes.PUBLISH)
    if expiry:
        properties.MessageExpiryInterval = expiry
    rest = 2 + len(topic.encode()) + (2 if qos else 0) + len(properties.pack()) + payload
    assert packet_bytes(topic, payload, qos, expiry) == 1 + len(VariableByteIntegers.encode(rest)) + rest


@given(st.integers(200, 300_000), st.integers(0, 300_000), st.integers(1, 200_000))
def test_a_message_that_fills_the_room_fits_and_one_byte_more_does_not(packet: int, payload: int, most: int) -> None:
    limits = BrokerLimits(max_packet_bytes=packet, max_payload_bytes=payload)
    topic = topics.telemetry("gate-7")
    room = payload_room(limits, topic, most)
    assert refusal(limits, topic, room, 1, 60) is None
    assert room == most or payload == room or packet_bytes(topic, room + 4, 1, 60) > packet


def test_a_refusal_says_what_to_do_for_its_kind_of_message() -> None:
    limits = BrokerLimits(max_packet_bytes=20_000)
    remedies = [error.remedy for topic in (topics.chunk(BLOB), topics.META, topics.report("gate-7"))
                if (error := refusal(limits, topic, 20_000)) is not None]
    assert ["chunk_kb" in remedies[0], "withdraw" in remedies[1], "raise the broker's limit" in remedies[2]] == [True] * 3
    deep = refusal(BrokerLimits(max_topic_levels=4), topics.report("gate-7"), 1)
    long = refusal(BrokerLimits(max_topic_bytes=10), topics.report("gate-7"), 1)
    assert deep is not None
    assert long is not None
    assert deep.code == long.code == "broker.topic"


LIMITS = st.builds(BrokerLimits, max_packet_bytes=st.integers(0, 9), max_payload_bytes=st.integers(0, 9), max_qos=st.integers(0, 2),
                   retain=st.booleans(), window=st.integers(1, 9), max_publishes_s=st.sampled_from([0.0, 1.0, 7.5]))


@given(LIMITS, LIMITS, st.integers(0, 12), st.integers(1, 12))
def test_what_the_tightest_takes_both_take(one: BrokerLimits, other: BrokerLimits, payload: int, window: int) -> None:
    both = tightest(one, other)
    assert both == tightest(other, one)
    assert tightest(both, one) == both
    assert tightest(one, BrokerLimits()) == one
    if refusal(both, "a", payload) is None:
        assert refusal(one, "a", payload) is None
        assert refusal(other, "a", payload) is None
    if window <= both.window:
        assert window <= min(one.window, other.window)


def test_what_a_connack_says_and_what_it_leaves_out() -> None:
    assert announced({}) == BrokerLimits()
    said = announced({"MaximumPacketSize": 1000, "MaximumQoS": 0, "RetainAvailable": 0, "WildcardSubscriptionAvailable": 0,
                      "ReceiveMaximum": 5})
    assert said == BrokerLimits(max_packet_bytes=1000, max_qos=0, retain=False, wildcards=False, window=5)
    assert [finding.code for finding in findings(said)] == ["broker.retain", "broker.wildcards", "broker.qos"]
    assert [finding.hinders for finding in findings(said)] == [True, True, False]
    assert not without(BrokerLimits(), 0x9A).retain
    assert without(BrokerLimits(), 0x9B).max_qos == 0
    assert without(said, 0x87) == said


def test_shallow_topics_hinder() -> None:
    assert [finding.hinders for finding in findings(BrokerLimits(max_topic_levels=5, max_topic_bytes=100))] == [True, False]


def test_a_config_goes_before_its_profile_and_an_unknown_profile_is_named() -> None:
    assert configured("aws-iot-core") == AWS
    mine = configured("mosquitto", max_packet_bytes=10_000_000, max_qos=1, max_topic_levels=8)
    assert (mine.max_packet_bytes, mine.max_qos, mine.max_topic_levels) == (10_000_000, 1, 8)
    assert configured("aws-iot-core", max_packet_bytes=20_000).max_payload_bytes == 0
    with pytest.raises(InputError) as caught:
        configured("aws")
    assert caught.value.code == "broker.profile"
    assert "aws-iot-core" in caught.value.remedy


@given(st.floats(1, 1000), st.lists(st.floats(0, 0.5), min_size=1, max_size=60))
def test_no_second_has_more_publishes_than_the_rate_and_what_gathers(rate: float, pauses: list[float]) -> None:
    bucket, now, sent = PublishRate(rate), 0.0, 0
    for pause in pauses:
        now += pause
        bucket = bucket.at_time(now)
        while bucket.wait_s <= 0:
            bucket, sent = bucket.spent(), sent + 1
        assert bucket.at_time(now + bucket.wait_s + 1e-6).wait_s == 0
    assert sent <= now * rate + rate / 5 + 2


def test_no_rate_never_waits() -> None:
    bucket = PublishRate(0.0)
    for _ in range(5):
        bucket = bucket.at_time(1.0).spent()
    assert bucket.at_time(1.0).wait_s == 0
    assert msgspec.structs.asdict(bucket)["rate"] == 0.0
