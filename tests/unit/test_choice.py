"""The choice of a variant: what refuses a candidate, what ranks it, what is not worth measuring."""

from __future__ import annotations

import random

import msgspec
import pytest
from choices import capability_of, evaluation_of, spec_of
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.bundle import Evaluation
from jetfleet_contract.messages import BackendInfo
from jetfleet_contract.policy import (
    TIE_RATIO,
    Candidate,
    Choice,
    Measurement,
    candidates,
    choose,
    contenders,
    leaner,
    slower_at_builder,
    worth_measuring,
)
from jetfleet_contract.tuning import Tuning, TuningChoice, TuningFigures

SPEC = spec_of("fp32", "fp16", "int8", "uint8")


def ms(**figures: float) -> dict[str, Measurement]:
    return {name.replace("__", "@").replace("_", ":"): Measurement(value, value, 50.0) for name, value in figures.items()}


def reason_of(choice: Choice, name: str) -> str:
    return next(row.reason for row in choice.rows if row.candidate.name == name)


def test_a_candidates_name_keys_telemetry() -> None:
    assert Candidate("int8", "openvino", "int8").name == "int8@openvino:int8"


def test_the_fastest_measured_candidate_is_chosen_and_slower_ones_say_by_how_much() -> None:
    measured = ms(fp32__openvino_bf16=8.0, fp32__openvino_fp32=30.0, uint8__onnxruntime_int8=16.0)
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), measured)
    assert choice.chosen == Candidate("fp32", "openvino", "bf16")
    assert choice.rows[0].verdict == "chosen"
    assert "8.00 ms measured here" in choice.rows[0].reason
    assert "2.00x the chosen" in reason_of(choice, "uint8@onnxruntime:int8")


def test_int8_that_loses_its_race_is_not_chosen() -> None:
    measured = ms(fp32__onnxruntime_fp32=36.6, int8__onnxruntime_int8=83.7)
    choice = choose(spec_of("fp32", "int8"), evaluation_of(spec_of("fp32", "int8")),
                    capability_of(BackendInfo("onnxruntime", "1", precisions=("fp32", "int8"))), measured)
    assert choice.chosen == Candidate("fp32", "onnxruntime", "fp32")


@pytest.mark.parametrize(("isa", "narrow", "refused"), [
    (("avx2",), True, True), (("avx2",), False, False), (("avx2", "avx512_vnni"), True, False), ((), True, False)])
def test_a_cpu_whose_sums_saturate_takes_the_narrow_file(isa: tuple[str, ...], narrow: bool, refused: bool) -> None:
    layouts = {"uint8": "qdq-uint8", "uint8-narrow": "qdq-uint8-narrow"}
    variants = [msgspec.structs.replace(SPEC.variant("uint8"), name=name, layout=layout) for name, layout in layouts.items()
                if narrow or name == "uint8"]
    spec = msgspec.structs.replace(SPEC, variants=tuple(variants))
    choice = choose(spec, evaluation_of(spec), msgspec.structs.replace(capability_of(), isa=isa), {})
    verdicts = {row.candidate.name: row.verdict for row in choice.rows}
    assert (verdicts["uint8@onnxruntime:int8"] == "refused") == refused
    assert verdicts["uint8@openvino:int8"] != "refused"
    assert not narrow or verdicts["uint8-narrow@onnxruntime:int8"] != "refused"


@pytest.mark.parametrize(("backends", "name", "reason"), [
    ((BackendInfo("onnxruntime", "1", precisions=("fp32",)),), "int8@onnxruntime:int8", "onnxruntime does not run int8"),
    ((BackendInfo("onnxruntime", "1", precisions=("fp32",)),), "fp32@openvino:fp32", "has no openvino"),
    ((BackendInfo("tensorrt", missing="not installed (it comes with JetPack)"), BackendInfo("onnxruntime", "1", precisions=("fp32",))),
     "fp16@tensorrt:fp16", "tensorrt: not installed"),
])
def test_what_the_board_lacks_is_refused_with_its_reason(backends: tuple[BackendInfo, ...], name: str, reason: str) -> None:
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(*backends), {})
    assert reason in reason_of(choice, name)
    assert choice.chosen == Candidate("fp32", "onnxruntime", "fp32")


def test_what_the_builder_refused_is_never_chosen_however_fast() -> None:
    evaluation = evaluation_of(SPEC, refused={"int8@openvino:int8": "drop 4.20 is over 0.50"})
    choice = choose(SPEC, evaluation, capability_of(), ms(int8__openvino_int8=0.1, fp32__openvino_fp32=9.0))
    assert choice.chosen == Candidate("fp32", "openvino", "fp32")
    assert reason_of(choice, "int8@openvino:int8") == "builder: drop 4.20 is over 0.50"


def test_a_candidate_without_an_evaluation_row_is_refused() -> None:
    choice = choose(SPEC, evaluation_of(SPEC, leave_out=("fp16@openvino:fp16",)), capability_of(), ms(fp16__openvino_fp16=0.1))
    assert "no row" in reason_of(choice, "fp16@openvino:fp16")


def test_tensorrt_is_bounded_by_the_worst_row_of_the_same_weights() -> None:
    board = capability_of(BackendInfo("tensorrt", "10.3", precisions=("fp16", "int8")))
    accepted = choose(SPEC, evaluation_of(SPEC), board, ms(int8__tensorrt_int8=1.0, fp16__tensorrt_fp16=2.0))
    assert accepted.chosen == Candidate("int8", "tensorrt", "int8")
    bad = evaluation_of(SPEC, refused={"int8@openvino:int8": "drop 4.20 is over 0.50"})
    rows = tuple(row if row.verdict == "accepted" else type(row)(**{f: getattr(row, f) for f in row.__struct_fields__} | {"drop": 4.2})
                 for row in bad.rows)
    refused = choose(SPEC, Evaluation(bad.metric, bad.reference, bad.max_drop, bad.machine, rows, bad.software), board,
                     ms(int8__tensorrt_int8=1.0, fp16__tensorrt_fp16=2.0))
    assert refused.chosen == Candidate("fp16", "tensorrt", "fp16")


def test_a_candidate_that_crashed_here_or_needs_too_much_memory_is_refused() -> None:
    measured = ms(fp32__openvino_fp32=9.0, fp32__onnxruntime_fp32=20.0)
    measured["int8@openvino:int8"] = Measurement(error="the runtime crashed (SIGSEGV)")
    measured["fp32@openvino:bf16"] = Measurement(2.0, 3.0, 900.0)
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), measured, memory_mb=512)
    assert choice.chosen == Candidate("fp32", "openvino", "fp32")
    assert "SIGSEGV" in reason_of(choice, "int8@openvino:int8")
    assert "needs 900 MB, the budget is 512 MB" in reason_of(choice, "fp32@openvino:bf16")


def test_a_measured_candidate_goes_before_one_that_only_the_builder_measured() -> None:
    evaluation = evaluation_of(SPEC, ms={"int8@openvino:int8": 0.5})
    choice = choose(SPEC, evaluation, capability_of(), ms(fp32__openvino_fp32=9.0))
    assert choice.chosen == Candidate("fp32", "openvino", "fp32")


def test_nothing_to_run_is_a_table_of_reasons_without_a_choice() -> None:
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(BackendInfo("tensorrt", missing="no GPU")), {})
    assert choice.chosen is None
    assert len(choice.rows) == len(candidates(SPEC))
    assert all(row.verdict == "refused" and row.reason for row in choice.rows)


def test_far_slower_at_a_builder_of_the_same_architecture_is_not_worth_measuring() -> None:
    evaluation = evaluation_of(SPEC, ms={"fp32@openvino:bf16": 8.0, "fp32@onnxruntime:fp32": 36.6})
    slow = slower_at_builder(SPEC, evaluation, capability_of())
    assert slow == {"fp32@onnxruntime:fp32": "not measured here: the builder saw 36.60 ms, 4.6x its fastest"}
    choice = choose(SPEC, evaluation, capability_of(), ms(fp32__openvino_bf16=8.0), skipped=slow)
    assert "4.6x its fastest" in reason_of(choice, "fp32@onnxruntime:fp32")


def test_the_builders_figures_say_nothing_about_another_architecture() -> None:
    evaluation = evaluation_of(SPEC, arch="x86_64", ms={"fp32@openvino:bf16": 8.0, "fp32@onnxruntime:fp32": 36.6})
    assert slower_at_builder(SPEC, evaluation, capability_of(arch="aarch64")) == {}


def test_what_the_builder_refused_does_not_set_the_pace() -> None:
    evaluation = evaluation_of(SPEC, ms={"int8@openvino:int8": 1.0}, refused={"int8@openvino:int8": "drop"})
    assert slower_at_builder(SPEC, evaluation, capability_of()) == {}


def test_a_measurement_overrides_the_shortlist() -> None:
    name = "fp32@onnxruntime:fp32"
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), {name: Measurement(1.0, 1.0)}, skipped={name: "slow"})
    assert choice.chosen is not None
    assert choice.chosen.name == name


def names_of(found: tuple[Candidate, ...]) -> set[str]:
    return {candidate.name for candidate in found}


def test_contenders_are_those_too_near_to_call() -> None:
    measured = ms(fp32__openvino_bf16=10.0, fp32__openvino_fp32=10.9, fp32__onnxruntime_fp32=11.1)
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), measured)
    assert names_of(contenders(choice, measured)) == {"fp32@openvino:bf16", "fp32@openvino:fp32"}


def test_one_whose_median_was_disturbed_is_a_contender_by_its_best_run() -> None:
    measured = {"fp32@openvino:fp32": Measurement(20.0, 30.0, 50.0, best_ms=19.0),
                "fp32@openvino:bf16": Measurement(60.0, 90.0, 50.0, best_ms=8.0),
                "fp32@onnxruntime:fp32": Measurement(60.0, 90.0, 50.0, best_ms=40.0)}
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), measured)
    assert names_of(contenders(choice, measured)) == {"fp32@openvino:fp32", "fp32@openvino:bf16"}


def test_contenders_are_few_and_the_most_promising() -> None:
    measured = {f"{variant}@openvino:{precision}": Measurement(10.0 + n, 10.0, best_ms=9.0 - n)
                for n, (variant, precision) in enumerate([("fp32", "fp32"), ("fp32", "bf16"), ("fp16", "fp16"), ("int8", "int8")])}
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), measured)
    assert names_of(contenders(choice, measured)) == {"fp32@openvino:fp32", "fp16@openvino:fp16", "int8@openvino:int8"}


def test_without_a_rival_nobody_contends() -> None:
    alone = ms(fp32__openvino_bf16=10.0)
    assert contenders(choose(SPEC, evaluation_of(SPEC), capability_of(), alone), alone) == ()
    assert contenders(choose(SPEC, evaluation_of(SPEC), capability_of(), {}), {}) == ()


NAMES = [candidate.name for candidate in candidates(SPEC) if not candidate.backend.startswith("tensorrt")]
MEASURED = st.dictionaries(st.sampled_from(NAMES), st.builds(
    Measurement, p50_ms=st.floats(0.01, 1e3), p99_ms=st.just(0.0), peak_rss_mb=st.floats(0, 2000),
    error=st.sampled_from(["", "", "", "it crashed"])))


@given(MEASURED, st.sets(st.sampled_from(NAMES)), st.sampled_from([0.0, 500.0]))
def test_the_choice_is_the_fastest_of_what_nothing_speaks_against(measured: dict[str, Measurement], refused: set[str],
                                                                  memory: float) -> None:
    evaluation = evaluation_of(SPEC, refused=dict.fromkeys(refused, "drop"))
    choice = choose(SPEC, evaluation, capability_of(), measured, memory_mb=memory)
    good = {name: m.p50_ms for name, m in measured.items()
            if not m.error and name not in refused and (not memory or m.peak_rss_mb <= memory)}
    assert sorted(row.candidate.name for row in choice.rows) == sorted(c.name for c in candidates(SPEC))
    assert all(row.reason for row in choice.rows)
    assert [row.verdict for row in choice.rows].count("chosen") == (choice.chosen is not None)
    if good:
        assert choice.chosen is not None
        assert good[choice.chosen.name] == min(good.values())
        near = contenders(choice, measured)
        assert all(good[c.name] <= TIE_RATIO * min(good.values()) for c in near)
        assert not near or choice.chosen in near


@given(MEASURED, st.integers())
def test_the_order_of_the_bundles_variants_decides_nothing_about_speed(measured: dict[str, Measurement], seed: int) -> None:
    names = ["fp32", "fp16", "int8", "uint8"]
    random.Random(seed).shuffle(names)
    shuffled = spec_of(*names)
    one = choose(SPEC, evaluation_of(SPEC), capability_of(), measured)
    other = choose(shuffled, evaluation_of(shuffled), capability_of(), measured)
    assert one.rows[0].p50_ms == other.rows[0].p50_ms


def test_what_is_worth_measuring_is_what_choose_would_not_refuse() -> None:
    evaluation = evaluation_of(SPEC, refused={"int8@openvino:int8": "drop"})
    wanted = worth_measuring(SPEC, evaluation, capability_of())
    assert "int8@openvino:int8" not in {c.name for c in wanted}
    assert not any(c.backend == "tensorrt" for c in wanted)


def cpu(**figures: tuple[float, float]) -> dict[str, Measurement]:
    """Median and CPU time of a session by candidate, ms."""
    return {name.replace("__", "@").replace("_", ":"): Measurement(wall, wall, 50.0, cpu_ms=busy) for name, (wall, busy) in figures.items()}


FASTEST, CHEAP = "fp32@openvino:bf16", "uint8@onnxruntime:int8"


@pytest.mark.parametrize(("figures", "lean"), [
    (cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(12.0, 10.0)), CHEAP),
    (cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(12.0, 14.0)), ""),  # not clearly
    (cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(17.0, 10.0)), ""),  # more than twice as slow
    (cpu(fp32__openvino_bf16=(8.0, 0.0), uint8__onnxruntime_int8=(12.0, 10.0)), ""),  # measured by an agent that did not tell
    (cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(12.0, 0.0)), ""),
    (cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(12.0, 10.0), int8__openvino_int8=(9.0, 7.0)), "int8@openvino:int8")])
def test_the_leaner_candidate_takes_clearly_less_cpu_time_and_not_twice_as_long(figures: dict[str, Measurement], lean: str) -> None:
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), figures)
    assert choice.chosen is not None
    assert choice.chosen.name == FASTEST
    found = leaner(choice, figures)
    assert (found.name if found else "") == lean


def test_no_candidate_that_the_builder_refused_is_leaner() -> None:
    figures = cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(12.0, 4.0))
    choice = choose(SPEC, evaluation_of(SPEC, refused={CHEAP: "a drop of 3 points"}), capability_of(), figures)
    assert leaner(choice, figures) is None


def test_the_leaner_candidate_must_beat_the_chosen_ones_frugal_setting() -> None:
    figures = cpu(fp32__openvino_bf16=(8.0, 16.0), uint8__onnxruntime_int8=(12.0, 10.0))
    tuned = TuningChoice(figures=(TuningFigures(Tuning(), (8.0, 8.0), (16.0, 16.0)),
                                  TuningFigures(Tuning(threads=1), (9.0, 9.0), (8.0, 8.0))))
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(), figures)
    assert leaner(msgspec.structs.replace(choice, tuning=tuned), figures) is None


def test_cpu_time_says_nothing_of_a_gpus_work() -> None:
    backends = (BackendInfo("tensorrt", "10", precisions=("fp32", "fp16", "int8")), BackendInfo("onnxruntime", "1", precisions=("int8",)))
    figures = cpu(fp16__tensorrt_fp16=(2.0, 1.0), uint8__onnxruntime_int8=(3.0, 0.1))
    choice = choose(SPEC, evaluation_of(SPEC), capability_of(*backends), figures)
    assert choice.chosen is not None
    assert choice.chosen.backend == "tensorrt"
    assert leaner(choice, figures) is None
