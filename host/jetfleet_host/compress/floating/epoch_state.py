"""What is on disk between two epochs: weights, optimizer and the number of epochs done. A killed stage goes on from there.

A state belongs to one plan, named by the digest of all that decides its weights; a state of another plan is not used.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jetfleet_host.durable import write_file


class EpochState:
    """The state file of one training run.

    Args:
        plan: digest of configuration, data, seed and first weights.
    """

    def __init__(self, path: Path, plan: str) -> None:
        self._path, self._plan = path, plan

    def load(self) -> dict[str, Any] | None:
        """The last state that was saved for this plan: `epoch`, `model`, `optimizer`, `precision`; None when there is none."""
        if not self._path.is_file():
            return None
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError):  # damaged: the epochs are run again
            return None
        return state if isinstance(state, dict) and state.get("plan") == self._plan else None

    def save(self, epoch: int, model: nn.Module, optimizer: dict[str, Any], precision: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        state = {"plan": self._plan, "epoch": epoch, "model": model.state_dict(), "optimizer": optimizer, "precision": precision}
        torch.save(state, buffer)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._path, buffer.getvalue())


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of parameters and buffers, in their order."""
    hasher = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        hasher.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
