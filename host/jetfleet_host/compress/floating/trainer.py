"""The trainer under every stage: Lightning Fabric runs the loop's devices, this file runs the loop.

Same model, plan, data and seed: same weights on the same machine. Each epoch starts its random numbers anew from (seed, epoch), so a
run that was killed and goes on ends with the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import msgspec
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jetfleet_contract.errors import JetfleetError, RuntimeFailure
from jetfleet_host.compress.float_stage import Split, Workshop
from jetfleet_host.compress.recipe_file import Training

from .epoch_state import EpochState, weights_digest
from .processes import Progress, Relay, compress_gradients, fabric_for, relayed, under_torchrun
from .recomputing import recomputed
from .samples import CachedSplit, Collate, Order, collated, loader
from .task_loss import Loss, task_loss, with_gradient
from .tracing import traced

_WARM_UP = 0.05  # of all steps: adaptive optimizers start with poor estimates
_MOMENTUM = 0.9


class Objective(Protocol):
    """What is made small. A value, not a closure, where several processes train: it is pickled to them."""

    def __call__(self, model: Callable[[torch.Tensor], Any], images: torch.Tensor, targets: Any) -> torch.Tensor: ...


@dataclass(frozen=True)
class Plan:
    """One training run.

    Args:
        name: of the run within its stage, a file name.
        learning_rate: peak, after the warm-up and before the cosine.
        objective: mean loss of a batch.
        after_step: what must hold for the weights after each step (masks); given the bare model.
        about: what decides the weights besides (teacher, masks): a state of another `about` is not resumed.
    """

    name: str
    epochs: int
    learning_rate: float
    objective: Objective
    after_step: Callable[[nn.Module], None] | None = None
    about: str = ""


@dataclass(frozen=True)
class LabelLoss:
    """The task's loss on the model's outputs."""

    loss: Loss

    def __call__(self, model: Callable[[torch.Tensor], Any], images: torch.Tensor, targets: Any) -> torch.Tensor:
        return task_loss(self.loss, model(images), targets)


@dataclass(frozen=True)
class _Job:
    model: nn.Module
    plan: Plan
    train: Split
    training: Training
    seed: int
    folder: Path
    state: str
    progress: Progress
    collate: Collate | None


class _Diverged(NamedTuple):
    epoch: int
    step: int


def fit(model: nn.Module, plan: Plan, workshop: Workshop) -> nn.Module:
    """Train `model` in place and give it back in evaluation mode, on the CPU.

    Raises:
        RuntimeFailure: `build.diverged` names epoch and step of the first loss that is not finite.
        InputError: `data.empty`, `data.not-finite`, `data.labels`.
    """
    if not plan.epochs:
        return model.eval()
    job = _Job(model, plan, workshop.train, workshop.training, workshop.seed, workshop.folder, _plan_digest(model, plan, workshop),
               workshop.progress, workshop.collate)
    fabric = fabric_for(workshop.training)
    if fabric.world_size > 1 and not under_torchrun():
        with relayed(workshop.progress) as relay:
            ended = fabric.launch(_train_sent, pickle.dumps(replace(job, progress=_silent)), relay)
    else:
        fabric.launch()
        ended = _train(fabric, job)
    if isinstance(ended, JetfleetError):
        raise ended
    if ended is not None:
        raise RuntimeFailure("build.diverged", f"training {plan.name} diverged: the loss was no number in epoch {ended.epoch}, "
                             f"step {ended.step}", remedy="lower learning_rate, or take precision = \"fp32\"")
    state = _state_of(job).load()
    if state is None:
        raise RuntimeFailure("build.training-state", f"training {plan.name} left no state in {workshop.folder}", where=str(workshop.folder))
    model.cpu().load_state_dict(state["model"])
    return model.eval()


def _train_sent(fabric: Fabric, job: bytes, relay: Relay) -> _Diverged | JetfleetError | None:
    """In a process of its own. As bytes, every process has weights of its own: sent as tensors, all would train the same memory."""
    try:
        ended: _Diverged | JetfleetError | None = _train(fabric, replace(pickle.loads(job), progress=relay))  # noqa: S301 - our parent's
    except JetfleetError as error:  # all processes see the same data, so all of them come here
        ended = error
    fabric.barrier()  # a process that leaves while another still talks to it aborts that one
    torch.distributed.destroy_process_group()
    return ended


def _silent(what: str, done: int, of: int) -> None:
    """Progress calls are often closures, which cannot be sent."""


def _train(fabric: Fabric, job: _Job) -> _Diverged | None:
    """Every process runs this. The result travels through the state file, so a process may end at any time."""
    with deterministic(job.seed), contextlib.ExitStack() as stack:
        if job.training.checkpoint_activations:
            stack.enter_context(recomputed(job.model))
        run = _Run(fabric, job)
        for epoch in range(run.done, job.plan.epochs):
            diverged = run.epoch(epoch)
            if diverged is not None:
                return diverged
            run.save(epoch + 1)
    fabric.barrier()
    return None


class _Run:
    def __init__(self, fabric: Fabric, job: _Job) -> None:
        self._fabric, self._job, self._state = fabric, job, _state_of(job)
        training = job.training
        data = CachedSplit(job.train, training.cache_mb << 20)
        self._order = Order(len(data), training.batch, job.seed, fabric.global_rank, fabric.world_size)
        batches = loader(data, self._order, training.workers, pin=fabric.device.type == "cuda")
        self._batches = fabric.setup_dataloaders(batches, use_distributed_sampler=False)
        state = self._state.load()
        self.done = int(state["epoch"]) if state else 0
        if state:
            job.model.load_state_dict(state["model"])
        self._model, self._optimizer = fabric.setup(job.model, _optimizer(job.model, training))
        if state:
            self._optimizer.load_state_dict(state["optimizer"])
            fabric.strategy.precision.load_state_dict(state["precision"])
        _spread(self._model, training)

    def epoch(self, epoch: int) -> _Diverged | None:
        job, steps = self._job, len(self._order)
        torch.manual_seed(job.seed * 1_000_003 + epoch)
        self._order.epoch = epoch
        self._model.train()
        profiled = job.training.profile and epoch == 0 and self._fabric.is_global_zero
        with traced(job.folder / f"{job.plan.name}.trace.json", wanted=profiled) as mark:
            for step, (images, targets) in enumerate(self._batches):
                rate = job.plan.learning_rate * _schedule(epoch * steps + step, job.plan.epochs * steps)
                if not self._step(images, targets, rate):
                    return _Diverged(epoch + 1, step + 1)
                mark()
                if self._fabric.is_global_zero:
                    job.progress(f"{job.plan.name}: epoch {epoch + 1} of {job.plan.epochs}", epoch * steps + step + 1,
                                 job.plan.epochs * steps)
        return None

    def save(self, epoch: int) -> None:
        if self._fabric.is_global_zero:
            self._state.save(epoch, self._job.model, self._optimizer.state_dict(), self._fabric.strategy.precision.state_dict())
        self._fabric.barrier()

    def _step(self, images: torch.Tensor, targets: list[NDArray[Any]], rate: float) -> bool:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss = self._loss(images, targets)
        if not self._finite(loss):
            return False
        self._fabric.backward(loss)
        self._optimizer.step()
        if self._job.plan.after_step is not None:
            self._job.plan.after_step(self._job.model)
        return True

    def _loss(self, images: torch.Tensor, targets: list[NDArray[Any]]) -> torch.Tensor | JetfleetError:
        try:
            batch = self._fabric.to_device(collated(targets, self._job.collate))
            return with_gradient(self._job.plan.objective(self._model, images, batch))
        except JetfleetError as error:  # of this process's part of the batch: it must not leave the others waiting
            return error

    def _finite(self, loss: torch.Tensor | JetfleetError) -> TypeGuard[torch.Tensor]:
        """All processes must agree to stop, or the others wait for this one's gradients for ever. An error in one is raised in all."""
        error = loss if isinstance(loss, JetfleetError) else None
        bad = torch.ones((), device=self._fabric.device) if isinstance(loss, JetfleetError) else (~torch.isfinite(loss.detach())).float()
        if self._fabric.world_size > 1:
            bad = self._fabric.all_reduce(bad, reduce_op="sum")
        if not bool(bad.item()):
            return True
        errors = [error] * self._fabric.world_size
        if self._fabric.world_size > 1:
            torch.distributed.all_gather_object(errors, error)
        for raised in filter(None, errors):
            raise raised
        return False


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Deterministic kernels and random numbers from `seed` in this context; the global state afterwards is what it was."""
    before = torch.are_deterministic_algorithms_enabled()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Weight decay on weights alone: biases, norms and scales have no need of it."""
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def _schedule(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine to zero (Loshchilov and Hutter, arXiv 1608.03983)."""
    warm = max(1, math.ceil(steps * _WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _spread(model: Any, training: Training) -> None:
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            compress_gradients(module, training.gradient_compression)


def _state_of(job: _Job) -> EpochState:
    return EpochState(job.folder / f"{job.plan.name}.state", job.state)


def _plan_digest(model: nn.Module, plan: Plan, workshop: Workshop) -> str:
    text = "\n".join((plan.name, str(plan.epochs), repr(plan.learning_rate), plan.about, str(workshop.seed), workshop.train.digest,
                      workshop.task, msgspec.json.encode(workshop.training).decode(), weights_digest(model)))
    return hashlib.sha256(text.encode()).hexdigest()
