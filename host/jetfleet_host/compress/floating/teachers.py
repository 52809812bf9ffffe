"""Whom a student learns from: a torch module, or an ONNX file that ONNX Runtime runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.loading import load_checked
from jetfleet_host.compress.preparing import declared_shape


class OnnxTeacher(nn.Module):
    """The first output of an ONNX file for a batch (N, C, H, W); the session is opened where it is used, so the teacher can be pickled.

    Raises:
        InputError: what `load_checked` raises; `build.teacher` when its input has another shape than the student's.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._fixed, *sides = declared_shape(load_checked(path))
        if any(side not in (0, wanted) for side, wanted in zip(sides, shape[1:], strict=True)):
            raise InputError("build.teacher", f"the teacher {path.name} takes images of {'x'.join(map(str, sides))}, the student of "
                             f"{'x'.join(map(str, shape[1:]))}", where=str(path),
                             remedy="export the teacher with the student's input shape")
        self._path, self._digest = path, hashlib.sha256(path.read_bytes()).hexdigest()
        self._session: Any = None

    def extra_repr(self) -> str:
        return self._digest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self._session is None:
            import onnxruntime

            self._session = onnxruntime.InferenceSession(str(self._path), providers=["CPUExecutionProvider"])
        source = self._session.get_inputs()[0].name
        step = self._fixed or len(images)
        batch = images.detach().float().cpu().numpy()
        answers = [self._run(source, batch[at:at + step], step) for at in range(0, len(batch), step)]
        return torch.as_tensor(np.concatenate(answers)).to(images.device)

    def _run(self, source: str, part: Any, step: int) -> Any:
        full = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)]) if len(part) < step else part
        return self._session.run(None, {source: full})[0][:len(part)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}
