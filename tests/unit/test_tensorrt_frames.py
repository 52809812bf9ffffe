"""Frames become the engine's input in one kernel: the whole way over a fake GPU whose kernels are their numpy twins.

What the engine saw is compared, byte for byte, with the twin on the frame itself, and with the CPU's pre-processing. What is broken on
purpose ends in a named reason and the CPU's answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import Board, installed
from small_cubins import cubin, fill

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_agent.pipeline.backends.tensorrt_frames import Frames
from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_agent.pipeline.pool import FramePool
from jetfleet_agent.pipeline.preprocess import Geometry, Image, Preprocessor
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError, RuntimeFailure
from jetfleet_contract.kernel_arguments import rules, sampling

SPEC = InputSpec("x", 48, 32, color="rgb", resize="letterbox", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
SIZES = ((64, 40), (48, 32), (31, 57), (48, 32), (64, 40))
KERNEL, BAND = "jf_preprocess_bgr_nchw_f32", "jf_fill_nchw_f32"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    board = Board()
    _takes(board, (-1, 3, 32, 48), 2)
    return installed(board, monkeypatch, tmp_path / "wheel")


def _takes(board: Board, shape: tuple[int, ...], most: int) -> None:
    board.input, board.answer = shape, (-1, 1, 32, 48)
    one, many = ((count, *shape[1:]) for count in (1, most))
    board.profiles = [(one, one, many)]


def opened(folder: Path, images: int = 1, spec: InputSpec | None = SPEC, lanes: int = 2) -> Backend:
    (folder / "m.plan").write_bytes(b"plan")
    return open_backend("tensorrt", folder / "m.plan", precision="fp16", threads=0, input_shape=(images, 3, 32, 48), lanes=lanes, spec=spec)


def noise(size: tuple[int, int], seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def pooled(pool: FramePool, image: Image) -> Image:
    buffer = pool.take(*image.shape[:2])
    np.copyto(buffer, image)
    return buffer


def by_twin(image: Image, spec: InputSpec = SPEC, layout: Any = "nchw", kind: Any = "f32") -> Any:
    told = rules(spec, "bgr", input_scale=spec.input_scale or 1.0)
    out = new_tensor(1, told, layout, kind)
    height, width = image.shape[:2]
    where = sampling(spec, width, height, spec.resize)
    preprocess((np.ascontiguousarray(image).reshape(height, -1),), "bgr", where, told, out[0], layout, kind)
    return out


def by_cpu(image: Image, spec: InputSpec = SPEC) -> tuple[Any, Geometry]:
    out = np.empty((1, 3, spec.height, spec.width), np.float32)
    geometry = Preprocessor(spec).run(image, out)
    return out, geometry


def never(image: Image, tensor: Any) -> Geometry:
    raise AssertionError("the CPU was asked to prepare a frame")


def shown(backend: Backend, lane: int, image: Image) -> Geometry:
    """Prepare and run one picture."""
    geometry = backend.prepare(image, backend.lanes[lane], 0, never)
    backend.infer(backend.lanes[lane])
    return geometry


@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("integrated", [True, False])
def test_frames_of_every_size_take_turns_in_a_lane(board: Board, tmp_path: Path, integrated: bool, captures: bool) -> None:
    board.cuda = cuda = FakeCuda(integrated=integrated, captures=captures)
    pool = FramePool()
    with opened(tmp_path) as backend:
        assert backend.preparation == f"GPU, {KERNEL} of jetfleet.sm_87.cu12.cubin (wheel)"
        for turn, size in enumerate(SIZES):
            image = noise(size, turn)
            cuda.log.clear()
            cuda.ran.clear()
            geometry = shown(backend, 0, pooled(pool, image))
            wanted, as_told = by_cpu(image)
            np.testing.assert_array_equal(board.seen, by_twin(image))
            np.testing.assert_allclose(board.seen, wanted, atol=1.01 / 255 / 0.2)
            assert geometry == as_told
            np.testing.assert_allclose(backend.lanes[0].outputs[0], 1 - board.seen.mean(axis=1, keepdims=True))
            assert cuda.ran.count(KERNEL) == 1
            before = [] if integrated else ["upload"]
            plain = [*before, KERNEL, "run", *([] if integrated else ["download"])]
            band = [BAND] if size != SIZES[1] else []
            assert cuda.log == [*before, *band, *(["graph"] if captures else plain)]
    assert (cuda.leaks, cuda.closed) == ((0, 0, 0, 0), 1)


def test_the_band_is_written_once_as_long_as_frames_keep_their_size(board: Board, tmp_path: Path) -> None:
    with opened(tmp_path) as backend:
        board.cuda.ran.clear()
        for seed in range(4):
            shown(backend, 0, noise(SIZES[0], seed))
        assert board.cuda.ran.count(BAND) == 1
        np.testing.assert_array_equal(board.seen, by_twin(noise(SIZES[0], 3)))


@pytest.mark.parametrize("dtype", ["float16", "int8", "float32"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_engine_gets_its_own_type_and_layout_either_way(board: Board, tmp_path: Path, dtype: str, layout: str, on_gpu: bool) -> None:
    spec = msgspec.structs.replace(SPEC, input_scale=1 / 32 if dtype == "int8" else 0.0)
    _takes(board, (-1, 3, 32, 48) if layout == "nchw" else (-1, 32, 48, 3), 1)
    board.dtype = dtype
    if not on_gpu:
        fill(tmp_path / "wheel", ((72, 12),))
    image = noise(SIZES[0])
    kind = {"float16": "f16", "int8": "i8", "float32": "f32"}[dtype]
    with opened(tmp_path, spec=spec) as backend:
        assert backend.preparation.startswith("GPU" if on_gpu else "CPU: no cubin serves sm_87")
        backend.prepare(image, backend.lanes[0], 0, Preprocessor(spec).run)
        backend.infer(backend.lanes[0])
        wanted = by_twin(image, spec, layout, kind)
        if on_gpu:
            np.testing.assert_array_equal(board.seen, wanted)
        apart = np.abs(board.seen.astype(np.float32) - wanted.astype(np.float32))
        assert apart.max() <= 1.01 / 255 / 0.2 * (32 if dtype == "int8" else 1) + (0.5 if dtype == "int8" else 2e-3)
        assert (board.seen.dtype, board.seen.shape) == (wanted.dtype, wanted.shape)
    assert board.cuda.leaks == (0, 0, 0, 0)


@pytest.mark.parametrize("integrated", [True, False])
def test_tiles_of_one_frame_are_one_upload_and_one_launch(board: Board, tmp_path: Path, integrated: bool) -> None:
    board.cuda = FakeCuda(integrated=integrated)
    _takes(board, (-1, 3, 32, 48), 4)
    frame = pooled(FramePool(), noise((100, 70)))
    tiles = [frame[0:40, 0:60], frame[30:70, 0:60], frame[0:40, 40:100]]
    with opened(tmp_path, images=4, lanes=1) as backend:
        lane = backend.lanes[0]
        for index, tile in enumerate(tiles):
            backend.prepare(tile, lane, index, never)
        board.cuda.log.clear()
        board.cuda.ran.clear()
        backend.infer(lane)
        assert board.cuda.log.count("upload") == (0 if integrated else 1)
        assert board.cuda.ran.count(KERNEL) == 1
        for index, tile in enumerate(tiles):
            np.testing.assert_array_equal(board.seen[index:index + 1], by_twin(tile))


def test_cameras_of_a_batch_each_have_their_own_place(board: Board, tmp_path: Path) -> None:
    images = [noise(size, seed) for seed, size in enumerate(SIZES[:2])]
    with opened(tmp_path, images=2) as backend:
        lane = backend.lanes[1]
        for turn in (images, images[::-1]):
            for index, image in enumerate(turn):
                backend.prepare(image, lane, index, never)
            backend.infer(lane)
            np.testing.assert_array_equal(board.seen, np.concatenate([by_twin(image) for image in turn]))


def test_running_again_runs_the_engine_on_what_it_had(board: Board, tmp_path: Path) -> None:
    """So that the engine's own time can be taken right behind a frame's."""
    with opened(tmp_path) as backend:
        shown(backend, 0, noise(SIZES[0]))
        before, board.seen = board.seen, None
        backend.infer(backend.lanes[0])
        np.testing.assert_array_equal(board.seen, before)


@pytest.mark.parametrize("integrated", [True, False])
def test_frames_go_back_to_their_pool_after_the_run(board: Board, tmp_path: Path, integrated: bool) -> None:
    board.cuda = FakeCuda(integrated=integrated)
    pool = FramePool()
    with opened(tmp_path) as backend:
        for seed in range(20):
            image = pooled(pool, noise(SIZES[0], seed))
            shown(backend, 0, image)
            del image
        assert pool.held == 1
        pinned = len(board.cuda.pinned)
        for take in range(600):  # another camera, for so long that the pool gives its old size up
            image = pooled(pool, noise(SIZES[2], take % 3))
            if take > 590:
                shown(backend, 0, image)
            del image
        pool.take(7, 7)
        shown(backend, 0, pool.take(8, 9))
        assert len(board.cuda.pinned) == pinned + 1, "two came; what nobody else has any more is not kept"
    assert board.cuda.leaks == (0, 0, 0, 0)


def test_two_models_look_at_the_same_frame(board: Board, tmp_path: Path) -> None:
    """A champion and its challenger: memory can be locked once a process, and stays locked as long as one of them lives."""
    image = pooled(FramePool(), noise(SIZES[0]))
    board.cuda.users = 2
    first, second = opened(tmp_path), opened(tmp_path)
    first.activate()
    second.activate()
    for backend in (first, second):
        shown(backend, 0, image)
    first.deactivate()
    shown(second, 0, image)
    np.testing.assert_array_equal(board.seen, by_twin(image))
    second.deactivate()
    assert board.cuda.leaks == (0, 0, 0, 0)


def test_memory_that_cannot_be_locked_is_copied(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pooled(FramePool(), noise(SIZES[0]))
    with opened(tmp_path) as backend:
        pin = board.cuda.pin

        def refuse(array: Any) -> int:
            if array.ctypes.data == image.ctypes.data:
                raise RuntimeFailure("cuda.error", "CUDA: CUDA_ERROR_NOT_SUPPORTED while pinning memory")
            return pin(array)

        monkeypatch.setattr(board.cuda, "pin", refuse)
        shown(backend, 0, image)
        np.testing.assert_array_equal(board.seen, by_twin(image))
        assert backend.preparation.startswith("GPU")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("size", [(1, 20), (20, 1), (1, 1)])
def test_a_frame_too_thin_for_the_kernel_is_the_cpu_s_beside_others_in_a_batch(board: Board, tmp_path: Path, size: tuple[int, int],
                                                                              dtype: str) -> None:
    spec = msgspec.structs.replace(SPEC, input_scale=1 / 32 if dtype == "int8" else 0.0)
    board.dtype = dtype
    thin, plain = noise(size), noise(SIZES[0])
    with opened(tmp_path, images=2, spec=spec) as backend:
        lane = backend.lanes[0]
        for turn in ((plain, thin), (thin, plain), (plain, thin)):
            for index, image in enumerate(turn):
                assert backend.prepare(image, lane, index, Preprocessor(spec).run) == by_cpu(image)[1]
            backend.infer(lane)
            step = 32 if dtype == "int8" else 1
            for index, image in enumerate(turn):
                apart = np.abs(board.seen[index] - step * by_cpu(image)[0][0])
                assert apart.max() <= step * 1.01 / 255 / 0.2 + (0.5 if dtype == "int8" else 2e-3)
        assert backend.preparation.startswith("GPU")
    assert board.cuda.leaks == (0, 0, 0, 0)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_frame_is_refused_as_by_the_cpu(board: Board, tmp_path: Path, image: Any) -> None:
    with opened(tmp_path) as backend, pytest.raises(InputError) as caught:
        backend.prepare(image, backend.lanes[0], 0, never)
    assert caught.value.code == "frame.shape"


def _no_cubins(board: Board, wheel: Path) -> None:
    (wheel / "kernels.json").unlink()


def _another_gpu(board: Board, wheel: Path) -> None:
    board.cuda.sm = 72


def _older_driver(board: Board, wheel: Path) -> None:
    board.cuda.cuda = 11


def _flipped(board: Board, wheel: Path) -> None:
    path = wheel / "jetfleet.sm_87.cu12.cubin"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def _of_another_sm(board: Board, wheel: Path) -> None:
    (wheel / "jetfleet.sm_87.cu12.cubin").write_bytes(cubin(86))


def _broken_kernel(board: Board, wheel: Path) -> None:
    board.cuda.broken = {KERNEL}


def _broken_band(board: Board, wheel: Path) -> None:
    board.cuda.broken = {BAND}


def _refused(board: Board, wheel: Path) -> None:
    board.cuda.refuses_cubins = True


def _no_symbol(board: Board, wheel: Path) -> None:
    board.cuda.lacks = {KERNEL}


@pytest.mark.parametrize(("sabotage", "part", "code"), [
    (_no_cubins, "built without cubins", "kernels.none"), (_another_gpu, "sm_72", "kernels.none"),
    (_older_driver, "need a driver of CUDA 12", "kernels.none"), (_flipped, "not the cubin that was built", "kernels.none"),
    (_of_another_sm, "not the cubin", "kernels.none"), (_broken_kernel, f"launching {KERNEL}", "cuda.error"),
    (_broken_band, f"launching {BAND}", "cuda.error"), (_refused, "INVALID_IMAGE", "cuda.error"),
    (_no_symbol, f"looking for {KERNEL}", "cuda.error")])
def test_what_is_missing_at_the_start_has_a_name_and_the_cpu_prepares(board: Board, tmp_path: Path, sabotage: Any, part: str,
                                                                     code: str) -> None:
    sabotage(board, tmp_path / "wheel")
    image = noise(SIZES[0])
    with opened(tmp_path) as backend:
        assert backend.preparation.startswith("CPU: ")
        assert part in backend.preparation
        assert backend.preparation.endswith(f"[{code}]")
        backend.prepare(image, backend.lanes[0], 0, Preprocessor(SPEC).run)
        backend.infer(backend.lanes[0])
        np.testing.assert_array_equal(board.seen, by_cpu(image)[0])
    assert board.cuda.leaks == (0, 0, 0, 0)
    assert not board.cuda.modules


@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("integrated", [True, False])
@pytest.mark.parametrize("kernel", [KERNEL, BAND])
def test_a_kernel_that_fails_in_the_middle_costs_no_frame(board: Board, tmp_path: Path, kernel: str, integrated: bool,
                                                          captures: bool) -> None:
    board.cuda = FakeCuda(integrated=integrated, captures=captures)
    images = [noise(size, seed) for seed, size in enumerate(SIZES[:4])]
    with opened(tmp_path, images=2) as backend:
        first, second = backend.lanes
        for lane, pair in ((first, images[:2]), (second, images[2:])):
            for index, image in enumerate(pair):
                backend.prepare(image, lane, index, never)
        board.cuda.broken = {kernel}
        for lane, pair in ((first, images[:2]), (second, images[2:])):  # one fails, the other was prepared before
            backend.infer(lane)
            np.testing.assert_array_equal(board.seen, np.concatenate([by_cpu(image)[0] for image in pair]))
            np.testing.assert_allclose(lane.outputs[0], 1 - board.seen.mean(axis=1, keepdims=True))
        assert backend.preparation == f"CPU: CUDA: CUDA_ERROR_LAUNCH_FAILED while launching {kernel} [cuda.error]"
        assert not any(isinstance(lane.binding.inlet, Frames) for lane in backend.lanes)
        for index, image in enumerate(images[1:3]):
            backend.prepare(image, first, index, Preprocessor(SPEC).run)
        backend.infer(first)
        np.testing.assert_array_equal(board.seen, np.concatenate([by_cpu(image)[0] for image in images[1:3]]))
    assert board.cuda.leaks == (0, 0, 0, 0)
    board.cuda = FakeCuda(integrated=integrated, captures=captures)
    with backend:
        assert backend.preparation.startswith("GPU"), "a fresh start is a fresh try"


def test_memory_that_runs_out_for_a_larger_frame_is_the_cpu_s_turn(board: Board, tmp_path: Path) -> None:
    with opened(tmp_path) as backend:
        shown(backend, 0, noise((8, 8)))
        board.cuda.room = 10_000
        image = noise((90, 90))
        backend.prepare(image, backend.lanes[0], 0, never)
        board.cuda.room = 32 * 48 * 3 * 4 - 8 * 8 * 3
        backend.infer(backend.lanes[0])
        np.testing.assert_array_equal(board.seen, by_cpu(image)[0])
        assert backend.preparation.endswith("[cuda.memory]")


def test_an_engine_that_fails_is_no_fault_of_the_kernel(board: Board, tmp_path: Path) -> None:
    board.cuda = FakeCuda(captures=False)
    with opened(tmp_path) as backend:
        backend.prepare(noise(SIZES[0]), backend.lanes[0], 0, never)
        board.runs = False
        with pytest.raises(RuntimeFailure) as caught:
            backend.infer(backend.lanes[0])
        assert caught.value.code == "backend.run"
        assert backend.preparation.startswith("GPU")


def test_int8_without_its_scale_is_refused_with_what_to_do(board: Board, tmp_path: Path) -> None:
    board.dtype = "int8"
    with pytest.raises(Exception, match="its scale is not told") as caught:
        opened(tmp_path).activate()
    assert caught.value.code == "backend.input"  # type: ignore[attr-defined]
    assert board.cuda.leaks == (0, 0, 0, 0)

