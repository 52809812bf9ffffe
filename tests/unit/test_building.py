"""A whole build of a tiny classifier whose answers are known: determinism, the guard, resuming, the bundle's parts, the report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import data_folders
import msgspec
import numpy as np
import onnx
import pytest
import tiny_models
from interrupts import interruptible
from onnx import numpy_helper

from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import InputError, MalformedError, UntrustedError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.policy import candidates
from jetfleet_host.build_record import record_of
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress import building
from jetfleet_host.compress.building import BuildReport, build
from jetfleet_host.compress.calibration import ScaleTable
from jetfleet_host.compress.holding import Held
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.compress.recipe import Job, Recipe, make_task
from jetfleet_host.compress.scoring import judge, score
from jetfleet_host.floors import floors_of
from jetfleet_host.lineage import lineage_of
from jetfleet_host.measurements import measurements_of
from jetfleet_host.report import as_html, as_json, build_sentences, lines_of


def _quiet(_stage: str, _done: int, _of: int) -> None: ...


def _recipe(**changes: Any) -> Recipe:
    task, shape = make_task("classify", "", shape=(1, 3, 16, 16), labels=(), options={},
                            overrides={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    recipe = Recipe("colours", "1.0.0", ("cpu-x86", "orin-nano"), task, shape, threads=1, latency_rounds=0)
    return msgspec.structs.replace(recipe, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job, BuildReport]:
    """One build, timed once, shared by the tests that only read it."""
    folder = tmp_path_factory.mktemp("build")
    job = _job(folder)
    return folder, job, build(job, _recipe(latency_rounds=1, latency_runs=3), _quiet)


@pytest.fixture
def job(tmp_path: Path, made: tuple[Path, Job, BuildReport]) -> Job:
    """A build of the same inputs elsewhere, with the finished stages of the shared one at hand."""
    return msgspec.structs.replace(_job(tmp_path), cache=made[1].cache)


def _job(folder: Path) -> Job:
    model = folder / "model.onnx"
    model.write_bytes(tiny_models.classifier(("n", 3, "h", "w"), opset=12).SerializeToString())
    return Job(model, data_folders.colour_classes(folder / "data"), folder / "bundle", folder / "cache")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_bundle_holds_every_variant_with_its_rows(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    assert [variant.name for variant in bundle.spec.variants] == ["fp32", "fp16", "int8", "uint8"]
    rows = {(row.variant, row.backend, row.precision) for row in bundle.evaluation.rows}
    assert rows == {(c.variant, c.backend, c.precision) for c in candidates(bundle.spec) if not c.backend.startswith("tensorrt")}
    assert bundle.spec.task.input.name == "x"
    assert bundle.spec.targets == ("cpu-x86", "orin-nano")
    assert bundle.evaluation.metric == "accuracy"
    fp32 = next(row for row in bundle.evaluation.rows if row.variant == "fp32")
    assert (fp32.accuracy, fp32.drop, fp32.samples, fp32.verdict) == (1.0, 0.0, 12, "accepted")


def test_probe_answers_are_the_reference_models(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    assert len(bundle.probe.items) == 8
    assert 0.5 <= bundle.probe.min_agreement <= 1.0
    for item in bundle.probe.items:
        image = cv2.imdecode(np.frombuffer(bundle.blob_path(item.image).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        colour = 2 - int(np.asarray(image).reshape(-1, 3).mean(axis=0).argmax())
        assert item.expected[0].label == str(colour)


def test_the_bundle_says_what_its_images_were_like(made: tuple[Path, Job, BuildReport]) -> None:
    _, job, report = made
    reference = open_bundle(job.out).spec.reference
    assert reference is not None
    assert reference == report.spec.reference
    assert reference.frames == report.evaluation.rows[0].samples
    assert {"luma", "blur", "answers", "score"} == set(reference.values)
    assert sum(reference.labels.values()) == pytest.approx(1.0)


def test_what_the_build_went_through_is_beside_the_bundle(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    record = record_of(bundle)
    assert record is not None
    sizes = {stage.stage: stage.size for stage in record.stages}
    assert list(sizes) == ["as given", "prepared", "fp32", "fp16", "int8", "uint8"]
    assert {name: sizes[name] for name in ("fp16", "int8")} == {v.name: v.size for v in bundle.spec.variants if v.name in ("fp16", "int8")}
    kept = int(bundle.spec.variant("int8").detail.split()[0])
    assert sum(layer.int8 for layer in record.layers) == kept
    assert all(layer.error >= 0 for layer in record.layers)


def test_timings_are_beside_the_bundle_never_in_it(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    assert all(row.latency_p50_ms == 0.0 == row.latency_p99_ms for row in bundle.evaluation.rows)
    measured = measurements_of(bundle)
    assert measured is not None
    timed = [row for row in measured.rows if not row.error]
    assert len(timed) >= 4
    assert {row.runs for row in timed} == {3}
    assert all(row.p50_ms > 0 and row.ran_in == row.precision for row in timed)
    assert all("[backend.fallback]" in row.error and not row.runs for row in measured.rows if row.error)
    assert len(measured.rows) == len(bundle.evaluation.rows)


def test_what_this_machine_cannot_run_as_asked_is_scored_in_what_it_ran(made: tuple[Path, Job, BuildReport]) -> None:
    """The symmetric int8 file on ONNX Runtime, on x86 also fp16: the weights' accuracy is known, their speed is not."""
    bundle = open_bundle(made[1].out)
    measured = measurements_of(bundle)
    assert measured is not None
    other = {(row.variant, row.backend, row.precision) for row in measured.rows if "[backend.fallback]" in row.error}
    rows = [row for row in bundle.evaluation.rows if (row.variant, row.backend, row.precision) in other]
    if platform.machine() in {"x86_64", "AMD64"}:
        assert ("fp16", "onnxruntime", "fp16") in other
    for row in rows:
        assert row.samples > 0
        assert row.verdict == "accepted"
        assert "ran it mostly in" in row.reason or row.origin == "simulated"


def test_same_inputs_same_bytes(tmp_path: Path, made: tuple[Path, Job, BuildReport]) -> None:
    """Another folder, an empty cache: all bytes are equal, and equal to the timed build's but for its referrer."""
    again = build(_job(tmp_path), _recipe(), _quiet)
    kept = build(msgspec.structs.replace(made[1], out=tmp_path / "kept"), _recipe(), _quiet)  # from the first one's checkpoints
    assert again.manifest_digest == kept.manifest_digest == made[2].manifest_digest
    assert _files(tmp_path / "bundle") == _files(tmp_path / "kept")
    timed = _files(made[1].out)
    untimed = _files(tmp_path / "bundle")
    assert {name for name in timed if name not in untimed}
    assert all(timed[name] == data for name, data in untimed.items() if name != "index.json")


def test_building_again_in_place_changes_nothing_and_other_content_is_refused(job: Job) -> None:
    build(job, _recipe(), _quiet)
    before = _files(job.out)
    build(job, _recipe(), _quiet)
    assert _files(job.out) == before
    with pytest.raises(InputError) as caught:
        build(job, _recipe(version="1.0.1"), _quiet)
    assert caught.value.code == "bundle.exists"
    assert _files(job.out) == before


def _noisy(model: Any, placement: Any, table: Any) -> Any:
    """A planted fault: quantization that writes noise instead of the last layer's weights."""
    broken = write_qdq(model, placement, table)
    for tensor in broken.graph.initializer:
        if tensor.name == "logits.weight8":
            noise = np.random.default_rng(0).integers(-127, 128, tuple(tensor.dims)).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(noise, tensor.name))
    return broken


def test_guard_refuses_a_planted_bad_variant_and_leaves_it_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetfleet_host.compress.quantizing.write_qdq", _noisy)
    monkeypatch.setattr("jetfleet_host.compress.quantizing.LADDER", (1.0,))
    # The checkpoints are keyed by configuration, so a planted fault needs a cache of its own for what it spoils.
    monkeypatch.setattr("jetfleet_host.compress.checkpoints.GENERATION", -1)
    done = build(job, _recipe(), _quiet)
    bundle = open_bundle(done.bundle)
    assert done.refused == ("int8", "uint8")
    assert [variant.name for variant in bundle.spec.variants] == ["fp32", "fp16"]
    refused = [row for row in bundle.evaluation.rows if row.variant in done.refused]
    assert len(refused) == 4
    assert all(row.verdict == "refused" and row.drop > 0.5 and "over the limit" in row.reason for row in refused)
    assert {c.variant for c in candidates(bundle.spec)} == {"fp32", "fp16"}


@pytest.mark.slow
def test_ladder_goes_on_to_a_gentler_setting(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rung is spoiled; the build must leave layers out until the guard passes, and ship that."""
    spoiled: list[int] = []

    def first_rung_noisy(model: Any, placement: Any, table: Any) -> Any:
        spoiled.append(len(placement.nodes))
        return _noisy(model, placement, table) if len(placement.nodes) == max(spoiled) else write_qdq(model, placement, table)

    monkeypatch.setattr("jetfleet_host.compress.quantizing.write_qdq", first_rung_noisy)
    monkeypatch.setattr("jetfleet_host.compress.quantizing.LADDER", (1.0, 0.3))
    monkeypatch.setattr("jetfleet_host.compress.checkpoints.GENERATION", -2)
    done = build(job, _recipe(), _quiet)
    assert done.refused == ()
    assert done.spec.variant("int8").detail.startswith("2 of 3 layers") or done.spec.variant("int8").detail.startswith("1 of 3 layers")


def test_negative_limit_refuses_everything(job: Job) -> None:
    with pytest.raises(InputError) as caught:
        build(job, _recipe(max_drop=-1.0), _quiet)
    assert caught.value.code == "build.none"
    assert not job.out.exists()


def test_a_crashing_candidate_is_a_refused_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = JobRunner.run
    monkeypatch.setattr("jetfleet_host.compress.quantizing.LADDER", (1.0,))

    def without_openvino(self: JobRunner, job: EvaluationJob) -> EvaluationResult:
        return EvaluationResult("openvino", error="backend.crash", detail="signal 11") if job.backend == "openvino" else run(self, job)

    monkeypatch.setattr(JobRunner, "run", without_openvino)
    bundle = open_bundle(build(_job(tmp_path), _recipe(), _quiet).bundle)
    rows = {row.backend: row for row in bundle.evaluation.rows if row.variant == "fp32"}
    assert rows["onnxruntime"].verdict == "accepted"
    assert rows["openvino"].verdict == "refused"
    assert "signal 11" in rows["openvino"].reason


def test_a_hung_job_is_killed_and_answered() -> None:
    result = JobRunner(timeout_s=0.0).run(EvaluationJob("none.onnx", _recipe().task, "onnxruntime"))
    assert result.error == "backend.crash"
    assert "no answer" in result.detail


def test_model_that_finds_nothing_is_refused(job: Job) -> None:
    task = TaskSpec("classify", _recipe().task.input, (), {"threshold": 1.0})
    with pytest.raises(InputError) as caught:
        build(job, _recipe(task=task), _quiet)
    assert caught.value.code == "build.blind"


def test_wrong_number_of_labels_names_the_remedy(job: Job) -> None:
    task = msgspec.structs.replace(_recipe().task, labels=("a", "b"))
    with pytest.raises(Exception, match="3 classes") as caught:
        build(job, _recipe(task=task), _quiet)
    assert caught.value.code == "build.task"  # type: ignore[attr-defined]


def test_second_build_asks_no_process_for_answers_it_has(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(JobRunner, "run", refuse)
    monkeypatch.setattr(building, "measure_noise", refuse)
    monkeypatch.setattr(building, "scales_of", refuse)
    build(job, _recipe(version="2"), _quiet)
    assert (job.out / "oci-layout").is_file()


@pytest.mark.slow
def test_a_killed_build_leaves_no_bundle_no_child_and_resumes(tmp_path: Path) -> None:
    job = _job(tmp_path)
    command = [sys.executable, "-c", "from jetfleet_host.cli import main; main()", "build", str(job.model), "--data", str(job.data),
               "--name", "colours", "--version", "1.0.0", "--target", "cpu-x86", "--out", str(job.out), "--cache", str(job.cache),
               "--task", "classify", "--shape", "1x3x16x16", "--mean", "0", "--std", "1", "--latency-rounds", "0", "--json"]
    process = interruptible(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(job.cache.glob("*.onnx")) if job.cache.exists() else True:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    assert not job.out.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process of the group is left
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]
    open_bundle(job.out)


def test_report_joins_both_and_marks_their_origin(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    measured = measurements_of(bundle)
    table = as_json(bundle, measured)
    rows: Any = table["rows"]
    assert {row["candidate"] for row in rows} == {f"{r.variant}@{r.backend}:{r.precision}" for r in bundle.evaluation.rows}
    timed = [row["latency_p50_ms"] for row in rows if row["latency_p50_ms"] is not None]
    assert min(timed) > 0
    assert timed == sorted(timed) == [row["latency_p50_ms"] for row in rows[:len(timed)]]
    assert measured is not None
    assert len(timed) == sum(not row.error for row in measured.rows)
    assert {row["latency_p50_ms"] for row in as_json(bundle, None)["rows"]} == {None}  # type: ignore[attr-defined]
    json.dumps(table)


def test_floors_stand_apart_from_what_was_measured(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    measured, floors = measurements_of(bundle), floors_of(bundle)
    assert {line.board for line in floors} == {"orin-nano"}  # cpu-x86 has no TensorRT, and no peak
    by_candidate = {line.candidate: line for line in floors if line.power_mode == "MAXN_SUPER"}
    assert set(by_candidate) == {c.name for c in candidates(bundle.spec) if c.backend == "tensorrt"}
    assert all(line.floor_ms is not None and 0 < line.floor_ms < 1.0 for line in floors)
    assert {line.power_mode for line in floors} == {"15W", "MAXN_SUPER"}  # the file knows no peak for 7 W and 25 W
    table: Any = as_json(bundle, measured, floors)
    assert table["rows"] == as_json(bundle, measured)["rows"]  # not one measured figure changes
    assert [line["floor_ms"] for line in table["floors"]] == [line.floor_ms for line in floors]
    page = as_html(bundle, measured, floors)
    assert "computed, not measured" in page
    assert page.index('<table class="floors">') > page.index("</table>")
    assert "Floors" not in as_html(bundle, measured)


def test_a_damaged_graph_has_no_floor_and_says_why(made: tuple[Path, Job, BuildReport], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made[1].out, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    broken = bundle.spec.variants[0]
    bundle.blob_path(broken.digest).write_bytes(b"\xff" * 64)
    lines = [line for line in floors_of(bundle) if line.candidate.startswith(f"{broken.name}@")]
    assert lines
    assert all(line.floor_ms is None and line.reason for line in lines)


def test_report_page_is_self_contained_and_escaped(made: tuple[Path, Job, BuildReport]) -> None:
    bundle = open_bundle(made[1].out)
    hostile = msgspec.structs.replace(bundle.evaluation.rows[0], reason="<script>alert(1)</script>")
    evaluation = msgspec.structs.replace(bundle.evaluation, rows=(hostile, *bundle.evaluation.rows[1:]))
    page = as_html(type(bundle)(bundle.path, bundle.manifest, bundle.manifest_digest, bundle.spec, evaluation, bundle.probe),
                   measurements_of(bundle))
    assert "<svg" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    rows = page[:page.index("<h2>Variants</h2>")]
    assert rows.count('<tr class="accepted">') + rows.count('<tr class="refused">') == len(lines_of(bundle, None))


def test_a_changed_measurement_is_noticed(tmp_path: Path, made: tuple[Path, Job, BuildReport]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made[1].out, copy)
    blob = next(path for path in (copy / "blobs" / "sha256").iterdir() if b'"taken"' in path.read_bytes())
    blob.write_bytes(blob.read_bytes().replace(b'"p50_ms":', b'"p50_mz":'))
    with pytest.raises(MalformedError) as caught:
        measurements_of(open_bundle(copy, verify=False))
    assert caught.value.code == "bundle.referrer"
    with pytest.raises(UntrustedError):
        open_bundle(copy)


def test_judge_and_score() -> None:
    assert judge(0.5, 0.5)[0] == "accepted"
    assert judge(0.51, 0.5)[0] == "refused"
    assert score([], []) == 1.0


def test_lineage_names_source_data_recipe_and_parent(job: Job, made: tuple[Path, Job, BuildReport]) -> None:
    parent = made[2]
    child = build(msgspec.structs.replace(job, parent=parent.bundle), _recipe(version="1.0.1"), _quiet)
    first, second = (lineage_of(open_bundle(report.bundle, verify=False).manifest.annotations) for report in (parent, child))
    assert second.parent == "colours:1.0.0"
    assert second.parent_digest == open_bundle(parent.bundle, verify=False).manifest_digest
    assert (second.source, second.data) == (first.source, first.data)
    assert second.source == f"sha256:{hashlib.sha256(job.model.read_bytes()).hexdigest()}"
    assert second.recipe != first.recipe
    assert not first.parent


def test_a_parent_that_is_no_bundle_is_said_before_the_work(job: Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle folder"):
        build(msgspec.structs.replace(job, parent=tmp_path / "nothing"), _recipe(), _quiet)


def test_held_scales_are_kept_and_named(tmp_path: Path, made: tuple[Path, Job, BuildReport]) -> None:
    held = msgspec.structs.replace(made[1], out=tmp_path / "held", hold=made[1].out)
    done = build(held, _recipe(version="1.0.1"), _quiet)
    spec = done.spec.variant("int8")
    assert spec.detail.endswith(f", scales of {made[2].spec.name}:{made[2].spec.version}")
    assert spec.digest == made[2].spec.variant("int8").digest, "the same weights with the same scales are the same file"


def test_scales_that_lose_too_much_are_not_held(tmp_path: Path, made: tuple[Path, Job, BuildReport],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(self: Held, table: ScaleTable) -> ScaleTable:
        wide = {name: msgspec.structs.replace(seen, magnitude=1e6) for name, seen in table.ranges.items()}
        return msgspec.structs.replace(table, ranges=wide)

    monkeypatch.setattr(Held, "over", coarse)
    done = build(msgspec.structs.replace(made[1], out=tmp_path / "held", hold=made[1].out), _recipe(version="1.0.1"), _quiet)
    spec = done.spec.variant("int8")
    assert spec.detail.endswith("lose too much")
    assert spec.digest == made[2].spec.variant("int8").digest


def test_targets_get_their_own_int8_files_and_the_record_tells_of_the_graph(job: Job) -> None:
    scales = job.out.parent / "old.cache"
    scales.write_text("TRT-8503-EntropyCalibration2\nx: 3d000000\n")
    recipe = _recipe(targets=("cpu-arm64", "cpu-x86-avx2"), dynamic=True, scales=str(scales))
    build(job, recipe, _quiet)
    bundle = open_bundle(job.out)
    layouts = {variant.name: (variant.precision, variant.layout) for variant in bundle.spec.variants}
    assert layouts.items() >= {"arm": ("uint8", "qdq-arm"), "uint8-narrow": ("uint8", "qdq-uint8-narrow"),
                               "dynamic": ("uint8", "dynamic")}.items()
    cpu_only = [candidate.backend for candidate in candidates(bundle.spec) if candidate.variant in ("arm", "dynamic")]
    assert set(cpu_only) == {"onnxruntime", "openvino"}
    detail = next(variant.detail for variant in bundle.spec.variants if variant.name == "int8")
    assert detail.endswith("scales of old.cache (TRT-8503-EntropyCalibration2)")
    kept = onnx.load_model_from_string(bundle.blob_path(bundle.spec.variant("int8").digest).read_bytes())
    assert {float(numpy_helper.to_array(tensor)) for tensor in kept.graph.initializer if tensor.name == "x.scale"} == {2.0**-5}
    record = record_of(bundle)
    assert record is not None
    assert record.worth is not None
    assert [line.stage for line in record.graphs] == ["as given", "prepared"]
    assert all(line.count.nodes >= line.count.groups > 0 and line.count.kernels > 0 for line in record.graphs)
    assert "On a GPU at batch 1 int8" in " ".join(build_sentences(record))


def test_scales_of_two_places_are_refused(job: Job) -> None:
    with pytest.raises(InputError) as caught:
        build(msgspec.structs.replace(job, hold=job.out), _recipe(scales="old.cache"), _quiet)
    assert caught.value.code == "build.hold"
