"""The TensorRT backends over a stand-in for TensorRT and a GPU whose memory is the host's: memory, order of calls, errors, cleaning up.

What it cannot show is that TensorRT itself behaves so; that takes a board. Frames on the GPU: `test_tensorrt_frames`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import SHAPE, Board, stand_in

from jetfleet_agent.pipeline import cuda as cuda_package
from jetfleet_agent.pipeline.backends import DEFAULTS, Backend, open_backend, tensorrt
from jetfleet_agent.pipeline.backends.tensorrt_build import build_plan
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import IncompatibleError, JetfleetError, RuntimeFailure
from jetfleet_contract.tuning import Tuning


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    for name, version in (("tensorrt", "10.3.0"), ("tensorrt_rtx", "1.7.1")):
        monkeypatch.setitem(sys.modules, name, stand_in(board, name, version))
    monkeypatch.setattr(tensorrt, "check_driver", lambda: None)
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: board.cuda)
    return board


def opened(folder: Path, content: bytes = b"plan", shape: tuple[int, ...] = SHAPE, *, name: str = "tensorrt", file: str = "m.plan",
           precision: str = "fp16", tuning: Tuning = DEFAULTS) -> Backend:
    (folder / file).write_bytes(content)
    return open_backend(name, folder / file, precision=precision, threads=0, input_shape=shape, lanes=2, tuning=tuning)


def refusal(backend: Backend) -> JetfleetError:
    with pytest.raises(JetfleetError) as caught:
        backend.activate()
    return caught.value


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("integrated", [True, False])
def test_each_lane_has_its_own_memory_and_all_is_given_back(board: Board, tmp_path: Path, integrated: bool, captures: bool,
                                                            name: str) -> None:
    board.cuda = FakeCuda(integrated=integrated, captures=captures)
    backend = opened(tmp_path, name=name)
    with backend:
        assert backend.provider == "Fake GPU"
        assert len(board.cuda.blocks) == (0 if integrated else 4)
        board.cuda.log.clear()
        backend.lanes[0].tensor.fill(0.25)
        backend.lanes[1].tensor.fill(1.0)
        first, second = backend.infer(backend.lanes[0])[0], backend.infer(backend.lanes[1])[0]
        plain = ["run"] if integrated else ["upload", "run", "download"]
        assert board.cuda.log == 2 * (["graph"] if captures else plain)
        np.testing.assert_allclose(first, np.full((1, 1, 4, 6), 0.75))
        np.testing.assert_allclose(second, np.zeros((1, 1, 4, 6)))
        backend.lanes[0].tensor.fill(0.5)
        assert float(backend.infer(backend.lanes[0])[0][0, 0, 0, 0]) == 0.5
    assert (board.cuda.leaks, board.cuda.closed) == ((0, 0, 0, 0), 1)
    np.testing.assert_allclose(second, np.zeros((1, 1, 4, 6)))  # ordinary memory: an answer that somebody keeps stays readable
    assert board.host_code == [False]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_what_was_built_is_written_and_loaded_again_instead_of_building(board: Board, tmp_path: Path, name: str) -> None:
    with opened(tmp_path, file="m.onnx", name=name) as backend:
        engine = backend.export(tmp_path / "m.engine")
    assert (engine.digest, (tmp_path / "m.engine").read_bytes()) == (hashlib.sha256(b"plan").hexdigest(), b"plan")
    board.cuda, board.network_flags = FakeCuda(), []
    with open_backend(name, tmp_path / "m.onnx", precision="fp16", threads=0, input_shape=SHAPE, engine=engine) as backend:
        backend.lanes[0].tensor.fill(0.25)
        assert float(backend.infer(backend.lanes[0])[0][0, 0, 0, 0]) == 0.75
    assert board.network_flags == [], "nothing was built"
    board.serializes, board.cuda = False, FakeCuda()
    with opened(tmp_path, file="m.onnx", name=name) as backend, pytest.raises(RuntimeFailure, match="it gives no plan") as refused:
        backend.export(tmp_path / "other.engine")
    assert refused.value.code == "engine.export"


def test_an_engine_that_is_not_what_was_signed_never_reaches_tensorrt(board: Board, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "m.engine").write_bytes(b"plam")
    engine = EngineFile(str(tmp_path / "m.engine"), hashlib.sha256(b"plan").hexdigest())
    error = refusal(open_backend("tensorrt", tmp_path / "m.onnx", precision="fp16", threads=0, input_shape=SHAPE, engine=engine))
    assert (error.code, board.host_code, board.cuda.leaks) == ("engine.digest", [], (0, 0, 0, 0))


def test_a_delivered_engine_of_a_newer_tensorrt_is_refused_by_name(board: Board, tmp_path: Path) -> None:
    """Loading one that its signature was meant to keep away: the model is compiled instead, see `pipeline.loaded`."""
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "m.engine").write_bytes(b"of 11.4")
    board.reason = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match"
    engine = EngineFile(str(tmp_path / "m.engine"), hashlib.sha256(b"of 11.4").hexdigest())
    error = refusal(open_backend("tensorrt", tmp_path / "m.onnx", precision="fp16", threads=0, input_shape=SHAPE, engine=engine))
    assert (error.code, board.cuda.leaks) == ("engine.version", (0, 0, 0, 0))
    assert "TensorRT 10.3.0 cannot load m.onnx" in error.what


@pytest.mark.parametrize(("content", "shape", "code"), [(b"of another", SHAPE, "engine.load"), (b"plan", (2, 3, 4, 6), "engine.load")])
def test_an_engine_that_does_not_load_is_not_the_models_fault(board: Board, tmp_path: Path, content: bytes, shape: tuple[int, ...],
                                                              code: str) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "m.engine").write_bytes(content)
    engine = EngineFile(str(tmp_path / "m.engine"), hashlib.sha256(content).hexdigest())
    error = refusal(open_backend("tensorrt", tmp_path / "m.onnx", precision="fp16", threads=0, input_shape=shape, engine=engine))
    assert (error.code, board.cuda.leaks) == (code, (0, 0, 0, 0))


@pytest.mark.parametrize(("reason", "code"), [
    ("The engine plan file is generated on an incompatible device, expecting compute 8.7 got compute 8.6", "engine.sm"),
    ("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match", "engine.version"),
    ("Error Code 4: API Usage Error", "backend.load")])
def test_a_foreign_plan_is_refused_by_name_with_a_remedy(board: Board, tmp_path: Path, reason: str, code: str) -> None:
    board.reason = reason
    error = refusal(opened(tmp_path, b"plan of another"))
    assert (error.code, board.cuda.leaks) == (code, (0, 0, 0, 0))
    assert reason in error.what
    assert "ONNX" in error.remedy


@pytest.mark.parametrize(("diagnostics", "code"), [(1, "engine.version"), (2, "engine.sm"), (4, "cuda.driver"), (16, "backend.memory"),
                                                   (32, "engine.broken"), (64, "cuda.error"), (0, "backend.load")])
def test_an_rtx_engine_is_judged_before_it_is_loaded(board: Board, tmp_path: Path, diagnostics: int, code: str) -> None:
    board.validity = ("INVALID", diagnostics)
    assert refusal(opened(tmp_path, name="tensorrt-rtx")).code == code
    assert board.host_code == []


def test_the_profile_of_the_batch_is_taken(board: Board, tmp_path: Path) -> None:
    board.profiles = [((1, 3, 4, 6), (2, 3, 4, 6), (8, 3, 4, 6)), ((4, 3, 4, 6), (4, 3, 4, 6), (4, 3, 4, 6))]
    with opened(tmp_path, shape=(4, 3, 4, 6)) as backend:
        assert backend.infer(backend.lanes[1])[0].shape == (4, 1, 4, 6)
    assert board.chosen == [1, 1]


def test_a_shape_without_a_profile_is_named_with_what_there_is(board: Board, tmp_path: Path) -> None:
    error = refusal(opened(tmp_path, shape=(2, 3, 4, 6)))
    assert error.code == "backend.input"
    assert "'x' is [2, 3, 4, 6]" in error.what
    assert "[1, 3, 4, 6] to [1, 3, 4, 6]" in error.what
    assert "profile" in error.remedy


def test_a_plan_of_another_size_is_named(board: Board, tmp_path: Path) -> None:
    assert refusal(opened(tmp_path, shape=(1, 3, 8, 8))).code == "backend.input"


def test_an_output_whose_size_depends_on_the_picture_is_named(board: Board, tmp_path: Path) -> None:
    board.answer = (-1, -1, 6)
    error = refusal(opened(tmp_path))
    assert error.code == "backend.output"
    assert "'y'" in error.what
    assert board.cuda.leaks == (0, 0, 0, 0)


def test_too_little_memory_is_told_before_anything_is_allocated(board: Board, tmp_path: Path) -> None:
    board.activation = 1 << 30
    error = refusal(opened(tmp_path))
    assert (error.code, board.cuda.leaks) == ("backend.memory", (0, 0, 0, 0))
    assert "2147 MB" in error.what


def test_memory_that_runs_out_half_way_is_typed_and_leaks_nothing(board: Board, tmp_path: Path) -> None:
    board.activation, board.cuda.room = 0, 72 * 4 + 24 * 4 + 72 * 4  # the second lane's output finds none
    error = refusal(opened(tmp_path))
    assert isinstance(error, RuntimeFailure)
    assert (error.code, board.cuda.leaks) == ("cuda.memory", (0, 0, 0, 0))


def test_an_engine_that_fails_is_typed_and_gives_all_back(board: Board, tmp_path: Path) -> None:
    board.runs = False
    assert refusal(opened(tmp_path)).code == "backend.run"
    assert board.cuda.leaks == (0, 0, 0, 0)


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 2), ("11.4.1", 0)])
def test_networks_are_strongly_typed_with_10_and_with_11(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str,
                                                         flags: int) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(board, "tensorrt", version))
    with opened(tmp_path, file="m.onnx", precision="fp32"):
        assert (board.network_flags, board.cleared) == ([flags], ["TF32"])


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(board: Board, tmp_path: Path) -> None:
    board.errors = [SimpleNamespace(node=lambda: 4, node_name=lambda: "/head/Hardmax", node_operator=lambda: "StringSplit",
                                    desc=lambda: "No importer registered for op")]
    error = refusal(opened(tmp_path, file="m.onnx"))
    assert (type(error), error.code) == (IncompatibleError, "backend.operator")
    assert "node /head/Hardmax (StringSplit)" in error.what


def test_dla_is_built_for_its_core_with_the_gpu_for_the_rest(board: Board, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="jetfleet_agent")
    dla = Tuning(provider="DLA1")
    assert refusal(opened(tmp_path, file="m.onnx", tuning=dla)).code == "backend.dla"
    board.dla_cores, board.cuda, board.flags = 2, FakeCuda(), []
    with opened(tmp_path, file="m.onnx", tuning=dla) as backend:
        assert (backend.provider, board.flags) == ("DLA1", ["GPU_FALLBACK"])
        engine = backend.export(tmp_path / "dla.engine")
    assert "2 of 3 layers run on the DLA, the GPU runs /head/softmax" in caplog.text
    board.dla_cores, board.cuda = 1, FakeCuda()
    error = refusal(open_backend("tensorrt", tmp_path / "m.onnx", precision="fp16", threads=0, input_shape=SHAPE, tuning=dla,
                                 engine=engine))
    assert (error.code, board.cuda.leaks) == ("backend.dla", (0, 0, 0, 0))
    assert "DLA1 was asked for, this tensorrt sees 1 DLA cores" in error.what


def test_what_no_dla_runs_is_refused_by_name(board: Board, tmp_path: Path) -> None:
    board.dla_cores, board.on_dla = 2, ()
    error = refusal(opened(tmp_path, file="m.onnx", tuning=Tuning(provider="DLA0")))
    assert (error.code, board.cuda.leaks) == ("backend.dla", (0, 0, 0, 0))
    assert "/conv, /act, /head/softmax" in error.what
    board.on_dla = ("/conv",)
    for precision, provider, part in (("fp32", "DLA0", "does not run in fp32"), ("fp16", "DLA2", "'DLA2'")):
        board.cuda = FakeCuda()
        error = refusal(opened(tmp_path, file="m.onnx", precision=precision, tuning=Tuning(provider=provider)))
        assert error.code == "backend.dla"
        assert part in error.what


def test_a_timing_cache_is_read_kept_and_replaced_when_it_is_foreign(board: Board, tmp_path: Path) -> None:
    trt, timing = sys.modules["tensorrt"], tmp_path / "orin.timing"
    logger = SimpleNamespace(reason="")
    for kept in (b"", b"mine", b"foreign"):
        if kept:
            timing.write_bytes(kept)
        assert build_plan(trt, logger, tmp_path / "m.onnx", SHAPE, exact=False, timing=timing) == b"plan"
        assert timing.read_bytes() == (b"mine+" if kept == b"mine" else b"+")
    assert list(tmp_path.iterdir()) == [timing]


def test_without_a_driver_tensorrt_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lean runtime has ended processes that had no driver, so the driver is asked first, by another process."""
    monkeypatch.setattr(cuda_package, "_ASK", "import ctypes; ctypes.CDLL('libno-such-driver.so.1')")
    cuda_package.why_no_driver.cache_clear()
    try:
        for name in ("tensorrt", "tensorrt-rtx"):
            monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)  # an import would be `backend.missing`
            assert refusal(opened(tmp_path, name=name)).code == "cuda.driver"
    finally:
        cuda_package.why_no_driver.cache_clear()


@pytest.mark.parametrize(("ask", "part"), [("import os; os.kill(os.getpid(), 11)", "signal 11"), ("print('cuInit', 100)", "gives 100"),
                                           ("print('cuInit', 0)", "")])
def test_what_the_driver_does_to_the_process_that_asks_is_an_answer(monkeypatch: pytest.MonkeyPatch, ask: str, part: str) -> None:
    monkeypatch.setattr(cuda_package, "_ASK", ask)
    cuda_package.why_no_driver.cache_clear()
    try:
        reason = cuda_package.why_no_driver()
    finally:
        cuda_package.why_no_driver.cache_clear()
    assert part in reason
    assert bool(reason) == bool(part)
