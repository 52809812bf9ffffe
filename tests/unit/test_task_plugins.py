"""Tasks of installed packages: a real distribution on the path, and what its mistakes are called."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from jetfleet_agent.pipeline import tasks
from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.errors import IncompatibleError, InputError, RuntimeFailure
from jetfleet_contract.predictions import MAX_DETECTIONS, Detection

GEOMETRY = Geometry(32, 32, 1.0, 1.0)
GOOD = """
    from jetfleet_agent.pipeline.tasks import Task, number
    from jetfleet_contract.predictions import Detection

    class Depth(Task):
        options = frozenset({"scale"})

        def __init__(self, spec):
            super().__init__(spec)
            self._scale = number(spec, "scale", 1.0, 0.1, 10.0)

        def decode(self, outputs, geometry):
            return (Detection("nearest", 1.0, values=(float(outputs[0].min()) * self._scale,)),)
"""


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Put a distribution that has task `depth` into a folder on the path, as pip lays it out."""
    folder = tmp_path / "site"
    folder.mkdir()
    sys.path.insert(0, str(folder))

    def installer(source: str, name: str = "depth") -> None:
        (folder / "depth_task.py").write_text(textwrap.dedent(source))
        info = folder / "depth_task-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: depth-task\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[jetfleet.tasks]\n{name} = depth_task:Depth\n")
        tasks.installed.cache_clear()

    yield installer
    sys.path.remove(str(folder))
    sys.modules.pop("depth_task", None)
    tasks.installed.cache_clear()


def spec(kind: str = "depth", **options: float | str | bool) -> TaskSpec:
    return TaskSpec(kind, InputSpec("x", 32, 32), (), options)


def test_an_installed_package_adds_a_task(install: Callable[[str], None]) -> None:
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec())
    assert caught.value.code == "task.unknown"
    assert "detect-yolo" in (caught.value.remedy or "")
    install(GOOD)
    (found,) = load_task(spec(scale=2.0)).decode((np.array([[3.0, 4.0]]),), GEOMETRY)
    assert found == Detection("nearest", 1.0, values=(6.0,))
    with pytest.raises(InputError) as refused:
        load_task(spec(scale=50.0))
    assert refused.value.code == "task.option"


def test_the_look_up_is_done_once(install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(GOOD)
    load_task(spec())
    monkeypatch.setattr(tasks, "entry_points", lambda **_: pytest.fail("looked up again"))
    load_task(spec())
    load_task(spec("classify"))


def test_our_own_tasks_need_no_metadata_and_cannot_be_replaced(install: Callable[[str, str], None]) -> None:
    install(GOOD, "raw")
    (found,) = load_task(spec("raw")).decode((np.array([[3.0]]),), GEOMETRY)
    assert found.label == "output0"


def test_the_table_is_the_distributions_own() -> None:
    ours = {entry.name: entry.value for entry in metadata.entry_points(group=tasks.GROUP) if entry.value.startswith("jetfleet_agent.")}
    assert ours.keys() <= tasks._OURS.keys()
    assert all(tasks._OURS[name] == value for name, value in ours.items())
    for kind in tasks._OURS:
        assert load_task(spec(kind)).input_shape == (1, 3, 32, 32)


@pytest.mark.parametrize("source", [
    "raise RuntimeError('no license')", "import does_not_exist", "Depth = 3", "class Depth:\n    def __init__(self, spec): pass",
    GOOD.replace("super().__init__(spec)", "raise KeyError('weights')")])
def test_a_package_that_does_not_load_is_named(install: Callable[[str], None], source: str) -> None:
    install(source)
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec())
    assert caught.value.code == "task.plugin"
    assert "depth" in caught.value.what


@pytest.mark.parametrize("body", ["return outputs[7]", "return None", "return (1, 2)", "raise SystemError('x' * 9999)", "return 1 / 0"])
def test_a_task_that_fails_on_a_frame_convicts_its_model(install: Callable[[str], None], body: str) -> None:
    install(GOOD.replace('return (Detection("nearest", 1.0, values=(float(outputs[0].min()) * self._scale,)),)', body))
    with pytest.raises(RuntimeFailure) as caught:
        load_task(spec()).decode((np.zeros(3),), GEOMETRY)
    assert caught.value.code == "task.crash"
    assert len(caught.value.what) <= 300


def test_what_a_task_says_is_bounded(install: Callable[[str], None]) -> None:
    install(GOOD.replace("1.0, values=(float(outputs[0].min()) * self._scale,)),)",
                         "1.0 / (i + 1), (0, 0, 9, 9), outline=(i,) * 5000) for i in range(5000))"))
    found = load_task(spec()).decode((np.zeros(3),), GEOMETRY)
    assert len(found) == MAX_DETECTIONS
    assert found[0].score == 1.0
    assert found[0].outline == ()
