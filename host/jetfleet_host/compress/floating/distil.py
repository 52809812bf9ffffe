"""A student learns from a teacher: from its soft answers (Hinton et al., arXiv 1503.02531) and, where asked, from its features
(Romero et al., arXiv 1412.6550)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.intake.models import module_of
from jetfleet_host.compress.recipe_file import Distil

from .epoch_state import weights_digest
from .fake_quantization import working_copy
from .task_loss import Loss, shapes, task_loss
from .teachers import OnnxTeacher
from .trainer import Plan, deterministic, fit


def distil(model: nn.Module, config: Distil, workshop: Workshop) -> nn.Module:
    """The student, trained: a copy of `model`, or what the factory `config.student` gives.

    Raises:
        InputError: `build.distil` when hints name a module that is not there or the two answer in different shapes; `build.teacher`;
            what a factory raises.
        RuntimeFailure: `build.diverged`.
    """
    student = _student(model, config, workshop)
    teacher = _teacher(config, workshop)
    _check_answers(student, teacher, workshop.shape)
    with deterministic(workshop.seed):
        learner = Learner(student, teacher, [_pair(text) for text in config.pairs] if config.hints else [], workshop.shape)
    objective = Distillation(workshop.loss, teacher.eval(), config.temperature, config.alpha, config.hints,
                             tuple(teacher_name for _, teacher_name in learner.pairs), workshop.distance)
    about = f"{config!r} {_identity(teacher)}"
    plan = Plan("distil", config.epochs, workshop.training.learning_rate, objective, about=hashlib.sha256(about.encode()).hexdigest())
    fit(learner, plan, workshop)
    return learner.student.eval()


@dataclass(frozen=True)
class Distillation:
    """(1 - alpha) * task loss + alpha * T^2 * KL(teacher || student) at temperature T + hints * mean squared distance of features.

    A task of the user's own has its own `distance` in place of KL. Without one, answers that are not (N, classes) are compared by mean
    squared distance.
    """

    loss: Loss
    teacher: nn.Module
    temperature: float
    alpha: float
    hints: float
    layers: tuple[str, ...]
    distance: Callable[[Any, Any], torch.Tensor] | None = None

    def __call__(self, model: Callable[[torch.Tensor], Any], images: torch.Tensor, targets: Any) -> torch.Tensor:
        answers, features = model(images)
        self.teacher.to(images.device)
        with torch.no_grad(), watched(self.teacher, self.layers) as seen:
            wanted = self.teacher(images)
        total = self.alpha * task_loss(self.distance or self._soft, answers, wanted)
        if self.alpha < 1.0:
            total = total + (1.0 - self.alpha) * task_loss(self.loss, answers, targets)
        for name, feature in zip(self.layers, features, strict=True):
            total = total + self.hints * functional.mse_loss(feature.float(), seen[name].float())
        return total

    def _soft(self, answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if answers.ndim != 2:
            return functional.mse_loss(answers.float(), wanted.float())
        t = self.temperature
        return functional.kl_div((answers.float() / t).log_softmax(1), (wanted.float() / t).log_softmax(1), reduction="batchmean",
                                 log_target=True) * t * t


class Learner(nn.Module):
    """The student with one 1x1 adapter a pair, which brings its features to the teacher's channels: images -> (answers, features)."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Sequence[tuple[str, str]], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.student, self.pairs = student, tuple(pairs)
        mine = _features(student, [name for name, _ in pairs], shape, "student")
        theirs = _features(teacher, [name for _, name in pairs], shape, "teacher")
        self.adapters = nn.ModuleList(_adapter(mine[one], theirs[other], one, other) for one, other in pairs)

    def forward(self, images: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
        with watched(self.student, [name for name, _ in self.pairs]) as seen:
            answers = self.student(images)
        return answers, [adapter(seen[name]) for adapter, (name, _) in zip(self.adapters, self.pairs, strict=True)]


@contextlib.contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What these modules give while the context lasts, by name."""
    seen: dict[str, torch.Tensor] = {}
    handles = [model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
               for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _student(model: nn.Module, config: Distil, workshop: Workshop) -> nn.Module:
    if not config.student:
        return working_copy(model)
    with deterministic(workshop.seed):  # a factory's random first weights are of this seed
        return module_of(config.student)


def _teacher(config: Distil, workshop: Workshop) -> nn.Module:
    if not config.teacher:
        return workshop.teacher()
    if config.teacher.endswith(".onnx"):
        return OnnxTeacher(Path(config.teacher), workshop.shape)
    return module_of(config.teacher)


def _pair(text: str) -> tuple[str, str]:
    student, mark, teacher = text.partition("=")
    if not mark:
        raise InputError("build.distil", f"{text!r} is not student.module=teacher.module",
                         remedy='for example pairs = ["stages.2=stages.2"]')
    return student.strip(), teacher.strip()


def _features(model: nn.Module, names: Sequence[str], shape: tuple[int, ...], whose: str) -> dict[str, torch.Tensor]:
    present = dict(model.named_modules())
    for name in names:
        if name not in present:
            raise InputError("build.distil", f"the {whose} has no module {name!r}", remedy=f"it has {', '.join(list(present)[1:12])} ...")
    with torch.no_grad(), watched(model.eval(), names) as seen:
        model(torch.zeros(shape))
    return seen


def _adapter(mine: torch.Tensor, theirs: torch.Tensor, one: str, other: str) -> nn.Module:
    if mine.ndim != theirs.ndim or mine.shape[2:] != theirs.shape[2:] or mine.ndim not in (2, 4):
        raise InputError("build.distil", f"the features of {one!r} {tuple(mine.shape[1:])} and {other!r} {tuple(theirs.shape[1:])} "
                         "do not lie on one another", remedy="pair modules at the same stride of the image")
    return nn.Linear(mine.shape[1], theirs.shape[1]) if mine.ndim == 2 else nn.Conv2d(mine.shape[1], theirs.shape[1], 1)


def _check_answers(student: nn.Module, teacher: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        mine, theirs = student.eval()(torch.zeros(shape)), teacher.eval()(torch.zeros(shape))
    if shapes(mine) != shapes(theirs):
        raise InputError("build.distil", f"the student answers {shapes(mine)}, the teacher {shapes(theirs)}",
                         remedy="give both the same classes")


def _identity(teacher: nn.Module) -> str:
    return repr(teacher) + weights_digest(teacher)
