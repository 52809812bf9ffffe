"""From frames to outputs: which pictures go into which run of the session.

A frame is one picture, or one a tile. A run takes one picture, or as many as the model's batch holds: of different cameras, and of
the tiles of one frame. Everything here runs in the inference thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from jetfleet_agent.pipeline.backends import Lane, Outputs
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.preprocess import Geometry, Image
from jetfleet_agent.pipeline.shadow import Shadow
from jetfleet_contract.predictions import Prediction
from jetfleet_contract.tiling import Cut, cuts


class Work:
    """One frame for one model. `missing` counts pictures that were not decoded yet, `found` has one answer a picture.

    `work_ms` is pre-processing, its share of the session, and decoding. A shadow's work says whose it is, and has the champion's work.
    """

    __slots__ = ("answer", "champion", "found", "frame", "missing", "model", "shadow", "work_ms")

    def __init__(self, frame: Frame, model: LoadedModel, shadow: Shadow | None = None, champion: Work | None = None) -> None:
        self.frame = frame
        self.model = model
        self.shadow = shadow
        self.champion = champion
        self.missing = 1
        self.found: list[Prediction] = []
        self.answer: Prediction = ()
        self.work_ms = 0.0


class Picture:
    """What the session sees at once: a frame, or the part of it that is `tile`, in frame pixels."""

    __slots__ = ("geometry", "image", "tile", "work")

    def __init__(self, work: Work, image: Image, tile: Cut | None = None) -> None:
        self.work = work
        self.image = image
        self.tile = tile
        self.geometry: Geometry | None = None


class Answered:
    """One run's outputs, for the decoder; the lane is its to release."""

    __slots__ = ("lane", "model", "outputs", "pictures")

    def __init__(self, model: LoadedModel, lane: Lane, outputs: Outputs, pictures: list[Picture]) -> None:
        self.model = model
        self.lane = lane
        self.outputs = outputs
        self.pictures = pictures


def runs(model: LoadedModel, works: list[Work]) -> Iterator[Answered]:
    """Run the model on these frames. Errors as `Backend.infer`."""
    pictures = [picture for work in works for picture in _pictures(model, work)]
    most = model.batching.most
    for start in range(0, len(pictures), most):
        group = pictures[start:start + most]
        if len(group) > 1 and len(group) >= model.fewest:
            yield _run(model, group)
        else:
            for picture in group:
                yield _run(model, [picture])


def _pictures(model: LoadedModel, work: Work) -> list[Picture]:
    image, tile = work.frame.image, model.tile
    if tile is None or _is_prepared(work):
        return [Picture(work, image)]
    height, width = image.shape[:2]
    pictures = [Picture(work, image[cut[1]:cut[3], cut[0]:cut[2]], cut) for cut in cuts(width, height, tile)]
    work.missing = len(pictures)
    return pictures


def _is_prepared(work: Work) -> bool:
    """Whether the frame's own lane was filled ahead, for this model."""
    return work.shadow is None and work.frame.lane is not None


def _run(model: LoadedModel, pictures: list[Picture]) -> Answered:
    first = pictures[0].work
    if _is_prepared(first) and first.frame.lane is not None:
        lane, first.frame.lane = first.frame.lane, None
        pictures[0].geometry = first.frame.geometry
        first.work_ms += first.frame.pre_ms
    else:
        lane = model.lane_inline(1 if len(pictures) == 1 else model.batching.most)
        try:
            for index, picture in enumerate(pictures):
                _prepare(model, lane, index, picture)
        except BaseException:
            model.release(lane)
            raise
    began = time.monotonic()
    try:
        outputs = model.infer(lane)
    except BaseException:
        model.release(lane)
        raise
    took_ms = (time.monotonic() - began) * 1e3
    for picture in pictures:
        work = picture.work
        work.work_ms += took_ms / len(pictures)
        if work.shadow is None:
            work.frame.infer_ms += took_ms
    return Answered(model, lane, outputs, pictures)


def _prepare(model: LoadedModel, lane: Lane, index: int, picture: Picture) -> None:
    began = time.monotonic()
    picture.geometry = model.prepare(picture.image, lane, index)
    took_ms = (time.monotonic() - began) * 1e3
    picture.work.work_ms += took_ms
    if picture.work.shadow is None:
        picture.work.frame.pre_ms += took_ms
