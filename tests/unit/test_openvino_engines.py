"""OpenVINO's compiled blobs as engines: exported and imported for real; what was changed on the way is refused before it is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pipelines import detector_task, save_map_model

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_agent.pipeline.evaluate import evaluate
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import IncompatibleError, JetfleetError, RuntimeFailure, UntrustedError
from jetfleet_contract.evaluation import EvaluationJob
from jetfleet_contract.tuning import Tuning

SHAPE = (1, 3, 48, 64)
INPUT = InputSpec("x", 64, 48)
PLAIN = Tuning()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    return save_map_model(tmp_path / "map.onnx", work=2)


def opened(model: Path, engine: EngineFile | None = None, *, tuning: Tuning = PLAIN, shape: tuple[int, ...] = SHAPE) -> Backend:
    return open_backend("openvino", model, precision="fp32", threads=1, input_shape=shape, tuning=tuning, spec=INPUT, engine=engine)


def exported(model: Path, *, tuning: Tuning = PLAIN) -> EngineFile:
    with opened(model, tuning=tuning) as backend:
        return backend.export(model.with_name("map.engine"))


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(folded=True)])
def test_an_imported_engine_answers_as_the_compiled_model(model: Path, tuning: Tuning) -> None:
    engine = exported(model, tuning=tuning)
    random = np.random.default_rng(3)
    answers: list[Any] = []
    image: Any = None
    for one in (None, engine):
        with opened(model, one, tuning=tuning) as backend:
            tensor = backend.lanes[0].tensor
            if image is None:
                image = random.integers(0, 255, tensor.shape).astype(tensor.dtype) if tuning.folded else random.random(tensor.shape)
            tensor[...] = image
            answers.append(backend.infer(backend.lanes[0])[0].copy())
            assert backend.provider == "CPU"
            assert backend.precision == "fp32", "the precision is read back of an engine, too"
    np.testing.assert_array_equal(answers[0], answers[1])


def changed(engine: EngineFile, data: bytes) -> EngineFile:
    path = Path(engine.path).with_name("changed.engine")
    path.write_bytes(data)
    return EngineFile(str(path), engine.digest)


def test_what_was_changed_on_the_way_is_refused_before_it_is_loaded(model: Path) -> None:
    engine = exported(model)
    data = Path(engine.path).read_bytes()
    flipped = bytearray(data)
    flipped[len(data) * 3 // 4] ^= 1
    for bad in (bytes(flipped), data[:-1], data[:len(data) // 2], b"", data + b"\0"):
        with pytest.raises(UntrustedError, match="not the one that was vouched for") as refused:
            opened(model, changed(engine, bad)).activate()
        assert refused.value.code == "engine.digest"


def test_openvino_itself_takes_an_engine_that_was_cut_by_a_byte(model: Path) -> None:
    """Why the digest is ours to check: with the digest of the cut file in its passport nothing refuses it."""
    engine = exported(model)
    cut = Path(engine.path).read_bytes()[:-1]
    forged = msgspec.structs.replace(changed(engine, cut), digest=hashlib.sha256(cut).hexdigest())
    with opened(model, forged) as backend:
        assert backend.lanes


def test_an_engine_that_the_runtime_refuses_is_an_error_with_a_code(model: Path) -> None:
    engine = exported(model)
    for data in (b"", b"no engine at all" * 50):
        with pytest.raises(RuntimeFailure) as refused:
            opened(model, msgspec.structs.replace(changed(engine, data), digest=hashlib.sha256(data).hexdigest())).activate()
        assert refused.value.code == "engine.load"
    with pytest.raises(RuntimeFailure) as refused:
        opened(model, engine, tuning=Tuning(folded=True)).activate()
    assert refused.value.code == "engine.load", "an engine of another set-up"
    with pytest.raises(RuntimeFailure):
        opened(model, EngineFile(str(model.with_name("gone")), "0" * 64)).activate()


def test_runtimes_without_engines_say_so(model: Path) -> None:
    with pytest.raises(IncompatibleError) as refused:
        open_backend("onnxruntime", model, precision="fp32", threads=1, input_shape=SHAPE, engine=EngineFile("x", "0" * 64))
    assert refused.value.code == "engine.backend"
    with open_backend("onnxruntime", model, precision="fp32", threads=1, input_shape=SHAPE) as backend, pytest.raises(JetfleetError):
        backend.export(model.with_name("none"))


def test_the_evaluation_builds_an_engine_and_tries_one(model: Path, tmp_path: Path) -> None:
    job = EvaluationJob(str(model), detector_task(), "openvino", threads=1, warmup=0, latency_runs=1)
    built = evaluate(msgspec.structs.replace(job, export=str(tmp_path / "built")))
    assert built.engine is not None, built.detail
    assert built.engine.digest == hashlib.sha256((tmp_path / "built").read_bytes()).hexdigest()
    tried = evaluate(msgspec.structs.replace(job, engine=built.engine))
    assert not tried.error, tried.detail
    (tmp_path / "built").write_bytes(b"torn")
    assert evaluate(msgspec.structs.replace(job, engine=built.engine)).error == "engine.digest"
