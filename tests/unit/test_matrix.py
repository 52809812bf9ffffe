"""The matrix: its front, its store, what fills a cell and what leaves it empty, records of boards, a killed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import data_folders
import msgspec
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from interrupts import interruptible

from jetfleet_contract.bench_records import BenchFigures, BenchRecord, why_unusable
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import encode
from jetfleet_contract.policy import Candidate
from jetfleet_host.boards import load_board
from jetfleet_host.bundles import open_bundle
from jetfleet_host.commands.list_options import spread
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.recipe import make_task
from jetfleet_host.matrix import method_build, views
from jetfleet_host.matrix.cells import Axis, Cell, Matrix, Way, cell_of, pareto
from jetfleet_host.matrix.filling import Request, fill
from jetfleet_host.matrix.machine import ThisMachine, machine_from, this_machine
from jetfleet_host.matrix.methods import method_of
from jetfleet_host.matrix.pareto import front
from jetfleet_host.matrix.records import Records, load_record
from jetfleet_host.matrix.store import MatrixStore

POINTS = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=24)


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(POINTS)
def test_the_front_holds_what_nothing_dominates_and_each_value_once(points: list[tuple[float, float]]) -> None:
    chosen = [points[index] for index in front(points)]
    assert set(chosen) == {point for point in points if not any(_dominates(other, point) for other in points)}
    assert len(set(chosen)) == len(chosen)
    assert chosen == sorted(chosen)


@given(POINTS, st.randoms())
def test_the_front_is_the_same_in_any_order(points: list[tuple[float, float]], random: Any) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    assert [points[index] for index in front(points)] == [shuffled[index] for index in front(shuffled)]


def _task(_model: str) -> Any:
    return make_task("classify", "", shape=(1, 3, 16, 16), labels=(), options={}, overrides={"mean": (0.0,) * 3, "std": (1.0,) * 3})


def _request(folder: Path, *methods: str, **changes: Any) -> Request:
    model = folder / "colours.onnx"
    if not model.exists():
        model.write_bytes(tiny_models.classifier(("n", 3, "h", "w"), opset=12).SerializeToString())
        (folder / "broken.onnx").write_bytes(b"no model at all")
        data_folders.colour_classes(folder / "data")
    made = Request((str(model), str(folder / "broken.onnx")), (_local(), "orin-nano", _foreign()), tuple(map(method_of, methods)),
                   folder / "data", _task, lambda: 7.0, threads=1, rounds=1, runs=3)
    return made if not changes else Request(**{**{name: getattr(made, name) for name in made.__dataclass_fields__}, **changes})


def _request_of(folder: Path, models: tuple[str, ...], methods: tuple[str, ...], **changes: Any) -> Request:
    return Request(models, ("orin-nano",), tuple(map(method_of, methods)), folder / "data", _task, lambda: 7.0, threads=1, rounds=1, runs=3,
                   **changes)


def _local() -> str:
    return "cpu-arm64" if this_machine().arch == "aarch64" else "cpu-x86"


def _foreign() -> str:
    return "cpu-x86" if this_machine().arch == "aarch64" else "cpu-arm64"


def _quiet(_stage: str, _done: int, _of: int) -> None: ...


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, MatrixStore, Matrix]:
    folder = tmp_path_factory.mktemp("matrix")
    request, store = _request(folder, "fp32", "int8"), MatrixStore(folder / "m")
    return request, store, fill(request, store, this_machine(), _quiet)


def _cells(matrix: Matrix) -> dict[tuple[str, str, str], Cell]:
    return {(cell.axis.model, cell.axis.target, cell.axis.method): cell for cell in matrix.cells}


def test_a_target_that_this_machine_is_gets_measured(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    cell = _cells(filled[2])["colours", _local(), "fp32"]
    assert cell.origin == "measured"
    assert cell.way is not None
    assert (cell.metric, cell.samples, cell.way.accuracy, cell.way.drop) == ("accuracy", 3, 1.0, 0.0)
    assert cell.way.p50_ms is not None
    assert cell.way.p95_ms is not None
    assert 0 < cell.way.p50_ms <= cell.way.p95_ms
    assert cell.way.peak_mb
    told = cell.way.provenance
    assert (told.ran_in, told.runs, told.threads, told.taken) == ("fp32", 3, 1, 7.0)
    assert "CPU" in told.provider
    assert told.device == this_machine().cpu
    assert told.isa == this_machine().isa
    assert told.software["onnxruntime"]


def test_a_jetson_gets_a_floor_and_never_a_latency(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    for method in ("fp32", "int8"):
        cell = _cells(filled[2])["colours", "orin-nano", method]
        assert cell.origin == "floor"
        assert cell.way is not None
        assert cell.way.floor_ms is not None
        assert cell.way.floor_ms > 0
        assert cell.way.p50_ms is None
        assert cell.way.candidate == f"{method}@tensorrt:{method}"
        assert "standing in for tensorrt" in cell.way.accuracy_on
        assert cell.way.provenance.power_mode == "MAXN_SUPER"


def test_what_nobody_knows_is_empty_and_says_why(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    cell = _cells(filled[2])["colours", _foreign(), "fp32"]
    assert cell.origin == "empty"
    assert cell.way is None
    assert f"no {_foreign()} is here" in cell.reason


def test_a_model_that_fails_leaves_its_reason_and_the_rest_goes_on(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    broken = [cell for cell in filled[2].cells if cell.axis.model == "broken"]
    assert len(broken) == 6
    assert all(cell.failed and "[model.not-onnx]" in cell.reason for cell in broken)
    assert views.counts(filled[2]) == {"measured": 2, "floor": 2, "empty": 8, "failed": 6, "missing": 0}


def test_a_second_run_starts_no_process_and_a_further_method_only_its_own(
        filled: tuple[Request, MatrixStore, Matrix], monkeypatch: pytest.MonkeyPatch) -> None:
    request, store, matrix = filled
    asked: list[str] = []
    run = JobRunner.run

    def counted(self: JobRunner, job: Any) -> Any:
        asked.append(job.precision)
        return run(self, job)

    monkeypatch.setattr(JobRunner, "run", counted)
    here = {"targets": (_local(), "orin-nano"), "models": request.models[:1]}
    again = fill(_request(store.folder.parent, "fp32", "int8", **here), store, this_machine(), _quiet)
    assert asked == []
    assert again.cells == matrix.cells
    more = fill(_request(store.folder.parent, "fp16", **here), store, this_machine(), _quiet)
    assert "fp16" in asked
    assert more.header.methods == ("fp32", "int8", "fp16")
    assert _cells(more)["colours", _local(), "fp32"] == _cells(matrix)["colours", _local(), "fp32"]
    assert _cells(more)["colours", "orin-nano", "fp16"].origin == "floor"


def test_a_damaged_cell_is_made_again(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    request, store, matrix = filled
    cell = _cells(matrix)["colours", "orin-nano", "int8"]
    path = store.folder / "cells" / f"{cell.key}.json"
    path.write_bytes(path.read_bytes()[:40])
    assert store.find(cell.key) is None
    only = _request(store.folder.parent, "fp32", "int8", targets=("orin-nano",), models=request.models[:1])
    again = fill(only, store, this_machine(), _quiet)
    assert _cells(again)["colours", "orin-nano", "int8"] == cell


def test_a_folder_of_other_data_or_settings_is_refused(tmp_path: Path, filled: tuple[Request, MatrixStore, Matrix]) -> None:
    request, store, _ = filled
    with pytest.raises(InputError, match="max_drop"):
        fill(_request(store.folder.parent, "fp32", max_drop=1.0), store, this_machine(), _quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="no matrix"):
        fill(request, MatrixStore(tmp_path / "mine"), this_machine(), _quiet)
    with pytest.raises(InputError, match="two models are named"):
        fill(_request(store.folder.parent, "fp32", models=(request.models[0],) * 2), store, this_machine(), _quiet)


def test_an_error_that_nobody_expected_is_a_cell_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*_: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(method_build, "build", burst)
    request = _request(tmp_path, "fp32", models=(str(tmp_path / "colours.onnx"),))
    matrix = fill(request, MatrixStore(tmp_path / "m"), this_machine(), _quiet)
    assert {cell.reason for cell in matrix.cells} == {"ZeroDivisionError: deep inside"}
    monkeypatch.undo()
    only = _request(tmp_path, "fp32", models=request.models, targets=("orin-nano",))
    again = fill(only, MatrixStore(tmp_path / "m"), this_machine(), _quiet)
    assert _cells(again)["colours", "orin-nano", "fp32"].origin == "floor"


# --- records of boards -------------------------------------------------------------------------------------------


def _record(store: MatrixStore, matrix: Matrix, **changes: Any) -> BenchRecord:
    """What an Orin Nano would have measured of the int8 file."""
    cell = _cells(matrix)["colours", "orin-nano", "int8"]
    assert cell.way is not None
    open_bundle(store.bundles / cell.bundle)
    row = BenchFigures(Candidate("int8", "tensorrt", "int8"), cell.way.digest, 0.4, 0.5, 0.6, 50, "", "Orin (nvgpu)", "int8", 512.0, 1.0,
                       energy_mj=2.5)
    row = msgspec.structs.replace(row, **{name: value for name, value in changes.items() if name in row.__struct_fields__})
    record = BenchRecord("orin-nano", "orin-nano", "aarch64", "Cortex-A78AE", ("asimddp",), 6, Conditions("36.4.0", "15W", 1510, 625),
                         {"tensorrt": "10.3.0"}, "colours", "1", 99.0, (row,))
    return msgspec.structs.replace(record, **{name: value for name, value in changes.items() if name in record.__struct_fields__})


def test_a_record_of_a_board_turns_its_floor_into_a_measurement(filled: tuple[Request, MatrixStore, Matrix], tmp_path: Path) -> None:
    _, store, matrix = filled
    path = tmp_path / "orin.json"
    path.write_bytes(encode(_record(store, matrix)))
    cell = _cells(matrix)["colours", "orin-nano", "int8"]
    assert cell.way is not None
    way = Records((load_record(path),)).measured(cell.way, load_board("orin-nano"))
    assert (way.p50_ms, way.p95_ms, way.floor_ms, way.peak_mb, way.energy_mj) == (0.4, 0.5, None, 512.0, 2.5)
    told = way.provenance
    assert (told.device, told.power_mode, told.clocks) == ("orin-nano, Cortex-A78AE", "15W", {"cpu": 1510.0, "gpu": 625.0})
    assert (told.provider, told.ran_in, told.software["l4t"], told.taken) == ("Orin (nvgpu)", "int8", "36.4.0", 99.0)
    assert cell_of(cell.axis, cell.key, "accuracy", 12, [way], "").origin == "measured"


def test_the_run_takes_a_record_into_a_matrix_that_has_floors(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    request, store, matrix = filled
    here = {"targets": ("orin-nano",), "models": request.models[:1], "records": Records((_record(store, matrix),))}
    folder = store.folder.parent
    after = fill(_request(folder, "fp32", "int8", **here), store, this_machine(), _quiet)
    assert _cells(after)["colours", "orin-nano", "int8"].origin == "measured"
    assert _cells(after)["colours", "orin-nano", "fp32"].origin == "floor"
    kept = fill(_request(folder, "fp32", "int8", **{**here, "records": Records()}), store, this_machine(), _quiet)
    assert _cells(kept)["colours", "orin-nano", "int8"].origin == "measured"  # a later run without the record does not forget


@pytest.mark.parametrize(("changes", "word"), [
    ({"ran_in": "fp32"}, "fell back: asked for int8, it ran in fp32"),
    ({"provider": "CPUExecutionProvider"}, "fell back: tensorrt ran on CPU"),
    ({"asked": "DLA0"}, "asked for DLA0, it ran on Orin"), ({"error": "out of memory"}, "out of memory"), ({"runs": 0}, "no timed run"),
    ({"simulated": True}, "played orin-nano"), ({"provider": ""}, "does not tell")])
def test_a_record_that_fell_back_is_refused_and_the_floor_stays(
        filled: tuple[Request, MatrixStore, Matrix], changes: dict[str, Any], word: str) -> None:
    _, store, matrix = filled
    record = _record(store, matrix, **changes)
    assert word in why_unusable(record, record.rows[0])
    cell = _cells(matrix)["colours", "orin-nano", "int8"]
    assert cell.way is not None
    floored = msgspec.structs.replace(cell.way, p50_ms=None, floor_ms=0.1)
    way = Records((record,)).measured(floored, load_board("orin-nano"))
    assert (way.p50_ms, way.floor_ms) == (None, 0.1)
    assert word in way.reason


def test_a_record_of_other_weights_or_another_board_says_nothing(filled: tuple[Request, MatrixStore, Matrix]) -> None:
    _, store, matrix = filled
    way = Way("int8@tensorrt:int8", "sha256:" + "0" * 64, 1, verdict="accepted", floor_ms=0.1)
    assert Records((_record(store, matrix),)).measured(way, load_board("orin-nano")) == way
    cell = _cells(matrix)["colours", "orin-nano", "int8"]
    assert cell.way is not None
    other = _record(store, matrix, device_class="agx-orin", board="agx-orin-64")
    assert Records((other,)).measured(cell.way, load_board("orin-nano")) == cell.way


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[1, 2]")
    for path in (tmp_path / "r.json", tmp_path / "none.json"):
        with pytest.raises(InputError) as caught:
            load_record(path)
        assert caught.value.code == "matrix.record"


# --- small parts ---------------------------------------------------------------------------------------------------


def _cell(target: str, method: str, ms: float, accuracy: float, origin: Any = "measured") -> Cell:
    measured = origin == "measured"
    way = Way("c", "", 1, accuracy, verdict="accepted", p50_ms=ms if measured else None, floor_ms=None if measured else ms)
    return Cell(Axis("m", target, method), method, "accuracy", 1, origin, way=way)


def test_floors_and_measurements_never_meet_on_one_front() -> None:
    cells = [_cell("a", "slow", 9.0, 0.9), _cell("a", "floor", 0.1, 0.9, "floor"),
             _cell("a", "worse", 10.0, 0.8), _cell("b", "other", 1.0, 0.1)]
    assert {axis.method for axis in pareto(cells)} == {"slow", "floor", "other"}


def test_of_a_cell_the_measured_candidate_counts_before_a_floor_and_refused_ones_never() -> None:
    ways = [Way("fast", "", 1, verdict="refused", p50_ms=0.1, reason="drop"), Way("floor", "", 1, verdict="accepted", floor_ms=0.1),
            Way("slow", "", 1, verdict="accepted", p50_ms=9.0)]
    cell = cell_of(Axis("m", "t", "x"), "k", "accuracy", 1, ways, "")
    assert cell.way is not None
    assert (cell.way.candidate, cell.origin) == ("slow", "measured")
    refused = cell_of(Axis("m", "t", "x"), "k", "accuracy", 1, ways[:1], "")
    assert (refused.origin, refused.reason) == ("empty", "fast: drop")


def test_a_machine_is_its_class_and_the_plainer_one_but_no_jetson() -> None:
    machine = machine_from("x86_64", "model name\t: Xeon\ncpu MHz\t\t: 2000.0\nflags\t\t: fpu avx2 avx512_vnni amx_int8 amx_bf16\n")
    assert (machine.cpu, machine.mhz, machine.isa) == ("Xeon", 2000.0, ("avx2", "avx512_vnni", "amx_bf16", "amx_int8"))
    assert [machine.is_a(load_board(name)) for name in ("cpu-x86", "cpu-x86-amx", "cpu-arm64", "orin-nano", "x86-gpu")] == [
        True, True, False, False, False]
    plain = ThisMachine("aarch64", "A", frozenset({"fp"}), 0.0)
    assert plain.is_a(load_board("cpu-arm64"))
    assert not plain.is_a(load_board("orin-nano"))


def test_a_list_option_takes_several_values() -> None:
    args = ["--models", "a", "b", "--out", "m", "--targets", "x", "--json", "y"]
    said = ["--models", "a", "--models", "b", "--out", "m", "--targets", "x", "--json", "y"]
    assert list(spread(args, {"--models", "--targets"})) == said


def _command(folder: Path, out: str) -> list[str]:
    _request(folder, "fp32")
    return [sys.executable, "-c", "from jetfleet_host.cli import main; main()", "matrix", "--models", str(folder / "colours.onnx"),
            "--targets", _local(), "orin-nano", "--methods", "fp32", "int8", "--data", str(folder / "data"), "--out", str(folder / out),
            "--shape", "1x3x16x16", "--mean", "0", "--std", "1", "--latency-rounds", "1", "--latency-runs", "3", "--json"]


def test_a_recipe_is_a_method_and_an_onnx_file_cannot_be_pruned(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[[stage]]\nkind = "prune"\n')
    assert method_of(str(tmp_path / "mine.toml")).name == "mine"
    assert method_of("prune-ptq").recipe is not None
    with pytest.raises(InputError, match="no method"):
        method_of("magic")
    request = _request(tmp_path, str(tmp_path / "mine.toml"), models=(str(tmp_path / "colours.onnx"),), targets=("orin-nano",))
    [cell] = fill(request, MatrixStore(tmp_path / "m"), this_machine(), _quiet).cells
    assert (cell.axis.method, cell.failed) == ("mine", True)
    assert "[recipe.stage]" in cell.reason


@pytest.mark.slow
def test_a_recipe_with_stages_on_a_torch_model_fills_a_cell_that_tells_what_the_guard_did(tmp_path: Path) -> None:
    data_folders.colour_classes(tmp_path / "data", 40)
    (tmp_path / "mine.toml").write_text('[training]\nbatch = 16\n[[stage]]\nkind = "tune"\nepochs = 1\n[[stage]]\nkind = "quantize"\n')
    request = _request_of(tmp_path, ("recipe_nets:net",), ("fp32", str(tmp_path / "mine.toml")), max_drop=60.0)
    cells = _cells(fill(request, MatrixStore(tmp_path / "m"), this_machine(), _quiet))
    plain, tuned = cells["recipe_nets.net", "orin-nano", "fp32"], cells["recipe_nets.net", "orin-nano", "mine"]
    assert not plain.failed, plain.reason
    assert not tuned.failed, tuned.reason
    assert plain.samples == tuned.samples == 24


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, blow: signal.Signals) -> None:
    command, out = _command(tmp_path, "m"), tmp_path / "m"
    process = interruptible(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(out.glob("bundles/*/oci-layout")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    (os.kill if blow == signal.SIGKILL else os.killpg)(process.pid, blow)
    assert process.wait(60) in (-blow, 130)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"measured": 2, "floor": 2, "empty": 0, "failed": 0, "missing": 0}
