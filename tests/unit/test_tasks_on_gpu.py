"""Tasks whose head a GPU decodes: what it is told, and that records in the head's place mean what the head itself means."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from jetfleet_agent.pipeline.decode_twin import decode
from jetfleet_agent.pipeline.decoded import HeadDecode
from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import Task, load_task
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.errors import IncompatibleError

SIDE, CELLS = 64, 84
PLACE = Geometry(128, 96, 0.5, 0.5, 0.0, 8.0)


class Output(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str


def task(kind: str, labels: tuple[str, ...] = ("a", "b", "c"), **options: float | str | bool) -> Task:
    return load_task(TaskSpec(kind, InputSpec("x", SIDE, SIDE), labels, options))


def head(*shape: int, kind: Any = np.float32) -> Any:
    rng = np.random.default_rng()
    numbers = rng.uniform(0, 0.6, shape)
    numbers[:, :2], numbers[:, 2:4] = rng.uniform(0, SIDE, (shape[0], 2, shape[2])), rng.uniform(8, 30, (shape[0], 2, shape[2]))
    return numbers.astype(kind)


CASES = {"detect-yolo": (7, ()), "keypoints": (7 + 4, ()), "segment": (7 + 5, (5, 16, 16))}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", CASES)
def test_records_mean_what_the_head_means(kind: str, dtype: Any) -> None:
    row, maps = CASES[kind]
    options: dict[str, Any] = {"points": 2, "dimensions": 2} if kind == "keypoints" else {}
    doing = task(kind, threshold=0.4, iou=0.3, max_detections=40, **options)
    outputs = [head(2, row, CELLS, kind=dtype)]
    if maps:
        outputs.append(np.random.default_rng().normal(0, 1, (2, *maps)).astype(np.float32))
    told = doing.on_gpu([Output(f"out{index}", output.shape, output.dtype.name) for index, output in enumerate(outputs)])
    assert told is not None
    assert told.output == "out0"
    assert (told.rules.images, told.rules.shape) == (2, outputs[0].shape)
    records = decode(outputs[0], told.rules)
    for image in range(2):
        others = [output[image:image + 1] for output in outputs[1:]]
        want = doing.decode((outputs[0][image:image + 1], *others), PLACE)
        assert want
        assert doing.decode((records[image:image + 1], *others), PLACE) == want


@pytest.mark.parametrize(("kind", "outputs"), [
    ("detect-yolo", [Output("o", (1, 300, 6), "float32")]),
    ("detect-yolo", [Output("o", (1, 7, CELLS), "int8")]),
    ("detect-yolo", [Output("o", (65, 7, CELLS), "float32")]),
    ("detect-yolo", [Output("n", (1, 1), "int32"), Output("b", (1, 9, 4), "float32"), Output("s", (1, 9), "float32")]),
    ("segment", [Output("o", (1, 3, 16, 16), "float32")]),
    ("classify", [Output("o", (1, 3), "float32")])])
def test_what_no_gpu_decodes_stays_with_the_task(kind: str, outputs: list[Output]) -> None:
    assert task(kind).on_gpu(outputs) is None


def test_records_of_another_decode_are_refused() -> None:
    told = task("detect-yolo").on_gpu([Output("o", (1, 7, CELLS), "float32")])
    assert isinstance(told, HeadDecode)
    records = decode(head(1, 7, CELLS), told.rules)
    with pytest.raises(IncompatibleError, match="numbers more"):
        task("keypoints").decode((records,), PLACE)
    records["kept"] = 9999
    with pytest.raises(IncompatibleError) as caught:
        task("detect-yolo").decode((records,), PLACE)
    assert caught.value.code == "task.output"


def test_a_head_of_no_layout_is_named_as_in_a_decode() -> None:
    with pytest.raises(IncompatibleError) as caught:
        task("detect-yolo").on_gpu([Output("o", (1, 9, 11), "float32")])
    assert caught.value.code == "task.output"
