"""MQTT topics of contract version 1, and nothing else: no client, no payloads.

Every name that comes from outside (device, blob, app) is checked here before it becomes part of a topic or a
path, so that neither a wildcard nor a separator can slip in.
"""

from __future__ import annotations

import re

from .errors import MalformedError

PREFIX = "jf/1"

META = f"{PREFIX}/meta"
ALL_BIRTHS = f"{PREFIX}/d/+/birth"
ALL_STATES = f"{PREFIX}/d/+/state"
ALL_REPORTS = f"{PREFIX}/d/+/report"
ALL_TELEMETRY = f"{PREFIX}/d/+/telemetry"
ALL_RESULTS = f"{PREFIX}/d/+/result"
ALL_WANTS = f"{PREFIX}/b/+/want/+"
ALL_RESPONSES = f"{PREFIX}/d/+/rsp/+"
ALL_OFFERS = f"{PREFIX}/d/+/offer"
ALL_CROPS = f"{PREFIX}/d/+/crop"
ALL_ENGINE_WORDS = f"{PREFIX}/d/+/engine"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_BLOB = re.compile(r"[0-9a-f]{64}")


def check_name(kind: str, value: str) -> str:
    """A device, app, source, variant or class name: 1..63 of ``a-z 0-9 . _ -``, no dot-dot.

    Raises:
        MalformedError: `name.bad`.
    """
    if not is_name(value):
        raise MalformedError("name.bad", f"{kind} name {value[:80]!r} is not allowed",
                             remedy="use 1 to 63 of a-z, 0-9, '.', '_', '-', beginning and ending with a letter or digit")
    return value


def is_name(value: str) -> bool:
    """Whether `check_name` takes it."""
    return _NAME.fullmatch(value) is not None and ".." not in value


def check_blob(value: str) -> str:
    """A blob id: 64 lower-case hex digits of its SHA-256."""
    if not _BLOB.fullmatch(value):
        raise MalformedError("blob.bad", f"blob id {value[:80]!r} is not a SHA-256 in lower-case hex")
    return value


def _device(device: str, leaf: str) -> str:
    return f"{PREFIX}/d/{check_name('device', device)}/{leaf}"


def desired(device: str) -> str:
    return _device(device, "desired")


def command(device: str) -> str:
    return _device(device, "cmd")


def response(device: str, seq: int) -> str:
    return _device(device, f"rsp/{seq}")


def birth(device: str) -> str:
    return _device(device, "birth")


def state(device: str) -> str:
    return _device(device, "state")


def report(device: str) -> str:
    return _device(device, "report")


def ack(device: str) -> str:
    return _device(device, "ack")


def telemetry(device: str) -> str:
    return _device(device, "telemetry")


def result(device: str) -> str:
    return _device(device, "result")


def crop(device: str) -> str:
    """Sealed pictures of what a board is not sure of, where a signed policy lets them leave."""
    return _device(device, "crop")


def answer(device: str) -> str:
    """What the host's model says of a board's crop, signed."""
    return _device(device, "answer")


def engine_word(device: str) -> str:
    """What a board says, signed, about an engine: that it needs it, how far it has built it, whether it fits."""
    return _device(device, "engine")


def offer(device: str) -> str:
    """Where a board says, signed, which blob it has for the host."""
    return _device(device, "offer")


def upload(device: str, blob: str) -> str:
    """Chunks and round marks of a blob on its way from a board to the host."""
    return _device(device, f"up/{check_blob(blob)}")


def upload_want(device: str, blob: str) -> str:
    """What the host still lacks of a board's blob."""
    return _device(device, f"upwant/{check_blob(blob)}")


def upload_wants(device: str) -> str:
    """All of a board's `upload_want` topics."""
    return _device(device, "upwant/+")


def want(blob: str, device: str) -> str:
    """The device comes last, so that an ACL pattern can bind it."""
    return f"{PREFIX}/b/{check_blob(blob)}/want/{check_name('device', device)}"


def blob_round(blob: str, lane: int = 0) -> str:
    """Round marks of one lane: 0 is where all begin, 1..255 where the quick ones go that left the slow ones behind."""
    return f"{PREFIX}/b/{check_blob(blob)}/round{_lane(lane)}"


def chunk(blob: str, lane: int = 0) -> str:
    return f"{PREFIX}/b/{check_blob(blob)}/c{_lane(lane)}"


def _lane(lane: int) -> str:
    return f"/{lane}" if lane else ""


def unicast(blob: str, device: str) -> str:
    """Chunks for one board alone, where few want a blob: the others do not pay for them."""
    return f"{PREFIX}/b/{check_blob(blob)}/u/{check_name('device', device)}"


def device_of(topic: str) -> str:
    """The device that a topic below ``jf/1/d/`` or a want topic belongs to.

    Raises:
        MalformedError: `topic.bad` when the topic is neither.
    """
    parts = topic.split("/")
    if topic.startswith(f"{PREFIX}/d/") and len(parts) >= 5:
        return check_name("device", parts[3])
    if topic.startswith(f"{PREFIX}/b/") and len(parts) == 6 and parts[4] == "want":
        return check_name("device", parts[5])
    raise MalformedError("topic.bad", f"topic {topic[:120]!r} belongs to no device")


def said(topic: str) -> str:
    """What a board says on a topic below ``jf/1/d/<device>/``: the level behind its name (`birth`, `offer`, `up` ...); empty elsewhere."""
    parts = topic.split("/", 5)
    return parts[4] if topic.startswith(f"{PREFIX}/d/") and len(parts) >= 5 else ""


def blob_of(topic: str) -> str:
    """The blob that a topic below ``jf/1/b/`` belongs to."""
    parts = topic.split("/")
    if topic.startswith(f"{PREFIX}/b/") and len(parts) >= 5:
        return check_blob(parts[3])
    raise MalformedError("topic.bad", f"topic {topic[:120]!r} belongs to no blob")
