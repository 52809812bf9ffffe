"""Real pipeline processes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pipelines import PipelineProcess


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PipelineProcess]]:
    """Starts pipeline processes, by the app's name and with what more should be in their environment; all are ended with the test."""
    running: list[PipelineProcess] = []

    def starter(app: str = "detector", **environment: str) -> PipelineProcess:
        running.append(PipelineProcess(tmp_path / "run", app, environment=environment))
        return running[-1]

    yield starter
    for process in running:
        process.close()
