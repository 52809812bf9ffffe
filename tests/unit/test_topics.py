"""Names from the network become topics and paths only after a check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract import topics
from jetfleet_contract.errors import MalformedError

BLOB = "a" * 64


@pytest.mark.parametrize("name", ["", "A", "a/b", "a+", "#", "..", "a..b", "-a", "a-", "é", "a" * 64, "a\n", "a b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(MalformedError) as caught:
        topics.check_name("device", name)
    assert caught.value.code == "name.bad"


@pytest.mark.parametrize("name", ["a", "cam-01", "orin.nano_2", "a" * 63])
def test_good_names_pass(name: str) -> None:
    assert topics.check_name("device", name) == name


@given(st.text(max_size=80))
def test_a_name_that_passes_is_one_harmless_path_part(name: str) -> None:
    try:
        topics.check_name("device", name)
    except MalformedError:
        return
    assert not set(name) & set("/+#\\\0\n ")
    assert name not in {".", ".."}


@pytest.mark.parametrize("blob", ["", "A" * 64, "a" * 63, "a" * 65, "../" + "a" * 61])
def test_bad_blobs_are_refused(blob: str) -> None:
    with pytest.raises(MalformedError):
        topics.chunk(blob)


def test_device_and_blob_are_read_back_from_topics() -> None:
    assert topics.device_of(topics.report("cam-01")) == "cam-01"
    assert topics.device_of(topics.response("cam-01", 7)) == "cam-01"
    assert topics.device_of(topics.want(BLOB, "cam-01")) == "cam-01"
    assert topics.blob_of(topics.want(BLOB, "cam-01")) == BLOB
    assert topics.blob_of(topics.chunk(BLOB)) == BLOB


@pytest.mark.parametrize("name", ["cam-01", "up", "offer", "rsp", "d"])
def test_what_a_board_says_does_not_depend_on_its_name(name: str) -> None:
    said = {topics.birth(name): "birth", topics.response(name, 7): "rsp", topics.offer(name): "offer", topics.upload(name, BLOB): "up",
            topics.want(BLOB, name): "", topics.META: "", f"jf/1/d/{name}": ""}
    assert {topic: topics.said(topic) for topic in said} == said


@pytest.mark.parametrize("topic", ["jf/1/meta", "jf/1/d", "jf/1/d/UPPER/report", "x/d/a/report", f"jf/1/b/{BLOB}/c"])
def test_topics_of_no_device_are_refused(topic: str) -> None:
    with pytest.raises(MalformedError):
        topics.device_of(topic)


def test_topics_stay_within_the_seven_slashes_of_the_strictest_broker() -> None:
    for topic in (topics.want(BLOB, "d"), topics.upload("d", BLOB), topics.response("d", 1)):
        assert topic.count("/") <= 7
