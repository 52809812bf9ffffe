"""The seeded part of `every_decoder.py`: each decoder takes its good message, and a thousand hostile ones without a surprise."""

from __future__ import annotations

import pytest
from every_decoder import Decoder, decoders, fuzz

NAMES = (
    "message deployment", "message command", "message birth", "message state", "message report", "message ack", "message telemetry",
    "message result", "message result_things", "message probe", "host reads birth", "host reads report", "host reads telemetry",
    "envelope", "board reads package",
    "board verifies package", "board opens deployment", "board opens command", "bundle manifest", "want", "chunk", "round mark",
    "mark to one board", "bitmap", "chunk table", "root page", "upload part", "upload mark", "offer", "verdict",
    "explanation", "board's log", "host reads offer", "host reads response", "delta index", "delta", "engine", "sealed box",
    "host reads crop", "crop, opened", "answer", "root draft",
    "builder's metadata", "signing request", "pipeline event", "pipeline order", "claimed key", "online mark", "result",
)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    return {decoder.name: decoder for decoder in decoders(tmp_path_factory.mktemp("fuzz"))}


def test_none_is_left_out(every: dict[str, Decoder]) -> None:
    assert sorted(every) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_or_a_refusal_and_nothing_else(every: dict[str, Decoder], name: str) -> None:
    decoder = every[name]
    decoder.decode(decoder.good)
    outcome = fuzz(decoder, max(20, round(1000 * decoder.share)), seed=7)
    assert outcome.codes, "not one of the mutants was refused"
