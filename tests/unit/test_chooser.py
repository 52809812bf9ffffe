"""The chooser over a stand-in for the evaluate program: whatever that does, the supervisor gets a table."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from choices import capability_of, evaluation_of, spec_of

from jetfleet_agent.config import MeasureConfig
from jetfleet_agent.supervisor import chooser as chooser_module
from jetfleet_agent.supervisor.chooser import Chooser
from jetfleet_agent.supervisor.measurements import MeasurementStore
from jetfleet_contract.bundle import Evaluation, ModelSpec, ProbeItem, ProbeSet, digest_of
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.evaluation import EvaluationResult
from jetfleet_contract.messages import BackendInfo, Capability
from jetfleet_contract.policy import Candidate, Choice
from jetfleet_contract.predictions import Detection
from jetfleet_contract.tuning import Tuning

STAND_IN = (sys.executable, str(Path(__file__).resolve().parent.parent / "evaluate_stand_in.py"))
SPEC = spec_of("fp32", "int8")
FP32, BF16, INT8 = "openvino:fp32", "openvino:bf16", "openvino:int8"
MAX_WAIT_S = 120.0


class Bench:
    """A chooser in a folder, with weights that say how the stand-in behaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.choosers: list[Chooser] = []
        self.spec = SPEC

    def weights(self, **plans: dict[str, Any]) -> dict[str, Path]:
        paths = {}
        for variant, plan in plans.items():
            paths[variant] = self.folder / f"{variant}.onnx"
            paths[variant].write_text(json.dumps(plan))
        return paths

    def runs(self, variant: str) -> list[str]:
        log = self.folder / f"{variant}.log"
        return log.read_text().split() if log.exists() else []

    def chooser(self, capability: Capability | None = None, *, program: tuple[str, ...] = STAND_IN, timeout_s: float = 60.0,
                memory_mb: float = 0.0, lock: str = "", free_mb: float = 0.0,
                conditions: Callable[[], Conditions] = Conditions) -> Chooser:
        made = Chooser(capability or capability_of(BackendInfo("openvino", "1", precisions=("fp32", "bf16", "int8"))),
                       self.folder / "chooser", memory_mb=memory_mb, program=program,
                       measure=MeasureConfig(runs=5, warmup=1, timeout_s=timeout_s, lock=lock), free_mb=lambda: free_mb,
                       conditions=conditions)
        self.choosers.append(made)
        return made

    def choose(self, paths: dict[str, Path], evaluation: Evaluation | None = None, chooser: Chooser | None = None) -> Choice:
        return asked(lambda done: (chooser or self.chooser()).choose(self.spec, evaluation or evaluation_of(self.spec), paths, (), done))


def asked(start: Callable[[Callable[[Choice], None]], None]) -> Choice:
    answers: queue.Queue[Choice] = queue.Queue()
    start(answers.put)
    return answers.get(timeout=MAX_WAIT_S)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for chooser in made.choosers:
        chooser.stop()


def reason(choice: Choice, name: str) -> str:
    return next(row.reason for row in choice.rows if row.candidate.name == name)


def test_the_fastest_here_is_chosen_whatever_the_builder_saw(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    evaluation = evaluation_of(SPEC, ms={"int8@openvino:int8": 7.0, "fp32@openvino:bf16": 9.0, "fp32@openvino:fp32": 10.0})
    assert bench.choose(paths, evaluation).chosen == Candidate("fp32", "openvino", "bf16")


def test_the_choice_is_called_back_from_another_thread_and_the_call_returns_at_once(bench: Bench) -> None:
    threads: queue.Queue[str] = queue.Queue()
    paths = bench.weights(fp32={}, int8={})
    bench.chooser().choose(SPEC, evaluation_of(SPEC), paths, (), lambda _choice: threads.put(threading.current_thread().name))
    assert threads.get(timeout=MAX_WAIT_S) != threading.current_thread().name


@pytest.mark.parametrize(("orders", "expected"), [
    ({"do": "crash"}, "crashed (SIGSEGV)"),
    ({"do": "garbage"}, "not a valid EvaluationResult"),
    ({"do": "silent"}, "without a result"),
    ({"do": "exit"}, "exit code 3: no such operator: Frobnicate"),
    ({"do": "error"}, "it does not load [backend.load]"),
])
def test_a_candidate_that_misbehaves_is_a_row_with_its_reason(bench: Bench, orders: dict[str, Any], expected: str) -> None:
    choice = bench.choose(bench.weights(fp32={FP32: {"ms": 30.0}, BF16: orders}, int8={INT8: {"ms": 15.0}}))
    assert choice.chosen == Candidate("int8", "openvino", "int8")
    assert expected in reason(choice, "fp32@openvino:bf16")


def test_a_candidate_that_hangs_costs_its_time_limit(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"do": "hang"}}, int8={INT8: {"ms": 15.0}})
    choice = bench.choose(paths, chooser=bench.chooser(timeout_s=3.0))
    assert choice.chosen == Candidate("int8", "openvino", "int8")
    assert "no answer within 3 s [evaluate.timeout]" in reason(choice, "fp32@openvino:bf16")


def test_a_program_that_is_not_there_is_a_table_of_reasons(bench: Bench) -> None:
    choice = bench.choose(bench.weights(fp32={}, int8={}), chooser=bench.chooser(program=("/no/such/program",)))
    assert choice.chosen is None
    assert all("could not be written or started" in row.reason for row in choice.rows if row.candidate.backend == "openvino")


def test_weights_that_were_not_fetched_are_a_reason(bench: Bench) -> None:
    choice = bench.choose(bench.weights(int8={INT8: {"ms": 15.0}}))
    assert choice.chosen == Candidate("int8", "openvino", "int8")
    assert "not on this board" in reason(choice, "fp32@openvino:fp32")


def test_too_much_memory_is_a_reason(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "mb": 2000.0}}, int8={INT8: {"ms": 15.0}})
    choice = bench.choose(paths, chooser=bench.chooser(memory_mb=500))
    assert choice.chosen == Candidate("int8", "openvino", "int8")
    assert "2000 MB" in reason(choice, "fp32@openvino:bf16")


def test_a_second_choice_takes_the_kept_measurements(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    first = bench.choose(paths)
    before = bench.runs("fp32") + bench.runs("int8")
    assert bench.choose(paths) == first
    assert bench.runs("fp32") + bench.runs("int8") == before


@pytest.mark.parametrize("changed", [
    {"version": "2"},
    {"cpu": "another CPU"},
])
def test_another_runtime_or_cpu_is_measured_anew(bench: Bench, changed: dict[str, str]) -> None:
    paths = bench.weights(fp32={}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    backend = BackendInfo("openvino", changed.get("version", "1"), precisions=("fp32", "bf16", "int8"))
    plain = capability_of(backend)
    capability = Capability(plain.board, plain.device_class, plain.arch, changed.get("cpu", plain.cpu), plain.isa, plain.cores,
                            plain.memory_mb, plain.backends)
    bench.choose(paths, chooser=bench.chooser(capability))
    assert len(bench.runs("int8")) == 2


def test_a_damaged_record_is_measured_anew(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    for record in (bench.folder / "chooser/measurements").glob("*.json"):
        record.write_bytes(record.read_bytes()[:-3])
    assert bench.choose(paths).chosen == Candidate("fp32", "openvino", "bf16")
    assert len(bench.runs("int8")) == 2


def test_failures_are_not_kept(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"do": "crash"}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}})
    assert bench.choose(paths).chosen == Candidate("fp32", "openvino", "bf16")


def test_near_ties_are_measured_again_in_turns_and_the_best_time_counts(bench: Bench) -> None:
    # bf16 was disturbed in its first run: 10.5 against 10.0, while it really takes 9.2.
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": [10.5, 9.2, 9.2]}}, int8={INT8: {"ms": [10.0, 10.0, 10.1]}})
    choice = bench.choose(paths)
    assert choice.chosen == Candidate("fp32", "openvino", "bf16")
    assert choice.rows[0].p50_ms == pytest.approx(9.2)
    assert bench.runs("fp32").count(FP32) == 1
    assert bench.runs("fp32").count(BF16) >= 2
    assert bench.runs("int8").count(INT8) >= 2


def test_a_first_measurement_that_was_disturbed_is_not_the_last_word(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 40.0}, BF16: {"ms": [60.0, 8.5], "best": 8.0}}, int8={INT8: {"ms": 15.0}})
    choice = bench.choose(paths)
    assert choice.chosen == Candidate("fp32", "openvino", "bf16")
    assert choice.rows[0].p50_ms == pytest.approx(8.5)
    assert bench.runs("fp32").count(FP32) == 1


def test_a_measurement_leaves_the_running_models_their_cores(bench: Bench) -> None:
    bench.choose(bench.weights(fp32={}, int8={}))
    assert (bench.folder / "int8.nice").read_text() == "10"


def test_what_the_builder_saw_far_slower_is_neither_wanted_nor_measured(bench: Bench) -> None:
    evaluation = evaluation_of(SPEC, ms={"fp32@openvino:bf16": 8.0, "fp32@openvino:fp32": 36.0, "int8@openvino:int8": 15.0})
    chooser = bench.chooser()
    assert {c.name for c in chooser.wanted(SPEC, evaluation)} == {"fp32@openvino:bf16", "int8@openvino:int8"}
    paths = bench.weights(fp32={FP32: {"ms": 1.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    choice = bench.choose(paths, evaluation, chooser)
    assert choice.chosen == Candidate("fp32", "openvino", "bf16")
    assert FP32 not in bench.runs("fp32")
    assert "4.5x its fastest" in reason(choice, "fp32@openvino:fp32")


def test_when_all_that_looked_fast_fails_the_slow_ones_get_their_chance(bench: Bench) -> None:
    evaluation = evaluation_of(SPEC, ms={"fp32@openvino:bf16": 8.0, "fp32@openvino:fp32": 36.0, "int8@openvino:int8": 36.0})
    paths = bench.weights(fp32={FP32: {"ms": 40.0}, BF16: {"do": "crash"}}, int8={INT8: {"ms": 50.0}})
    assert bench.choose(paths, evaluation).chosen == Candidate("fp32", "openvino", "fp32")


def version_2(**sizes: int) -> ModelSpec:
    variants = tuple(msgspec.structs.replace(v, digest=digest_of(b"2" + v.name.encode()), size=sizes.get(v.name, v.size))
                     for v in SPEC.variants)
    return msgspec.structs.replace(SPEC, version="2", variants=variants)


def test_what_another_version_showed_to_be_far_slower_here_is_left_out(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    bench.spec = version_2()
    chooser = bench.chooser()
    assert {c.name for c in chooser.wanted(bench.spec, evaluation_of(bench.spec))} == {"fp32@openvino:bf16", "int8@openvino:int8"}
    choice = bench.choose(paths, chooser=chooser)
    assert reason(choice, "fp32@openvino:fp32") == "not measured again: version 1 took 30.00 ms at best here, 3.8x its fastest"
    assert bench.runs("fp32").count(FP32) == 1
    assert bench.runs("int8").count(INT8) == 2


def test_a_version_of_another_size_is_another_network_and_is_measured_whole(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    bench.spec = version_2(fp32=150)
    bench.choose(paths)
    assert bench.runs("fp32").count(FP32) == 2


def test_one_disturbed_median_of_another_version_leaves_nobody_out(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0, "best": 9.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    bench.spec = version_2()
    assert len(bench.chooser().wanted(bench.spec, evaluation_of(bench.spec))) == 3


def test_the_table_is_kept_for_explain(bench: Bench) -> None:
    choice = bench.choose(bench.weights(fp32={}, int8={INT8: {"ms": 15.0}}))
    (record,) = MeasurementStore(bench.folder / "chooser").choices()
    assert (record.name, record.version, record.choice) == ("toy", "1", choice)


def test_a_folder_that_cannot_be_written_costs_the_record_not_the_choice(bench: Bench, tmp_path: Path) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    (bench.folder / "chooser").mkdir()
    (bench.folder / "chooser/measurements").write_text("a file where a folder should be")
    (bench.folder / "chooser/choices").write_text("the same")
    assert bench.choose(paths).chosen == Candidate("fp32", "openvino", "bf16")


def test_a_callback_that_fails_does_not_end_the_worker(bench: Bench) -> None:
    chooser = bench.chooser()
    paths = bench.weights(fp32={}, int8={})

    def fails(_choice: Choice) -> None:
        raise RuntimeError("a bug of the caller")

    chooser.choose(SPEC, evaluation_of(SPEC), paths, (), fails)
    assert bench.choose(paths, chooser=chooser).chosen is not None


def test_stop_ends_a_measurement_in_hand_and_calls_nobody(bench: Bench) -> None:
    answers: queue.Queue[Choice] = queue.Queue()
    chooser = bench.chooser()
    chooser.choose(SPEC, evaluation_of(SPEC), bench.weights(fp32={"*": {"do": "hang"}}, int8={}), (), answers.put)
    deadline = threading.Event()
    while not bench.runs("fp32"):
        assert not deadline.wait(0.02)
    chooser.stop()
    assert answers.empty()


def test_agents_that_share_a_lock_take_turns(bench: Bench, tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "measure.lock"
    answers: queue.Queue[Choice] = queue.Queue()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        bench.chooser(lock=str(lock)).choose(SPEC, evaluation_of(SPEC), bench.weights(fp32={}, int8={}), (), answers.put)
        with pytest.raises(queue.Empty):
            answers.get(timeout=1.0)
        assert bench.runs("fp32") == []
    assert answers.get(timeout=MAX_WAIT_S).chosen is not None


# --- the probe set ---------------------------------------------------------------------------------------------

PROBE = ProbeSet((ProbeItem("sha256:" + "0" * 64, (Detection("cat", 0.9),)), ProbeItem("sha256:" + "1" * 64, (Detection("dog", 0.9),))))


def probed(bench: Bench, orders: dict[str, Any], probe: ProbeSet = PROBE, spec: ModelSpec = SPEC,
           free_mb: float = 0.0) -> tuple[EvaluationResult, float]:
    answers: queue.Queue[tuple[EvaluationResult, float]] = queue.Queue()
    path = bench.weights(int8={INT8: orders})["int8"]
    bench.chooser(free_mb=free_mb).probe_model(path, Candidate("int8", "openvino", "int8"), spec, probe, (),
                                               lambda *answer: answers.put(answer))
    return answers.get(timeout=MAX_WAIT_S)


@pytest.mark.parametrize(("answers", "agreed"), [(["cat", "dog"], 1.0), (["cat", "cat"], 0.5), (["dog", "cat"], 0.0)])
def test_a_probe_gives_the_agreement_with_the_signed_answers(bench: Bench, answers: list[str], agreed: float) -> None:
    result, agreement = probed(bench, {"ms": 3.0, "answers": answers})
    assert not result.error
    assert agreement == pytest.approx(agreed)


@pytest.mark.parametrize(("orders", "code"), [
    ({"do": "crash"}, "evaluate.crash"),
    ({"do": "error"}, "backend.load"),
    ({"ms": 3.0, "answers": ["cat"]}, "evaluate.result"),
])
def test_a_challenger_that_cannot_be_probed_agrees_with_nothing(bench: Bench, orders: dict[str, Any], code: str) -> None:
    result, agreement = probed(bench, orders)
    assert result.error == code
    assert agreement == 0.0


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser_module, "ROOM_WAIT_S", 0.3)


@pytest.mark.usefixtures("impatient")
def test_what_is_predicted_not_to_fit_is_not_started_and_says_nothing_about_the_candidate(bench: Bench) -> None:
    paths = bench.weights(fp32={}, int8={})
    choice = bench.choose(paths, evaluation_of(SPEC, ms={"int8@openvino:int8": 7.0, "fp32@openvino:bf16": 9.0, "fp32@openvino:fp32": 10.0}),
                          bench.chooser(free_mb=50.0))
    assert bench.runs("fp32") + bench.runs("int8") == []
    assert choice.chosen == Candidate("int8", "openvino", "int8"), "by the builder's figures"
    assert {row.origin for row in choice.rows if row.verdict != "refused"} == {"builder"}


@pytest.mark.usefixtures("impatient")
def test_a_probe_that_is_predicted_not_to_fit_names_its_figures_and_is_not_started(bench: Bench) -> None:
    result, agreement = probed(bench, {"ms": 3.0, "answers": ["cat", "dog"]}, free_mb=50.0)
    assert (result.error, agreement) == ("backend.memory", 0.0)
    assert result.predicted_mb > 100
    assert f"predicted: it needs {result.predicted_mb:.0f} MB (by the size of its weights), 50 MB are free" in result.detail
    assert bench.runs("int8") == []


@pytest.mark.usefixtures("impatient")
def test_the_board_own_measurement_predicts_better_than_the_size_of_a_file(bench: Bench) -> None:
    free = [1000.0]
    chooser = bench.chooser()
    chooser._free_mb = lambda: free[0]
    paths = bench.weights(fp32={}, int8={INT8: {"ms": 3.0, "mb": 400.0, "answers": ["cat", "dog"]}})
    assert bench.choose(paths, chooser=chooser).chosen == Candidate("int8", "openvino", "int8")
    free[0] = 420.0
    answers: queue.Queue[tuple[EvaluationResult, float]] = queue.Queue()
    chooser.probe_model(paths["int8"], Candidate("int8", "openvino", "int8"), SPEC, PROBE, (), lambda *answer: answers.put(answer))
    result, _ = answers.get(timeout=MAX_WAIT_S)
    assert "it needs 440 MB (as measured here), 420 MB are free" in result.detail


def test_memory_that_becomes_free_in_a_moment_is_waited_for(bench: Bench) -> None:
    readings = iter([10.0, 10.0])
    chooser = bench.chooser()
    chooser._free_mb = lambda: next(readings, 5000.0)
    answers: queue.Queue[tuple[EvaluationResult, float]] = queue.Queue()
    path = bench.weights(int8={INT8: {"ms": 3.0, "answers": ["cat", "dog"]}})["int8"]
    chooser.probe_model(path, Candidate("int8", "openvino", "int8"), SPEC, PROBE, (), lambda *answer: answers.put(answer))
    assert answers.get(timeout=MAX_WAIT_S)[1] == 1.0


# --- settings of the runtime ------------------------------------------------------------------------------


FASTER = {"defaults": 10.0, "folded": 8.0}


def tuned_runs(bench: Bench) -> list[str]:
    log = bench.folder / "fp32.settings"
    return log.read_text().split() if log.exists() else []


def test_the_chosen_ones_settings_are_measured_kept_and_used(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "tuned": FASTER}}, int8={INT8: {"ms": 15.0}})
    chooser = bench.chooser()
    assert chooser.tuning(SPEC, Candidate("fp32", "openvino", "bf16")) == Tuning()
    choice = bench.choose(paths, chooser=chooser)
    assert choice.tuning.tuning == Tuning(folded=True)
    assert choice.tuning.reason == "0.80x the time of the defaults"
    assert tuned_runs(bench) == [BF16]
    assert chooser.tuning(SPEC, Candidate("fp32", "openvino", "bf16")) == Tuning(folded=True)
    again = bench.chooser()
    assert again.tuning(SPEC, Candidate("fp32", "openvino", "bf16")) == Tuning(folded=True)
    assert bench.choose(paths, chooser=again) == choice
    assert tuned_runs(bench) == [BF16]


def test_a_crash_while_settings_are_measured_costs_only_them(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "tune": "crash"}}, int8={INT8: {"ms": 15.0}})
    choice = bench.choose(paths)
    assert choice.chosen == Candidate("fp32", "openvino", "bf16")
    assert choice.tuning.tuning == Tuning()
    assert "SIGSEGV" in choice.tuning.reason
    bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "tuned": FASTER}})
    assert bench.choose(paths).tuning.tuning == Tuning(folded=True)  # a failure is not kept


def test_settings_of_another_runtime_version_or_a_damaged_record_are_measured_anew(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "tuned": FASTER}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    for record in (bench.folder / "chooser/measurements").glob("*.tuning.json"):
        record.write_bytes(record.read_bytes()[:-3])
    bench.choose(paths)
    newer = capability_of(BackendInfo("openvino", "2", precisions=("fp32", "bf16", "int8")))
    bench.choose(paths, chooser=bench.chooser(newer))
    assert tuned_runs(bench) == [BF16] * 3


def test_retrained_weights_take_the_settings_of_the_version_before(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "tuned": FASTER}}, int8={INT8: {"ms": 15.0}})
    bench.choose(paths)
    bench.spec = version_2()
    choice = bench.choose(paths)
    assert choice.tuning.tuning == Tuning(folded=True)
    assert tuned_runs(bench) == [BF16]
    assert bench.chooser().tuning(bench.spec, Candidate("fp32", "openvino", "bf16")) == Tuning(folded=True)


def test_settings_may_be_left_to_the_runtime(bench: Bench) -> None:
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0, "tuned": FASTER}}, int8={INT8: {"ms": 15.0}})
    chooser = Chooser(capability_of(BackendInfo("openvino", "1", precisions=("fp32", "bf16", "int8"))), bench.folder / "chooser",
                      program=STAND_IN, measure=MeasureConfig(runs=5, warmup=1, tune_s=0.0))
    bench.choosers.append(chooser)
    assert bench.choose(paths, chooser=chooser).tuning.tuning == Tuning()
    assert tuned_runs(bench) == []


def test_another_power_mode_is_measured_anew_and_the_way_back_costs_nothing(bench: Bench) -> None:
    now = Conditions(mode="MAXN")
    paths = bench.weights(fp32={FP32: {"ms": 30.0}, BF16: {"ms": 8.0}}, int8={INT8: {"ms": 15.0}})
    chooser = bench.chooser(conditions=lambda: now)
    bench.choose(paths, chooser=chooser)
    assert chooser.chosen_under(SPEC.name, SPEC.version) == Conditions(mode="MAXN")
    once = len(bench.runs("fp32"))
    now = Conditions(mode="15W")
    bench.choose(paths, chooser=chooser)
    twice = len(bench.runs("fp32"))
    assert twice > once
    assert chooser.chosen_under(SPEC.name, SPEC.version) == now
    now = Conditions(mode="MAXN")
    bench.choose(paths, chooser=chooser)
    assert len(bench.runs("fp32")) == twice


def test_the_cheaper_candidate_is_the_last_choices_over_restarts(bench: Bench) -> None:
    plans = {"fp32": {FP32: {"ms": 12.0, "cpu": 9.0}, BF16: {"ms": 10.0, "cpu": 20.0}}, "int8": {INT8: {"ms": 30.0, "cpu": 5.0}}}
    chosen = bench.choose(bench.weights(**plans)).chosen
    assert chosen == Candidate("fp32", "openvino", "bf16")
    again = bench.chooser()
    assert again.lean(SPEC, chosen) == Candidate("fp32", "openvino", "fp32"), "int8 takes less, but three times as long"
    assert again.lean(SPEC, Candidate("int8", "openvino", "int8")) is None, "of another candidate than the one that runs nothing is known"
    assert again.lean(msgspec.structs.replace(SPEC, version="9"), chosen) is None
