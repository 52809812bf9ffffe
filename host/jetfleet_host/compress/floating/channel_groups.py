"""Which channels of a network must go together: Torch-Pruning's dependency graph (Fang et al., CVPR 2023) behind three calls.

The one file that imports torch_pruning.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn

from jetfleet_contract.errors import InputError

Measure = Callable[[Any], Any]
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001 - the base of all convolutions has no public name


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed in all of their layers at once.

    Args:
        name: of `root`, the layer that makes them; `layers`: all that lose them too, as torch_pruning lists them.
        channels: how many there are; `sets` grouped convolutions see them as so many equal runs, each of which must lose as many.
    """

    name: str
    channels: int
    sets: int
    layers: Any
    root: Any

    @property
    def units(self) -> int:
        """What can be removed one by one: `channels` / `sets`."""
        return self.channels // self.sets

    def indices(self, units: NDArray[np.int64]) -> list[int]:
        """The channels of these units, one in each set."""
        return sorted(int(unit) + number * self.units for unit in units for number in range(self.sets))

    def outputs(self) -> Iterator[tuple[nn.Module, NDArray[np.int64]]]:
        """Layers that make these channels, each with its own index of each channel."""
        for dependency, own in self.layers:
            if tp.DependencyGraph().is_out_channel_pruning_fn(dependency.handler) and isinstance(dependency.target.module, nn.Module):
                yield dependency.target.module, np.asarray(own, np.int64)

    def score(self, importance: Measure) -> NDArray[np.float64] | None:
        """Importance of each unit (units,), summed over its layers; None when no layer of the group has what it looks at."""
        values = importance(self.layers)
        if values is None or len(values) != self.channels:
            return None
        return np.asarray(values.detach().double().cpu().reshape(self.sets, -1).mean(0).numpy(), np.float64)


class ChannelGraph:
    """The dependency graph of a model as it is now; what was removed through it, it knows.

    Args:
        shape: of an input batch (1, C, H, W).
        kept: names of modules whose outputs stay as they are, with all that is in them; layers that make the model's outputs always do.

    Raises:
        InputError: `build.prune` when the graph cannot be built, with the operation that stopped it, or when `kept` names nothing.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], kept: Collection[str] = ()) -> None:
        self.model, self._sample = model, torch.zeros(shape)
        names = dict(model.named_modules())
        for name in kept:
            if name not in names:
                raise InputError("build.prune", f"ignore names a module {name!r} that the model does not have",
                                 remedy=f"its modules are {', '.join(list(names)[1:12])} ...")
        for parameter in model.parameters():
            parameter.requires_grad_(True)  # the graph is read from autograd's
        with _named_failure(model, "its graph cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parameters outside of layers, which stay as they are
            self._graph = tp.DependencyGraph().build_dependency(model, example_inputs=self._sample, verbose=False)
        self._names = {module: name for name, module in names.items()}
        self._ignored = [inner for name in kept for inner in names[name].modules()] + self._output_layers()

    def groups(self) -> list[ChannelGroup]:
        """All groups that may lose channels, in the order of the graph.

        Raises:
            InputError: `build.prune` when there is none, with the kinds of layers that there are.
        """
        found = []
        for group in self._graph.get_all_groups(ignored_layers=self._ignored, root_module_types=list(_ROOTS)):
            root = group[0].dep.target.module
            channels = self._graph.get_out_channels(root)
            found.append(ChannelGroup(self._names.get(root, "?"), channels, self._sets(group), group, root))
        if not found:
            kinds = sorted({type(module).__name__ for module in self.model.modules() if not list(module.children())})
            raise InputError("build.prune", "the model has no channels that could be removed: none of its operations is a convolution or "
                             f"linear layer before the last one; it has {', '.join(kinds) or 'no layers'}",
                             remedy="give the model as a torch module with nn.Conv2d layers, or shorten ignore")
        return found

    def remove(self, group: ChannelGroup, units: NDArray[np.int64]) -> None:
        """Take these units out of every layer of the group."""
        pruner = self._graph.get_pruner_of_module(group.root)
        chosen = self._graph.get_pruning_group(group.root, pruner.prune_out_channels, group.indices(units))
        if not self._graph.check_pruning_group(chosen):
            raise InputError("build.prune", f"removing {len(units)} of {group.units} channels of {group.name!r} leaves a layer with none",
                             remedy="lower ratio")
        chosen.prune()

    def check(self, shapes: list[tuple[int, ...]]) -> None:
        """Run the model once: its outputs must have these shapes.

        Raises:
            InputError: `build.prune`, naming the operation that no longer fits.
        """
        found = output_shapes(self.model, tuple(self._sample.shape), "it does not run without the removed channels")
        if found != shapes:
            raise InputError("build.prune", f"pruning changed the model's outputs from {shapes} to {found}",
                             remedy="name the layer that makes them in ignore")

    def _sets(self, group: Any) -> int:
        counts = [1]
        for dependency, _ in group:
            module = dependency.target.module
            pruner = self._graph.get_pruner_of_module(module) if isinstance(module, nn.Module) else None
            if pruner is None or (isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels):  # noqa: SLF001
                continue
            out = self._graph.is_out_channel_pruning_fn(dependency.handler)
            counts.append(pruner.get_out_channel_groups(module) if out else pruner.get_in_channel_groups(module))
        return int(max(counts))

    def _output_layers(self) -> list[nn.Module]:
        """Layers from which a path leads to the model's end without another layer of weights on it."""
        return [module for module, node in self._graph.module2node.items() if isinstance(module, _ROOTS) and _reaches_end(node)]


def output_shapes(model: nn.Module, shape: tuple[int, ...], what: str = "it does not run") -> list[tuple[int, ...]]:
    """Shapes of all output tensors, in order. InputError `build.prune` with `what` and where, when the model does not run."""
    model.eval()
    with torch.no_grad(), _named_failure(model, what):
        answer = model(torch.zeros(shape))
    return [tuple(tensor.shape) for tensor in _leaves(answer)]


def importance_measure(kind: Literal["l1", "taylor", "bn-scale"]) -> Measure:
    """What scores the channels of a group; `taylor` reads the gradients that are in the model's parameters."""
    if kind == "taylor":
        return cast("Measure", tp.importance.GroupTaylorImportance())
    return cast("Measure", tp.importance.GroupMagnitudeImportance(p=1) if kind == "l1" else tp.importance.BNScaleImportance())


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image."""
    count, _ = tp.utils.count_ops_and_params(model, torch.zeros(shape))
    return int(count)


def _leaves(answer: Any) -> Iterator[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        yield answer
    elif isinstance(answer, (list, tuple, dict)):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from _leaves(part)


def _reaches_end(start: Any) -> bool:
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if not node.outputs:
            return True
        waiting += [after for after in node.outputs if not isinstance(after.module, _ROOTS)]
    return False


@contextmanager
def _named_failure(model: nn.Module, what: str) -> Iterator[None]:
    """An exception of the model's forward becomes `build.prune` with the module it was in and the line of its source."""
    inside: list[str] = []
    handles = []
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda _, __, label=label: inside.append(label)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__)
               if "site-packages" not in frame.filename and frame.filename != __file__]
        line = f": {own[-1].line}" if own and own[-1].line and inside else ""
        message = " ".join(str(error).split())[:200]
        raise InputError("build.prune", f"the model cannot be pruned, {what}, at {inside[-1] if inside else 'its graph'}{line}: {message}",
                         where=f"{own[-1].filename}:{own[-1].lineno}" if own and inside else "",
                         remedy="take sizes from the tensor (x.shape), not from numbers, or name the layer before it in ignore") from error
    finally:
        for handle in handles:
            handle.remove()
