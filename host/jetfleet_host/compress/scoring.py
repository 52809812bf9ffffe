"""Scores every way to run a variant, with the contract's own arithmetic, and says which may be shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from jetfleet_contract.bundle import EvaluationRow, TaskSpec, Variant
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.policy import PRECISIONS_OF
from jetfleet_contract.predictions import MIN_IOU, MatchCount, Prediction, agreement, match_frame

from .checkpoints import Checkpoints
from .dataset import DataSet
from .guard import Verdict, frame_scores, judge_paired
from .handles import ModelHandle
from .jobs import JobRunner

BACKENDS = ("onnxruntime", "openvino")
REFERENCE = ("fp32", "onnxruntime", "fp32")


class Answer(msgspec.Struct, frozen=True):
    """What a candidate said of all images; `frames` is each one's luma and sharpness, `ran_in` the precision that the runtime really
    used."""

    predictions: tuple[Prediction, ...] = ()
    frames: tuple[tuple[float, float], ...] = ()
    provider: str = ""
    ran_in: str = ""
    versions: dict[str, str] = {}
    error: str = ""


@dataclass(frozen=True)
class Built:
    """A variant with its file, before anybody decided whether it ships."""

    variant: Variant
    handle: ModelHandle


class Scorer:
    """Asks candidates for their answers, each once per (weights, data, task): answers are checkpointed."""

    def __init__(self, runner: JobRunner, checkpoints: Checkpoints, data: DataSet, task: TaskSpec, threads: int) -> None:
        self._runner, self._checkpoints, self._data, self._task, self._threads = runner, checkpoints, data, task, threads

    @property
    def metric(self) -> str:
        """Name of the metric: agreement with the reference without labels, else what `metric_of` says."""
        return "agreement" if self._data.truth is None else metric_of(self._data.truth)

    def answer(self, model: ModelHandle, backend: str, precision: str) -> Answer:
        """The candidate's predictions on all images, from a process of its own.

        A runtime that cannot run it as asked on this machine is asked again for what it ran instead: that arithmetic on the same
        weights is the best that this machine can say of their accuracy, and `ran_in` tells of it. A board refuses what it cannot run.
        """
        key = self._checkpoints.key("answer", model.digest, self._data.digest, self._task, backend, precision, self._threads)
        kept = self._checkpoints.value(key, Answer)
        if kept is not None:
            return kept
        job = EvaluationJob(str(model.path), self._task, backend, precision, self._threads,  # type: ignore[arg-type]
                            tuple(str(image) for image in self._data.images), warmup=0, latency_runs=0)
        result = self._runner.run(job)
        if result.error == "backend.fallback" and result.precision:
            result = self._runner.run(msgspec.structs.replace(job, precision=result.precision))
        answer = _answer_of(result)
        if not answer.error:  # a crash may be the machine's, so it is tried again next time
            self._checkpoints.keep_value(key, answer)
        return answer

    def accuracy(self, answer: Answer, reference: Answer) -> float:
        """0..1: against labels where there are some, else agreement with the reference."""
        truth = self._data.truth
        return agreement(reference.predictions, answer.predictions) if truth is None else score(truth, answer.predictions)

    def paired(self, answer: Answer, reference: Answer, max_drop: float) -> Verdict:
        """The guard's verdict on what `accuracy` of the two differ by, image by image."""
        truth = self._data.truth if self._data.truth is not None else reference.predictions
        base, candidate = (frame_scores([match_frame(expected, found) for expected, found in zip(truth, of.predictions, strict=True)])
                           for of in (reference, answer))
        return judge_paired(base, candidate, max_drop)

    def row(self, built: Built, backend: str, precision: str, answer: Answer, reference: Answer, max_drop: float) -> EvaluationRow:
        """The candidate's row with its verdict. Latencies are 0: a bundle holds nothing that differs from run to run.

        The limit is on the drop that was seen, for a variant stands beside fp32 and every board tries it before it uses it; the reason says
        whether the images prove it. A stage, whose result takes the model's place, must be proven (`stage_driver`).
        """
        if answer.error:
            return EvaluationRow(built.variant.name, backend, precision, self.metric, 0.0, 0.0, 0.0, 0, 0.0, 0.0, built.variant.size,
                                 "refused", f"does not run: {answer.error}")
        accuracy = round(self.accuracy(answer, reference), 6)
        drop = round(100.0 * (round(self.accuracy(reference, reference), 6) - accuracy), 4) + 0.0  # no negative zero
        verdict, reason = judge(drop, max_drop)
        reason = f"{reason}, {self.paired(answer, reference, max_drop).evidence}"
        note = "" if answer.ran_in in ("", precision) else f"; the runtime ran it mostly in {answer.ran_in}"
        return EvaluationRow(
            built.variant.name, backend, precision, self.metric, accuracy, drop,
            round(agreement(reference.predictions, answer.predictions), 6), len(answer.predictions), 0.0, 0.0, built.variant.size,
            verdict, reason + note)  # type: ignore[arg-type]


def judge(drop: float, max_drop: float) -> tuple[str, str]:
    """(verdict, reason) for a drop in points."""
    if drop > max_drop:
        return "refused", f"drop of {drop:.2f} points is over the limit of {max_drop:.2f}"
    return "accepted", f"drop of {drop:.2f} points is within {max_drop:.2f}"


def metric_of(truth: Sequence[Prediction]) -> str:
    """What `score` is against these labels: F1 over things that are alike by what the labels hold of them (OKS of key points, IoU of masks,
    IoU of boxes, each from 0.5 on), accuracy for whole-frame labels. A name is only told, never compared: bundles keep theirs."""
    things = [item for answer in truth for item in answer if item.box is not None]
    if not things:
        return "accuracy"
    if any(item.points for item in things):
        return f"f1@oks{MIN_IOU}"
    return f"f1@mask-iou{MIN_IOU}" if any(item.outline for item in things) else f"f1@iou{MIN_IOU}"


def score(truth: Sequence[Prediction], found: Sequence[Prediction]) -> float:
    """F1 from a likeness of 0.5 on over all frames; for one label a frame that is the share of right answers."""
    total = MatchCount()
    for expected, actual in zip(truth, found, strict=True):
        total = total.plus(match_frame(expected, actual))
    return total.f1


def ways_to_run(variant: Variant) -> tuple[tuple[str, str], ...]:
    """(backend, precision) pairs that this machine can measure."""
    return tuple((backend, precision) for backend in BACKENDS for precision in PRECISIONS_OF.get((variant.precision, backend), ()))


def _answer_of(result: EvaluationResult) -> Answer:
    error = f"{result.detail or result.error} [{result.error}]" if result.error else ""
    return Answer(result.predictions, result.frames, result.provider, result.precision, result.versions, error)
