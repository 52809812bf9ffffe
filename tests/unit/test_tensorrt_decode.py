"""A YOLO head is decoded behind the engine, in the same graph: over a fake GPU whose kernels are their numpy twins. The task says of the
records what it says of the head itself; what is broken on purpose ends in a named reason and the CPU's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decode_heads import head_of
from fake_cuda import FakeCuda
from fake_tensorrt import Board, installed

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_agent.pipeline.decoded import is_decoded
from jetfleet_agent.pipeline.preprocess import Geometry, Preprocessor
from jetfleet_agent.pipeline.tasks import Task, load_task
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.decode_arguments import head_rules

INPUT = InputSpec("x", 48, 32, resize="letterbox")
WHERE = Geometry(640, 480, 0.05, 0.05)
FRAME = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)


def task(**options: Any) -> Task:
    return load_task(TaskSpec("detect-yolo", INPUT, ("cat", "dog", "owl"), {"layout": "v8", **options}))


def a_head(seed: int, images: int = 1, kind: str = "scene", dtype: Any = np.float32) -> Any:
    rules = head_rules("v8", "f32", (images, 7, 300), classes=3)
    return head_of(np.random.default_rng(seed), rules, kind).astype(dtype)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    board = Board()
    board.input, board.answer, board.head = (-1, 3, 32, 48), (-1, 7, 300), a_head(0)
    board.profiles = [((1, 3, 32, 48), (1, 3, 32, 48), (2, 3, 32, 48))]
    return installed(board, monkeypatch, tmp_path / "wheel")


def opened(folder: Path, images: int = 1) -> Backend:
    (folder / "m.plan").write_bytes(b"plan")
    return open_backend("tensorrt", folder / "m.plan", precision="fp16", threads=0, input_shape=(images, 3, 32, 48), lanes=2, spec=INPUT)


def answered(backend: Backend, lane: int = 0) -> tuple[Any, ...]:
    backend.prepare(FRAME, backend.lanes[lane], 0, Preprocessor(INPUT).run)
    return backend.infer(backend.lanes[lane])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("integrated", [True, False])
def test_the_task_says_the_same_of_records_as_of_the_head(board: Board, tmp_path: Path, integrated: bool, captures: bool,
                                                          dtype: Any) -> None:
    board.cuda = cuda = FakeCuda(integrated=integrated, captures=captures)
    board.head = a_head(0, dtype=dtype)
    yolo = task()
    with opened(tmp_path) as backend:
        backend.decode_by(yolo.on_gpu)
        assert backend.decoding == "GPU, a v8 head"
        for seed, kind in enumerate(("scene", "sure", "empty", "ties")):
            board.head = a_head(seed, kind=kind, dtype=dtype)
            cuda.log.clear()
            outputs = answered(backend, seed % 2)
            assert is_decoded(outputs[0])
            assert yolo.decode(outputs, WHERE) == yolo.decode((board.head,), WHERE)
            if captures and seed > 1:
                assert cuda.log.count("graph") == 1
                assert "run" not in cuda.log
        assert len(yolo.decode((a_head(0, dtype=dtype),), WHERE)) > 3
    assert cuda.leaks == (0, 0, 0, 0)


def test_each_picture_of_a_batch_has_its_own_record(board: Board, tmp_path: Path) -> None:
    board.head = np.concatenate([a_head(3), a_head(4)])
    yolo = task()
    with opened(tmp_path, 2) as backend:
        backend.decode_by(yolo.on_gpu)
        outputs = answered(backend)
        for index in range(2):
            assert yolo.decode((outputs[0][index:index + 1],), WHERE) == yolo.decode((board.head[index:index + 1],), WHERE)


def test_other_options_are_captured_anew_with_each_lane_s_next_run(board: Board, tmp_path: Path) -> None:
    with opened(tmp_path) as backend:
        lenient, strict = task(), task(threshold=0.9, max_detections=3)
        for one in (lenient, strict, strict, lenient):
            backend.decode_by(one.on_gpu)
            for lane in range(2):
                assert one.decode(answered(backend, lane), WHERE) == one.decode((board.head,), WHERE)
        assert len(board.cuda.graphs) == 2
        backend.decode_by(lambda outputs: None)
        assert backend.decoding.startswith("CPU: no kernel decodes")
        assert not is_decoded(answered(backend)[0])
    assert board.cuda.leaks == (0, 0, 0, 0)


def test_a_cubin_without_decoding_still_prepares(board: Board, tmp_path: Path) -> None:
    board.cuda.lacks = {"jf_decode_keep"}
    yolo = task()
    with opened(tmp_path) as backend:
        backend.decode_by(yolo.on_gpu)
        assert backend.preparation.startswith("GPU")
        assert backend.decoding == "CPU: CUDA: CUDA_ERROR_NOT_FOUND while looking for jf_decode_keep [cuda.error]"
        assert yolo.decode(answered(backend), WHERE) == yolo.decode((board.head,), WHERE)
    assert board.cuda.leaks == (0, 0, 0, 0)


@pytest.mark.parametrize("captures", [True, False])
def test_a_decode_that_fails_in_the_middle_costs_no_frame(board: Board, tmp_path: Path, captures: bool) -> None:
    board.cuda = FakeCuda(captures=captures)
    yolo = task()
    with opened(tmp_path) as backend:
        backend.decode_by(yolo.on_gpu)
        answered(backend)
        board.cuda.broken = {"jf_decode_compare"}
        for lane in (0, 1, 0):
            outputs = answered(backend, lane)
            assert not is_decoded(outputs[0])
            assert yolo.decode(outputs, WHERE) == yolo.decode((board.head,), WHERE)
        assert "launching jf_decode_compare [cuda.error]" in backend.decoding
        assert backend.preparation.startswith("CPU")
    assert board.cuda.leaks == (0, 0, 0, 0)


def test_outputs_that_are_no_head_are_the_task_s_own(board: Board, tmp_path: Path) -> None:
    board.head, board.answer = None, (-1, 1, 32, 48)
    with opened(tmp_path) as backend:
        backend.decode_by(task().on_gpu)
        assert backend.decoding.startswith("CPU: ")
        assert answered(backend)[0].shape == (1, 1, 32, 48)
