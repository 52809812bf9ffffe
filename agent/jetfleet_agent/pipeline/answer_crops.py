"""Answers crops for a host, one JSON line in (`CropJob`), one out (`CropAnswer`), until the input ends: ``python -m
jetfleet_agent.pipeline.answer_crops``.

What answers is the same task code as on a board. Crops are put where they were in the picture that the board's model saw, on grey, so that
things have the size that the model knows, and the answers are in that picture's pixels. Models stay loaded, the last `MODELS` of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.tasks import Task, load_task
from jetfleet_contract.crops import CropAnswer, CropJob, jpeg_size
from jetfleet_contract.errors import InputError, JetfleetError

MODELS = 4
GREY = 127
MAX_LINE_BYTES = 1 << 20


class _Ready:
    def __init__(self, task: Task, backend: Backend) -> None:
        self.task = task
        self.backend = backend


class CropModels:
    """Loads what jobs name, and answers them. One thread."""

    def __init__(self) -> None:
        self._ready: OrderedDict[bytes, _Ready] = OrderedDict()

    def answer(self, job: CropJob) -> CropAnswer:
        """A JetfleetError becomes the answer's code; so does a vendor's surprise."""
        try:
            return self._answer(job)
        except JetfleetError as error:
            return CropAnswer(job.id, code=error.code, detail=error.what[:300])
        except Exception as error:  # noqa: BLE001  the next crop may be a better one
            return CropAnswer(job.id, code="crop.model", detail=f"{type(error).__name__}: {error}"[:300])

    def _answer(self, job: CropJob) -> CropAnswer:
        ready = self._model(job)
        canvas = in_its_place(job)
        lane = ready.backend.lanes[0]
        began = time.perf_counter()
        geometry = ready.task.prepare(canvas, lane.tensor)
        found = ready.task.decode(ready.backend.infer(lane), geometry)
        return CropAnswer(job.id, found, ms=(time.perf_counter() - began) * 1e3)

    def _model(self, job: CropJob) -> _Ready:
        key = msgspec.json.encode((job.model, job.task, job.threads))
        found = self._ready.get(key)
        if found is None:
            task = load_task(job.task)
            backend = open_backend("onnxruntime", Path(job.model), precision="fp32", threads=job.threads, input_shape=task.input_shape)
            backend.activate()
            while len(self._ready) >= MODELS:
                self._ready.popitem(last=False)[1].backend.deactivate()
            found = self._ready[key] = _Ready(task, backend)
        self._ready.move_to_end(key)
        return found


def in_its_place(job: CropJob) -> Image:
    """The crops where they were: (H, W, 3) uint8 BGR of the canvas's size, grey outside their windows.

    Raises:
        MalformedError: `crop.picture`. InputError: `crop.unreadable`.
    """
    import cv2

    width, height = job.canvas
    canvas = np.full((height, width, 3), GREY, np.uint8)
    for (x0, y0, x1, y1), jpeg in job.pieces:
        jpeg_size(jpeg)
        crop = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if crop is None:
            raise InputError("crop.unreadable", "a crop cannot be decoded")
        if crop.shape[:2] != (y1 - y0, x1 - x0):
            crop = cv2.resize(crop, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        canvas[y0:y1, x0:x1] = crop
    return canvas


def serve(source: IO[bytes], out: IO[bytes]) -> None:
    """Answer line by line until the input ends or a line is none of ours."""
    models, encoder, decoder = CropModels(), msgspec.json.Encoder(), msgspec.json.Decoder(CropJob)
    while line := source.readline(MAX_LINE_BYTES):
        out.write(encoder.encode(models.answer(decoder.decode(line))) + b"\n")
        out.flush()


def main() -> int:
    """Standard output carries answers only: whatever a vendor's library prints goes to standard error."""
    answers: Any = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, answers)
    except (msgspec.MsgspecError, BrokenPipeError) as error:
        print(f"answer_crops: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
