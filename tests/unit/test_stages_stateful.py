"""Every frame is answered once or dropped by a named cause, whatever happens in between: seen = done + dropped + under way."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from fake_models import frame_of, gated_model, gated_models, until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jetfleet_agent.pipeline.decoding import Swapped
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import AHEAD, INLINE, WIDE, LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.stages import FEED_DEPTH, Broken, Stages
from jetfleet_contract.app_config import Batching
from jetfleet_contract.messages import AppConfig, Source

CAMERAS, FILES, CROPS = ("east", "west", "north"), ("film", "tape"), ("crops",)
MOST_UNDER_WAY = len(CAMERAS) + 2 * len(FILES) + FEED_DEPTH + AHEAD + INLINE + WIDE * 4 + 2 * len(FILES)
sources = st.sampled_from(CAMERAS)
files = st.sampled_from(FILES)


class Conservation(RuleBasedStateMachine):
    """Real stages, real threads, a session that waits at a gate."""

    @initialize(overlap=st.sampled_from((True, False, None)), batch=st.sampled_from((1, 1, 3)))
    def begin(self, overlap: bool | None, batch: int) -> None:
        self.ended = ExitStack()
        self.folder = Path(self.ended.enter_context(tempfile.TemporaryDirectory()))
        self.gate = self.ended.enter_context(gated_models(
            lambda where, name, value: self.ended.enter_context(mock.patch.object(where, name, value))))
        self.config = AppConfig(batching=Batching(batch, 1.0))
        self.meter = Meter("app")
        self.totals: Counter[str] = Counter()
        self.answers: list[tuple[str, int]] = []
        self.deepest = 0
        self.notes: list[Swapped | Broken] = []
        self.models = [gated_model(self.folder, self.config)]
        self.stages = Stages(self.models[0], self.meter, self.deliver, self.notes.append, overlap)
        self.stages.set_sources(tuple(Source(name, "synthetic:64x64") for name in (*CAMERAS, *FILES)))
        self.stopped = threading.Event()
        self.readers: list[threading.Thread] = []
        self.handed: Counter[str] = Counter()
        self.gate.set_open(False)
        self.stages.start()

    def deliver(self, frame: Frame, _model: LoadedModel) -> None:
        self.answers.append((frame.source, frame.number))
        self.deepest = max(self.deepest, self.stages._decoding.qsize())

    def hand_in(self, source: str, **more: float) -> Frame:
        self.handed[source] += 1
        return frame_of(source, self.stages.number(source), **more)  # type: ignore[arg-type]

    @rule(source=sources, count=st.integers(1, 4))
    def camera(self, source: str, count: int) -> None:
        for _ in range(count):
            self.stages.newest(self.hand_in(source))

    @rule(source=sources)
    def late_camera(self, source: str) -> None:
        self.stages.rhythms[source].max_age_ms = 1.0
        self.stages.newest(self.hand_in(source, age_s=5.0))
        self.stages.rhythms[source].max_age_ms = 0.0

    @precondition(lambda self: sum(thread.is_alive() for thread in self.readers) < 4)
    @rule(source=files)
    def file(self, source: str) -> None:
        thread = threading.Thread(target=self.stages.every, args=(self.hand_in(source), self.stopped), daemon=True)
        self.readers.append(thread)
        thread.start()

    @rule(count=st.integers(1, 70))
    def crops(self, count: int) -> None:
        for _ in range(count):
            self.stages.fed(self.hand_in("crops"))

    @rule(source=sources)
    def no_picture(self, source: str) -> None:
        frame = self.hand_in(source)
        frame.image = frame.image[:, :, 0]
        self.stages.newest(frame)

    @rule(source=sources)
    def over_the_cap(self, source: str) -> None:
        self.handed[source] += 1
        self.stages.skipped(source, "fps-cap")

    @rule(count=st.integers(1, 8))
    def sessions_run(self, count: int) -> None:
        self.gate.allow(count)

    @rule(source=st.sampled_from((*CAMERAS, *FILES)))
    def source_leaves(self, source: str) -> None:
        self.stages.remove(source)

    @precondition(lambda self: len(self.models) < 3)
    @rule()
    def swap(self) -> None:
        self.gate.set_open(True)  # a new model warms up
        self.models.append(gated_model(self.folder, self.config, "abc"[len(self.models)]))
        self.gate.set_open(False)
        self.stages.swap(self.models[-1])

    def count(self) -> None:
        for series in self.meter.take():
            self.totals["seen"] += series.seen
            self.totals["done"] += series.done
            self.totals.update(series.dropped)

    @property
    def dropped(self) -> int:
        return sum(count for name, count in self.totals.items() if name not in {"seen", "done"})

    @invariant()
    def the_law_holds_all_the_time(self) -> None:
        self.count()
        under_way = self.totals["seen"] - self.totals["done"] - self.dropped
        assert 0 <= under_way <= MOST_UNDER_WAY
        assert not any(isinstance(note, Broken) for note in self.notes)

    def teardown(self) -> None:
        if not hasattr(self, "stages"):
            return
        self.gate.set_open(True)
        self.stopped.set()
        for thread in self.readers:
            thread.join(30)
        self.stages.stop()
        self.count()
        assert self.totals["seen"] == sum(self.handed.values())
        assert self.totals["seen"] == self.totals["done"] + self.dropped, dict(self.totals)
        assert self.totals["done"] == len(self.answers) == len(set(self.answers))
        assert set(self.totals) <= {"seen", "done", "superseded", "feed", "too-old", "unreadable", "fps-cap", "stopped"}
        assert self.deepest <= AHEAD + INLINE + WIDE, "a run that waits for its decoding holds a lane"
        for source in CAMERAS:
            numbers = [number for name, number in self.answers if name == source]
            assert numbers == sorted(numbers)
        for model in self.models:
            free = model._ahead.qsize() + model._inline.qsize()
            until(lambda free=free: free == AHEAD + INLINE, "every lane to be home")  # type: ignore[misc]
        self.ended.close()


Conservation.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestConservation = Conservation.TestCase
