"""What `jetfleet-agent bench` makes of results: rounds, percentiles, overhead, settings, and what did not run."""

from __future__ import annotations

from pathlib import Path

import pytest
from choices import capability_of, evaluation_of, spec_of

from jetfleet_agent.bench import BenchRow, Wish, bench, percentiles, record_of
from jetfleet_agent.bundle_folder import BundleFolder
from jetfleet_agent.tables import bench_text
from jetfleet_contract.bench_records import BenchRecord, why_unusable
from jetfleet_contract.bundle import ProbeSet
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import InputError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.messages import BackendInfo, decode, encode
from jetfleet_contract.tuning import Tuning, TuningFigures

SPEC = spec_of("fp32", "int8")
BUNDLE = BundleFolder(SPEC, evaluation_of(SPEC), ProbeSet(()), {"fp32": Path("/fp32.onnx"), "int8": Path("/int8.onnx")}, ())
BOARD = capability_of(BackendInfo("openvino", "1", precisions=("fp32", "bf16", "int8")))


class Runs:
    """Answers jobs: settings where the folded ones win, then rounds that get slower; int8 falls back."""

    def __init__(self) -> None:
        self.jobs: list[EvaluationJob] = []
        self.names: list[str] = []

    def __call__(self, job: EvaluationJob) -> EvaluationResult:
        self.jobs.append(job)
        if job.precision == "int8":
            return EvaluationResult(job.backend, "CPU", "fp32", layers={"fp32": 62, "int8": 2}, error="backend.fallback",
                                    detail="ran in fp32")
        if job.settings:
            return EvaluationResult(job.backend, tuned=tuple(
                TuningFigures(one, (8.0,) * 3 if one.folded else (10.0,) * 3, (1.0,) * 3) for one in job.settings))
        rounds = sum(one.source != "" and one.precision == job.precision for one in self.jobs)
        alone = tuple(float(rounds) * ms for ms in (10.0, 20.0, 10.0))
        return EvaluationResult(job.backend, "CPU", job.precision, latency_ms=alone, layers={job.precision: 64}, activate_ms=5.0,
                                stage_ms={"pre": (1.0,) * 3, "infer": alone, "decode": (1.0,) * 3}, peak_rss_mb=50.0 * rounds)

    def progress(self, name: str, number: int, total: int) -> None:
        self.names.append(f"{number}/{total} {name}")


def benched(wish: Wish) -> tuple[Runs, dict[str, BenchRow]]:
    runs = Runs()
    return runs, {row.candidate.name: row for row in bench(BUNDLE, BOARD, runs, wish, runs.progress)}


def test_the_best_round_counts_and_the_overhead_is_frame_by_frame() -> None:
    _, rows = benched(Wish("synthetic:64x48", rounds=3, tune_s=1.0))
    row = rows["fp32@openvino:fp32"]
    assert row.rounds_p50_ms == (10.0, 20.0, 30.0)
    assert row.floor_ms == row.session.p50 == 10.0
    assert (row.session.most, row.work.p50, row.pre_ms, row.decode_ms) == (20.0, 12.0, 1.0, 1.0)
    assert row.overhead == pytest.approx(1.2)
    assert row.peak_rss_mb == 150.0


def test_rounds_run_as_the_settings_say_and_in_turns() -> None:
    runs, rows = benched(Wish("synthetic:64x48", rounds=2, tune_s=1.0))
    assert rows["fp32@openvino:bf16"].tuning.tuning == Tuning(folded=True)
    timed = [job for job in runs.jobs if job.source]
    assert [job.precision for job in timed] == ["bf16", "fp32"] * 2
    assert all(job.tuning == Tuning(folded=True) for job in timed)
    assert runs.names[0] == "1/9 fp32@openvino:bf16: load, probe set, settings"
    assert runs.names[-1] == "9/9 int8@openvino:int8: round 2 of 2"


def test_a_fall_back_is_a_reason_and_is_not_tried_again() -> None:
    runs, rows = benched(Wish("synthetic:64x48", rounds=2))
    assert rows["int8@openvino:int8"].error == "ran in fp32 [backend.fallback]"
    assert rows["int8@openvino:int8"].layers == {"fp32": 62, "int8": 2}
    assert sum(job.precision == "int8" for job in runs.jobs) == 1


def test_another_provider_is_asked_for_in_every_run_and_no_settings_are_measured() -> None:
    runs, _ = benched(Wish("synthetic:64x48", tune_s=1.0, provider="GPU"))
    assert {job.tuning for job in runs.jobs} == {Tuning(provider="GPU")}
    assert not any(job.settings for job in runs.jobs)


def test_a_candidate_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(InputError) as caught:
        bench(BUNDLE, BOARD, Runs(), Wish("x", only=("fp32@openvino:fp8",)), lambda *_: None)
    assert caught.value.code == "bench.candidate"
    assert "fp32@openvino:fp32" in caught.value.remedy


def test_the_text_has_every_candidate_once_a_table() -> None:
    runs = Runs()
    text = bench_text("toy", bench(BUNDLE, BOARD, runs, Wish("synthetic:64x48", tune_s=1.0), runs.progress))
    assert text.count("fp32@openvino:fp32") == 3
    assert "fp32 (64 of 64 layers), CPU" in text
    assert "0.80x the time of the defaults" in text
    assert "ran in fp32 [backend.fallback]" in text


def test_percentiles_are_values_that_were_seen() -> None:
    found = percentiles([float(n) for n in range(1, 101)])
    assert (found.p50, found.p90, found.p95, found.p99, found.most, found.mean) == (50.5, 90.0, 95.0, 99.0, 100.0, 50.5)
    assert found.per_second == pytest.approx(1000 / 50.5)
    assert percentiles([3.0]) == percentiles([3.0, 3.0])


def test_a_record_names_the_weights_the_board_and_what_really_ran() -> None:
    runs, wish = Runs(), Wish("synthetic:64x48", threads=2, rounds=2)
    rows = bench(BUNDLE, BOARD, runs, wish, runs.progress)
    record = decode(encode(record_of(BUNDLE, BOARD, Conditions(mode="15W"), wish, rows, 5.0)), BenchRecord)
    assert (record.device_class, record.conditions.mode, record.threads, record.taken) == (BOARD.device_class, "15W", 2, 5.0)
    assert record.software == {"openvino": "1"}
    figures = {row.candidate.name: row for row in record.rows}
    ran = figures["fp32@openvino:bf16"]
    assert (ran.digest, ran.p50_ms, ran.p95_ms, ran.ran_in, ran.runs) == (SPEC.variant("fp32").digest, 10.0, 20.0, "bf16", 3)
    assert not why_unusable(record, ran)
    assert "ran in fp32" in why_unusable(record, figures["int8@openvino:int8"])
