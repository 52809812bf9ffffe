"""Sinks: a result file on a full disk costs lines, never the app."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.sinks import JsonLines, Sinks
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import Result


class Named:
    """All that a sink reads of a model."""

    key = ("a" * 64, "1", "v@onnxruntime:fp32")


FRAME = Frame("front", 0, 0, np.zeros((4, 4, 3), np.uint8), 1.0, 2.0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_file_and_not_the_answers() -> None:
    published: list[Result] = []
    sinks = Sinks("app", published.append, JsonLines(Path("/dev/full")))
    for _ in range(3):
        sinks.take(FRAME, cast("LoadedModel", Named()), 3.5)
    assert len(published) == 3
    assert published[0].age_ms == 2500.0
    sinks.close()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        JsonLines(tmp_path / "none" / "out.jsonl")
    assert caught.value.code == "sink.write"
