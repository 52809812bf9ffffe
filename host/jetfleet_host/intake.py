"""What boards say, checked before anything is stored: bytes in, a bounded message or an error out. Pure.

Signatures come in as a function, so that this file needs no cryptography. Free text is cut and cleaned, because it is
stored and shown; names and numbers that are out of bounds refuse the whole message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

import msgspec

from jetfleet_contract import topics
from jetfleet_contract.errors import MalformedError, UntrustedError
from jetfleet_contract.messages import (
    MAX_APPS,
    MAX_GAUGES,
    Alarm,
    AppState,
    Birth,
    DeviceState,
    Envelope,
    Report,
    Response,
    Result,
    Series,
    Telemetry,
    decode,
)
from jetfleet_contract.predictions import is_bounded
from jetfleet_contract.uploads import MAX_OFFER_BYTES, Offer, check_offer

MAX_NUMBER = 1 << 53
MAX_SERIES = 256
MAX_STAGES = 32
MAX_PAIRS = 64
MAX_ALARMS = 32
MAX_TEXT = 2000
MAX_WORD = 63
MAX_CANDIDATE = 200

T = TypeVar("T", bound=msgspec.Struct)


class VerifyDevice(Protocol):
    """Opens an envelope that the board with this public key (hex) signed as `kind`.

    Raises MalformedError or UntrustedError.
    """

    def __call__(self, envelope: bytes, key_hex: str, kind: str, message: type[T], /) -> T: ...


def claimed_key(payload: bytes) -> str:
    """The key that a birth says it is signed with; nothing is trusted yet. MalformedError `message.*`, `birth.key`."""
    envelope = decode(payload, Envelope)
    if not envelope.signatures:
        raise MalformedError("birth.key", "the birth carries no signature")
    return topics.check_blob(envelope.signatures[0].keyid)


def birth_from(topic: str, payload: bytes, key: str, verify: VerifyDevice) -> Birth:
    """A birth signed by `key`.

    Raises:
        MalformedError: `message.*`, `message.device`, `message.bounds`. UntrustedError: `trust.*`, `birth.key`.
    """
    birth = verify(payload, key, "birth", Birth)
    _check_device(topic, birth.device)
    if birth.key != key:
        raise UntrustedError("birth.key", "the birth names another key than the one that signed it", where=topic)
    _check_number(birth.session, birth.seq, birth.contract)
    if len(birth.apps) > MAX_APPS or len(payload) > MAX_TEXT * 32:
        raise MalformedError("message.bounds", f"a birth with {len(birth.apps)} apps and {len(payload)} bytes is too large")
    capability = birth.capability
    topics.check_name("board", capability.board)
    topics.check_name("class", capability.device_class)
    _check_words(birth.agent_version, capability.arch, birth.instance)
    if birth.sealing:
        topics.check_blob(birth.sealing)
    for app in birth.apps:
        check_app_state(app)
    return birth


def stored_birth(stored: str) -> Birth | None:
    """A birth as it was verified and stored; None when there is none."""
    try:
        return decode(bytes(decode(stored.encode(), Envelope).signed), Birth)
    except MalformedError:
        return None


def check_app_state(app: AppState) -> None:
    """Names and sizes within bounds, else MalformedError."""
    topics.check_name("app", app.app)
    _check_bundle(app.bundle)
    _check_words(app.name, app.version, app.phase)
    _check_words(app.candidate, limit=MAX_CANDIDATE)


def report_from(topic: str, payload: bytes, key: str, verify: VerifyDevice) -> Report:
    """A report signed by `key`, its free text cut. Raises as `birth_from`."""
    report = verify(payload, key, "report", Report)
    _check_device(topic, report.device)
    _check_number(report.id, report.seq)
    topics.check_name("app", report.app)
    _check_bundle(report.bundle)
    _check_words(report.phase, report.version, report.from_version, report.code, report.rollout)
    _check_words(report.candidate, limit=MAX_CANDIDATE)
    _check_pairs(report.metrics)
    _check_finite((report.at,))
    return msgspec.structs.replace(report, detail=clean(report.detail))


def response_from(topic: str, payload: bytes, key: str, verify: VerifyDevice) -> Response:
    """The answer to a command, signed by `key`, its free text cut. Raises as `birth_from`, and MalformedError `topic.bad`."""
    response = verify(payload, key, "response", Response)
    _check_device(topic, response.device)
    _check_number(response.seq)
    if topic != topics.response(response.device, response.seq):
        raise MalformedError("topic.bad", f"the answer to command {response.seq} came on the topic of another", where=topic)
    _check_words(response.code)
    _check_finite((response.at,))
    if "\0" in response.body:
        raise MalformedError("message.bounds", "the body of an answer has a NUL", where=topic)
    return msgspec.structs.replace(response, detail=clean(response.detail))


def offer_from(topic: str, payload: bytes, key: str, verify: VerifyDevice) -> Offer:
    """What a board has for the host, signed by `key`. Raises as `birth_from` and as `check_offer`."""
    if len(payload) > MAX_OFFER_BYTES:
        raise MalformedError("message.large", f"an offer of {len(payload)} bytes is over the limit of {MAX_OFFER_BYTES}", where=topic)
    return check_offer(verify(payload, key, "offer", Offer), topics.device_of(topic))


def state_from(topic: str, payload: bytes) -> DeviceState:
    """An online mark. It carries no signature: as a Will it was written before it was true."""
    state = decode(payload, DeviceState, limit=1024)
    _check_device(topic, state.device)
    _check_number(state.session)
    return state


def telemetry_from(topic: str, payload: bytes, key: str, verify: VerifyDevice) -> Telemetry:
    """One window with consistent sketches, signed by `key`: latency gates rest on it. Raises as `birth_from`, and `telemetry.sketch`."""
    window = verify(payload, key, "telemetry", Telemetry)
    _check_device(topic, window.device)
    _check_number(window.session, window.window)
    _check_finite((window.started, window.duration_s))
    if window.duration_s < 0 or len(window.series) > MAX_SERIES:
        raise MalformedError("message.bounds", f"a window of {window.duration_s} s with {len(window.series)} series is out of bounds")
    _check_pairs(window.gauges, MAX_GAUGES)
    _check_alarms(window.alarms)
    for series in window.series:
        _check_series(series)
    return window


def _check_alarms(alarms: tuple[Alarm, ...]) -> None:
    if len(alarms) > MAX_ALARMS:
        raise MalformedError("message.bounds", f"{len(alarms)} alarms are over the limit of {MAX_ALARMS}")
    for alarm in alarms:
        topics.check_name("app", alarm.app)
        _check_words(alarm.source)
        _check_words(alarm.code)


def _check_series(series: Series) -> None:
    topics.check_name("app", series.app)
    _check_words(series.source)
    _check_bundle(series.bundle)
    _check_words(series.version)
    _check_words(series.candidate, limit=MAX_CANDIDATE)
    _check_number(series.seen, series.done, *series.dropped.values())
    _check_pairs(series.dropped)
    _check_pairs(series.labels)
    if len(series.stages) > MAX_STAGES or len(series.values) > MAX_STAGES:
        raise MalformedError("message.bounds",
                             f"{len(series.stages)} stages and {len(series.values)} values are over the limit of {MAX_STAGES}")
    for stage, sketch in (*series.stages.items(), *series.values.items()):
        _check_words(stage)
        if not sketch.is_consistent() or sketch.count > MAX_NUMBER:
            raise MalformedError("telemetry.sketch", f"the sketch of stage {stage} does not add up", where=f"app {series.app}")


def result_from(topic: str, payload: bytes) -> Result:
    """One frame's detections, within bounds."""
    result = decode(payload, Result)
    topics.device_of(topic)
    topics.check_name("app", result.app)
    _check_words(result.source)
    _check_words(result.version)
    _check_words(result.candidate, limit=MAX_CANDIDATE)
    if not is_bounded(result.detections) or abs(result.position) > MAX_NUMBER or not 0 <= result.frame <= MAX_NUMBER:
        raise MalformedError("message.bounds", f"a result with {len(result.detections)} detections is out of bounds")
    return result


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Text that may be stored and shown: cut, control characters (NUL breaks PostgreSQL, ESC terminals) replaced."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])


def _check_device(topic: str, device: str) -> None:
    if topics.device_of(topic) != device:
        raise MalformedError("message.device", f"a message of {device[:80]!r} came on the topic of another board", where=topic)


def _check_number(*values: int) -> None:
    if not all(0 <= value <= MAX_NUMBER for value in values):
        raise MalformedError("message.bounds", "a number is negative or too large")


def _check_finite(values: Iterable[float]) -> None:
    if not all(math.isfinite(value) for value in values):
        raise MalformedError("message.bounds", "a number is not finite")


def _check_bundle(bundle: str) -> None:
    if bundle:
        topics.check_blob(bundle)


def _check_words(*words: str, limit: int = MAX_WORD) -> None:
    for word in words:
        if len(word) > limit or not word.isprintable():
            raise MalformedError("message.bounds", f"{word[:80]!r} is too long, or has control characters")


def _check_pairs(pairs: Mapping[str, float], most: int = MAX_PAIRS) -> None:
    if len(pairs) > most:
        raise MalformedError("message.bounds", f"{len(pairs)} figures are over the limit of {most}")
    _check_words(*pairs)
    _check_finite(pairs.values())
