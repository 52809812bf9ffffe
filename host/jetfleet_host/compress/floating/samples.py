"""A split as batches: every sample is read once and kept as a tensor where memory allows, else read again by loader workers.

The order is a function of (seed, epoch) alone, so that a stage that was killed goes on with the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import Split

Batch = tuple[torch.Tensor, Any]
Collate = Callable[[Sequence[torch.Tensor]], Any]
# As a loader gives it: targets are put together where the loss runs, since many small tensors cost a loader worker a file descriptor each.
Loaded = tuple[torch.Tensor, list[NDArray[Any]]]


class CachedSplit(Dataset):
    """Images (C, H, W) float32 and targets, arrays of any shape, of a split: all of them in memory when the images fit into `cache_bytes`.

    Raises:
        InputError: `data.empty`; `data.not-finite` with the number of the sample that holds NaN or infinity; `data.labels` when a target
            does not consist of numbers.
    """

    def __init__(self, split: Split, cache_bytes: int) -> None:
        if not len(split):
            raise InputError("data.empty", "there are no samples to train with")
        self._split = split
        image, _ = split[0]
        self._kept: Loaded | None = None
        if image.nbytes * len(split) <= cache_bytes:
            self._kept = self._read(range(len(split)))

    def __len__(self) -> int:
        return len(self._split)

    def __getitems__(self, indices: Sequence[int]) -> Loaded:
        if self._kept is None:
            return self._read(indices)
        return self._kept[0][torch.as_tensor(indices)], [self._kept[1][index] for index in indices]

    def _read(self, indices: Sequence[int]) -> Loaded:
        images, targets = [], []
        for index in indices:
            image, target = self._split[index]
            tensor = torch.as_tensor(image)
            if not torch.isfinite(tensor).all():
                raise InputError("data.not-finite", f"sample {index} of the training data holds NaN or infinity",
                                 remedy="remove the sample, or check the pre-processing (mean, std, scale)")
            images.append(tensor)
            targets.append(_numbers(target, index))
        return torch.stack(images), targets


class Order(Sampler):
    """Lists of indices, one a step: this rank's part of each batch. `epoch` is set before each pass.

    `batch` counts over all ranks, so the learning rate means the same for one process and for many. A last batch that is not full is
    left out (batch norm cannot take a batch of one), unless it is the only one.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._count, self._seed, self._rank, self._world = count, seed, rank, world
        self._batch = max(world, min(batch, count) // world * world)
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, self._count // self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self._count, generator=generator).tolist()
        for step in range(len(self)):
            yield order[step * self._batch:(step + 1) * self._batch][self._rank::self._world]


def loader(data: CachedSplit, order: Order, workers: int, *, pin: bool) -> DataLoader:
    """Batches of `data` in `order`; loader workers live through all epochs."""
    return DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=_as_is, pin_memory=pin, persistent_workers=workers > 0)


def batches(split: Split, size: int, limit: int = 0, collate: Collate | None = None) -> Iterator[Batch]:
    """The first `limit` samples (0: all) in their order, `size` at a time: for scans and calibration, which must not be shuffled."""
    count = min(limit, len(split)) if limit else len(split)
    for start in range(0, count, size):
        pairs = [split[index] for index in range(start, min(start + size, count))]
        yield torch.stack([torch.as_tensor(image) for image, _ in pairs]), collated([target for _, target in pairs], collate)


def collated(targets: Sequence[NDArray[Any]], collate: Collate | None) -> Any:
    """The targets of a batch as the loss takes them. InputError `data.labels` when they are to be stacked and differ in shape."""
    return (collate or _stacked)([torch.as_tensor(target) for target in targets])


def _stacked(targets: Sequence[torch.Tensor]) -> torch.Tensor:
    if len({target.shape for target in targets}) > 1:
        raise InputError("data.labels", "the targets of the training data differ in shape, so they cannot form a batch",
                         remedy="pad them to one shape, or name a task in the recipe that takes them: [training] task")
    return torch.stack(list(targets))


def _numbers(target: Any, index: int) -> NDArray[Any]:
    array = np.asarray(target)
    if array.dtype.kind not in "biuf":
        raise InputError("data.labels", f"the target of training sample {index} is of {array.dtype}, not of numbers")
    if not np.isfinite(array).all():
        raise InputError("data.not-finite", f"the target of training sample {index} holds NaN or infinity",
                         remedy="remove the sample, or mend its labels")
    return array


def _as_is(batch: Loaded) -> Loaded:
    return batch
