"""What happens to an answer between decoding and the next frame: a chain of steps, in order, all in the decode thread.

A step may change the frame's detections (tracking), attach numbers (KPIs), look (drift, cascade) or hand on (sinks). The order is the
composition root's; no step knows another.
"""

from __future__ import annotations

from typing import Protocol

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.messages import AppConfig


class Step(Protocol):
    """One station of the chain. `take` runs once a frame and must not wait for anything."""

    def configure(self, config: AppConfig) -> None:
        """New settings; called from the controller's thread, before the first frame too.

        Raises:
            InputError: the settings do not fit; nothing has changed then.
        """

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:
        """One answered frame; `now` is monotonic seconds. `frame.detections` may be replaced, `frame.kpis` added to."""

    def close(self) -> None:
        """Idempotent."""


class Answers:
    """The chain as one step."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps

    def configure(self, config: AppConfig) -> None:
        for step in self._steps:
            step.configure(config)

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:
        for step in self._steps:
            step.take(frame, model, now)

    def close(self) -> None:
        for step in self._steps:
            step.close()
