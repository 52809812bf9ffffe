"""Any bytes give a value or a MalformedError, nothing else."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent import ipc
from jetfleet_contract import bundle, messages
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult

KINDS: list[type[msgspec.Struct]] = [
    messages.Deployment, messages.Command, messages.Envelope, messages.Birth, messages.DeviceState, messages.Report, messages.Ack,
    messages.Telemetry, messages.Result, bundle.ModelSpec, bundle.Evaluation, bundle.ProbeSet, EvaluationJob, EvaluationResult,
]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=20)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_random_bytes(kind: type[msgspec.Struct], data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        messages.decode(data, kind)


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_random_manifests_and_lines(data: bytes) -> None:
    for decoder in (bundle.decode_manifest, ipc.order_from, ipc.event_from):
        with contextlib.suppress(MalformedError):
            decoder(data)


GOOD = messages.encode(messages.Deployment(
    "cam-01", 3, 1e9, (messages.AppSpec("text", "0" * 64, "text", "1", sources=(messages.Source("front", "file:///v.avi"),)),)))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_one_changed_byte(position: int, value: int) -> None:
    changed = GOOD[:position] + bytes([value]) + GOOD[position + 1:]
    with contextlib.suppress(MalformedError):
        messages.decode(changed, messages.Deployment)


@given(st.integers(0, len(GOOD) - 1))
def test_truncated(length: int) -> None:
    with pytest.raises(MalformedError):
        messages.decode(GOOD[:length], messages.Deployment)


def test_too_large_too_deep_and_unknown_fields_have_their_own_codes() -> None:
    for data, code in (
        (b" " * (messages.MAX_MESSAGE_BYTES + 1), "message.large"),
        (b"[" * 100_000, "message.deep"),
        (b'{"id": 1, "extra": 2}', "message.bad"),
        (b"\xff\xfe", "message.bad"),
    ):
        with pytest.raises(MalformedError) as caught:
            messages.decode(data, messages.Ack)
        assert caught.value.code == code


def test_a_line_that_is_too_long_is_refused() -> None:
    with pytest.raises(MalformedError) as caught:
        ipc.event_from(b" " * (ipc.MAX_LINE_BYTES + 1))
    assert caught.value.code == "ipc.large"
