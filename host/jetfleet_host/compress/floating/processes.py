"""One process or many: how Lightning Fabric is set up for a training, and how gradients travel between its processes.

Under torchrun the processes are there already, on one machine or several, and every one of them runs the stage. Otherwise
`devices` > 1 starts that many on this machine for the length of one training. gloo on a CPU, NCCL on GPUs.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from jetfleet_host.compress.recipe_file import Training

Progress = Callable[[str, int, int], None]
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fabric_for(training: Training) -> Fabric:
    """Fabric for this training. fp16 autocast exists on GPUs alone; on a CPU Fabric takes bf16 in its place and says so."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells the precision at each training
    on_gpu = torch.cuda.is_available()
    devices, nodes = training.devices, 1
    if under_torchrun():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy: Any = "auto"
    if devices * nodes > 1:
        strategy = DDPStrategy(process_group_backend="nccl" if on_gpu else "gloo", start_method="popen" if under_torchrun() else "spawn")
    return Fabric(accelerator="cuda" if on_gpu else "cpu", devices=devices, num_nodes=nodes, strategy=strategy,
                  precision=_PRECISION[training.precision])


def under_torchrun() -> bool:
    return bool(torch.distributed.is_torchelastic_launched())


def leads() -> bool:
    """True in the one process that goes on when the training is over: the only one, or rank 0 of torchrun's."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def compress_gradients(model: nn.Module, how: str) -> None:
    """Register a communication hook on a model that is spread over processes; nothing to do in one process.

    fp16 halves the bytes. PowerSGD (Vogels et al., arXiv 1905.13727) sends rank-2 factors after ten plain steps, with error feedback.
    """
    if how == "none" or not isinstance(model, DistributedDataParallel):
        return
    if how == "fp16":
        model.register_comm_hook(None, fp16_compress_hook)
    else:
        state = PowerSGDState(process_group=None, matrix_approximation_rank=2, start_powerSGD_iter=10)
        model.register_comm_hook(state, powerSGD_hook)


class Relay:
    """A progress call that crosses to the process that asked: picklable while processes are being started."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def __call__(self, what: str, done: int, of: int) -> None:
        self._queue.put((what, done, of))


@contextmanager
def relayed(progress: Progress) -> Iterator[Relay]:
    """What other processes say to the relay is said here to `progress`, by one thread, until the context ends."""
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()

    def listen() -> None:
        while (said := queue.get()) is not None:
            progress(*said)

    listener = threading.Thread(target=listen, name="training-progress", daemon=True)
    listener.start()
    try:
        yield Relay(queue)
    finally:
        queue.put(None)
        listener.join()
        queue.close()
