"""What a broker takes, and whether what we send fits: limits from its CONNACK, from the config, or from a known broker's profile.

Sizes are bytes, rates are per second of one connection; 0 means that no limit is known. Limits that come from several places are
combined by `tightest`. Nothing here sends: links ask `refusal` before each publish, so that a message that a broker would answer by
closing the connection never leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from . import topics
from .chunks import CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from .errors import InputError, TransportError
from .topics import META
from .transfer import CHUNK_HEADER_BYTES

MIN_PACKET_BYTES = 16_384
MAX_PACKET_BYTES = 268_435_460
MAX_TOPIC_LEVELS = 6
MAX_TOPIC_BYTES = 142
CONNACK_PROPERTIES = {
    "MaximumPacketSize": "max_packet_bytes", "MaximumQoS": "max_qos", "RetainAvailable": "retain",
    "WildcardSubscriptionAvailable": "wildcards", "ReceiveMaximum": "window", "ServerKeepAlive": "keepalive_s",
    "TopicAliasMaximum": "topic_aliases", "SessionExpiryInterval": "session_expiry_s",
}
"""Our fields by the names of MQTT 5.0, 3.2.2.3."""

RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x9A, 0x9B
OBJECTIONS = (0x81, 0x82, 0x95)
"""Malformed packet, protocol error, packet too large: how a connection ends over a message beyond a limit that was not announced.
mosquitto 2.0 with `message_size_limit` acknowledges it with a reason that MQTT does not allow there, which paho calls a protocol error."""
PUBACK_CODES = {0x87: "broker.acl", 0x90: "broker.topic", 0x95: "broker.packet-size", 0x97: "broker.quota"}
"""Stable codes of what a broker answers to a publish (MQTT 5.0, 3.4.2.1); `broker.refused` for any other."""

N = TypeVar("N", int, float)

_EXPIRY_BYTES = 5
_LONGEST_NAME = "x" * 63
_LONGEST_CHUNK_TOPIC = topics.unicast("0" * 64, _LONGEST_NAME)


class BrokerLimits(msgspec.Struct, frozen=True):
    """What one broker takes from one client. `max_packet_bytes` covers a whole PUBLISH packet, `max_payload_bytes` its payload.

    `window` is MQTT 5's Receive Maximum: QoS 1 messages without an acknowledgement at a time. `keepalive_s` is the broker's own, which
    counts instead of ours. `topic_aliases` and `session_expiry_s` are for the operator's sight: we use neither aliases nor sessions.
    """

    max_packet_bytes: int = 0
    max_payload_bytes: int = 0
    max_qos: int = 2
    retain: bool = True
    wildcards: bool = True
    window: int = 65_535
    keepalive_s: int = 0
    topic_aliases: int = 0
    session_expiry_s: int = 0
    max_topic_levels: int = 0
    max_topic_bytes: int = 0
    max_publishes_s: float = 0.0
    max_bytes_s: float = 0.0


class Finding(msgspec.Struct, frozen=True):
    """What does not work, or works less well, with a broker. `hinders`: jetfleet cannot do its work over it."""

    code: str
    what: str
    remedy: str
    hinders: bool


PROFILES: dict[str, BrokerLimits] = {
    # "AWS IoT Core endpoints and quotas": payload 128 KB, 7 slashes, 256 bytes of topic, 100 publishes and 512 KiB a second and connection,
    # 100 unacknowledged messages, QoS 0 and 1.
    "aws-iot-core": BrokerLimits(max_payload_bytes=131_072, max_qos=1, window=100, max_topic_levels=8, max_topic_bytes=256,
                                 max_publishes_s=100.0, max_bytes_s=524_288.0),
    # `jetfleet serve` with `embedded = true`: what brokers.py sets for rumqttd, which says no size in its CONNACK.
    "embedded": BrokerLimits(max_payload_bytes=4 << 20),
    # EMQX's configuration: mqtt.max_packet_size = 1MB, max_topic_levels = 128. It says the size in its CONNACK.
    "emqx": BrokerLimits(max_packet_bytes=1_048_576, max_topic_levels=128),
    # HiveMQ Edge's configuration: max packet size 268435460, server receive maximum 10.
    "hivemq-edge": BrokerLimits(max_packet_bytes=MAX_PACKET_BYTES, window=10),
    # mosquitto 2.1 and newer: max_packet_size defaults to 2000000, and a larger publish ends the connection. 2.0 had no limit.
    "mosquitto": BrokerLimits(max_packet_bytes=2_000_000),
    # ThingsBoard: NETTY_MAX_PAYLOAD_SIZE = 65536 covers everything after the fixed header; a larger message ends the connection.
    "thingsboard": BrokerLimits(max_packet_bytes=65_536, max_qos=1),
}


def configured(profile: str = "", *, max_packet_bytes: int = 0, max_qos: int = 2, max_topic_levels: int = 0) -> BrokerLimits:
    """The limits that a config names: a profile, each value that is given taking the place of the profile's.

    Raises:
        InputError: `broker.profile` for a name that is not in `PROFILES`.
    """
    if profile and profile not in PROFILES:
        raise InputError("broker.profile", f"no broker profile {profile[:40]!r}", where="[broker] profile",
                         remedy=f"known are: {', '.join(sorted(PROFILES))}; or leave it out and give max_packet_bytes")
    limits = PROFILES.get(profile, BrokerLimits())
    if max_packet_bytes:
        limits = msgspec.structs.replace(limits, max_packet_bytes=max_packet_bytes, max_payload_bytes=0)
    if max_topic_levels:
        limits = msgspec.structs.replace(limits, max_topic_levels=max_topic_levels)
    return msgspec.structs.replace(limits, max_qos=min(max_qos, limits.max_qos))


def announced(said: Mapping[str, int]) -> BrokerLimits:
    """What a CONNACK says, by the names of `CONNACK_PROPERTIES`. MQTT's absent properties mean the defaults of `BrokerLimits`."""
    values: dict[str, object] = {CONNACK_PROPERTIES[name]: value for name, value in said.items()}
    flags: dict[str, object] = {name: bool(values[name]) for name in ("retain", "wildcards") if name in values}
    return msgspec.convert(values | flags, BrokerLimits)


def without(limits: BrokerLimits, reason: int) -> BrokerLimits:
    """The limits without what a broker's reason code says that it does not support."""
    if reason == RETAIN_NOT_SUPPORTED:
        return msgspec.structs.replace(limits, retain=False)
    if reason == QOS_NOT_SUPPORTED:
        return msgspec.structs.replace(limits, max_qos=0)
    return limits


def tightest(one: BrokerLimits, other: BrokerLimits) -> BrokerLimits:
    """What fits both."""
    return BrokerLimits(
        max_packet_bytes=_least(one.max_packet_bytes, other.max_packet_bytes),
        max_payload_bytes=_least(one.max_payload_bytes, other.max_payload_bytes),
        max_qos=min(one.max_qos, other.max_qos),
        retain=one.retain and other.retain,
        wildcards=one.wildcards and other.wildcards,
        window=min(one.window, other.window),
        keepalive_s=_least(one.keepalive_s, other.keepalive_s),
        topic_aliases=max(one.topic_aliases, other.topic_aliases),
        session_expiry_s=max(one.session_expiry_s, other.session_expiry_s),
        max_topic_levels=_least(one.max_topic_levels, other.max_topic_levels),
        max_topic_bytes=_least(one.max_topic_bytes, other.max_topic_bytes),
        max_publishes_s=_least(one.max_publishes_s, other.max_publishes_s),
        max_bytes_s=_least(one.max_bytes_s, other.max_bytes_s),
    )


def _least(one: N, other: N) -> N:
    return min(one, other) if one and other else one or other


# --- does it fit? -------------------------------------------------------------------------------------------


def packet_bytes(topic: str, payload: int, qos: int, expiry_s: int = 0) -> int:
    """Bytes of a whole PUBLISH packet (MQTT 5.0, 3.3) with `payload` bytes and no property but the expiry."""
    properties = _EXPIRY_BYTES if expiry_s else 0
    rest = 2 + len(topic.encode()) + (2 if qos else 0) + 1 + properties + payload
    return 1 + _varint_bytes(rest) + rest


def _varint_bytes(value: int) -> int:
    return 1 + (value > 0x7F) + (value > 0x3FFF) + (value > 0x1F_FFFF)


def refusal(limits: BrokerLimits, topic: str, payload: int, qos: int = 1, expiry_s: int = 0) -> TransportError | None:
    """Why the broker does not take a message of `payload` bytes on `topic`, or None: `broker.packet-size`, `broker.topic`."""
    size = packet_bytes(topic, payload, qos, expiry_s)
    if limits.max_packet_bytes and size > limits.max_packet_bytes:
        return _too_large(topic, f"a packet of {size} bytes", limits.max_packet_bytes)
    if limits.max_payload_bytes and payload > limits.max_payload_bytes:
        return _too_large(topic, f"a payload of {payload} bytes", limits.max_payload_bytes)
    levels = topic.count("/") + 1
    if limits.max_topic_levels and levels > limits.max_topic_levels:
        return TransportError("broker.topic", f"the broker takes topics of {limits.max_topic_levels} levels, this one has {levels}",
                              where=topic, remedy="use a broker that takes deeper topics")
    length = len(topic.encode())
    if limits.max_topic_bytes and length > limits.max_topic_bytes:
        return TransportError("broker.topic", f"the broker takes topics of {limits.max_topic_bytes} bytes, this one has {length}",
                              where=topic, remedy="use a broker that takes longer topics, or give devices shorter names")
    return None


def _too_large(topic: str, what: str, limit: int) -> TransportError:
    remedy = "raise the broker's limit, or use a broker that takes more"
    if topic.startswith(f"{topics.PREFIX}/b/") or "/up/" in topic:
        remedy = "set [delivery] chunk_kb lower and publish the model again"
    elif topic == META:
        remedy = "withdraw versions that no board needs: jetfleet models --withdraw NAME:VERSION"
    return TransportError("broker.packet-size", f"{what} is over the broker's limit of {limit}", where=topic, remedy=remedy)


def payload_room(limits: BrokerLimits, topic: str, most: int) -> int:
    """Bytes of payload that the broker takes on `topic`, with an expiry, at most `most`."""
    room = min(most, limits.max_payload_bytes or most)
    if limits.max_packet_bytes:
        room = min(room, limits.max_packet_bytes - packet_bytes(topic, room, 1, 1) + room)
    return max(0, room)


def fits_chunks(limits: BrokerLimits, chunk_size: int) -> bool:
    """Whether chunks of that size reach everybody, by whichever of our topics."""
    return refusal(limits, _LONGEST_CHUNK_TOPIC, chunk_size + CHUNK_HEADER_BYTES) is None


def largest_chunk(limits: BrokerLimits, most: int = CHUNK_BYTES) -> int:
    """The largest chunk size in whole KiB, at most `most`, that fits; MIN_CHUNK_BYTES at the least."""
    return next((size for size in range(min(most, MAX_CHUNK_BYTES), MIN_CHUNK_BYTES, -1024) if fits_chunks(limits, size)), MIN_CHUNK_BYTES)


def check_chunks(limits: BrokerLimits, chunk_sizes: Iterable[int], where: str) -> None:
    """All of these chunk sizes fit the broker.

    Raises:
        InputError: `broker.packet-size` with the size that would.
    """
    for size in sorted(set(chunk_sizes), reverse=True):
        if not fits_chunks(limits, size):
            most = limits.max_packet_bytes or limits.max_payload_bytes
            raise InputError("broker.packet-size", f"chunks of {size} bytes and their header are over the broker's limit of {most} bytes",
                             where=where,
                             remedy=f"set [delivery] chunk_kb = {largest_chunk(limits, size) // 1024} and publish the model again")


def findings(limits: BrokerLimits) -> tuple[Finding, ...]:
    """What does not work over a broker with these limits, what hinders first."""
    found = []
    if not limits.retain:
        found.append(Finding("broker.retain", "the broker keeps no retained messages: a board that connects after the host has spoken "
                             "learns neither the signed metadata nor its deployment, and boards that are off are not seen",
                             "turn retained messages on in the broker (mosquitto: retain_available true)", hinders=True))
    if not limits.wildcards:
        found.append(Finding("broker.wildcards", "the broker takes no wildcard subscriptions: the host hears no board",
                             "turn wildcard subscriptions on in the broker", hinders=True))
    if limits.max_topic_levels and limits.max_topic_levels < MAX_TOPIC_LEVELS:
        found.append(Finding("broker.topic", f"the broker takes topics of {limits.max_topic_levels} levels: no board can ask for a blob",
                             f"allow {MAX_TOPIC_LEVELS} levels in the broker", hinders=True))
    if limits.max_topic_bytes and limits.max_topic_bytes < MAX_TOPIC_BYTES:
        found.append(Finding("broker.topic", f"the broker takes topics of {limits.max_topic_bytes} bytes: long names do not fit",
                             f"allow {MAX_TOPIC_BYTES} bytes in the broker", hinders=False))
    if limits.max_qos < 1:
        found.append(Finding("broker.qos", "the broker takes QoS 0 only: what is lost between two of us is repeated later, not at once",
                             "allow QoS 1 in the broker (mosquitto: max_qos 1)", hinders=False))
    return tuple(found)


# --- publishes a second -------------------------------------------------------------------------------------


class PublishRate(msgspec.Struct, frozen=True):
    """A token bucket of publishes: `rate` a second (0: as many as you like), at most a fifth of a second's worth, and one, gathers."""

    rate: float
    tokens: float = 1.0
    at: float = 0.0

    def at_time(self, now: float) -> PublishRate:
        """The bucket at `now`, monotonic seconds."""
        gathered = min(1.0 + self.rate / 5, self.tokens + max(0.0, now - self.at) * self.rate)
        return PublishRate(self.rate, gathered, now)

    def spent(self) -> PublishRate:
        return msgspec.structs.replace(self, tokens=self.tokens - 1.0)

    @property
    def wait_s(self) -> float:
        """Seconds until one more may go."""
        return max(0.0, (1.0 - self.tokens) / self.rate) if self.rate else 0.0
