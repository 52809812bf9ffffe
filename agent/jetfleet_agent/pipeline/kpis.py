"""Business figures: a user's installed hook looks at each answered frame and attaches numbers to its result.

A hook is an entry point of group ``jetfleet.kpis``: a function of an `Answer`, or a class that is made once with the app's `kpi_options`
(a dict) and then called with an `Answer`. It runs in the decode thread, so its time is measured (stage ``kpi``) and its faults cost their
frame's figures only; a hook that is slow again and again is switched off, because results would come late for it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.sinks.port import Voice
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, RuntimeFailure
from jetfleet_contract.kpis import MAX_KPIS, as_values, checked
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.predictions import Detection

log = logging.getLogger(__name__)

GROUP = "jetfleet.kpis"
SLOW_MS = 20.0
SLOW_OF = 100
MAX_SLOW = 25

Options = Mapping[str, float | str | bool]
Hook = Callable[["Answer"], object]


class Answer(msgspec.Struct, frozen=True):
    """What a hook sees of a frame: no pixels. `frame` counts the source's frames, `at` is seconds since 1970, `captured` monotonic seconds
    (for rates and dwell times), `width` and `height` are the frame's in pixels, which boxes are given in."""

    app: str
    source: str
    frame: int
    at: float
    captured: float
    width: int
    height: int
    detections: tuple[Detection, ...]


def load_hook(name: str, options: Options) -> Hook:
    """The installed hook of that name, ready to be called.

    Raises:
        InputError: `kpi.unknown`. RuntimeFailure: `kpi.load`.
    """
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in points:
        raise InputError("kpi.unknown", f"no KPI hook {name[:63]!r} is installed; there are: {', '.join(sorted(points)) or 'none'}",
                         remedy=f"install a package with an entry point of group {GROUP} on the board")
    try:
        loaded: Any = points[name].load()
        hook: Hook = loaded(dict(options)) if isinstance(loaded, type) else loaded
    except Exception as error:
        log.exception("KPI hook %s", name)
        raise RuntimeFailure("kpi.load", f"KPI hook {name} cannot be loaded: {type(error).__name__}") from None
    if not callable(hook):
        raise RuntimeFailure("kpi.load", f"KPI hook {name} is neither a function nor a class whose objects can be called")
    return hook


class KpiStep:
    """A `Step`. Figures go into `frame.kpis` and, as sketches, into the meter.

    Args:
        send: hands an event to the supervisor; never waits.
        clock: monotonic seconds.
    """

    def __init__(self, app: str, meter: Meter, send: Callable[[Raised], None], *, load: Callable[[str, Options], Hook] = load_hook,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._meter = meter
        self._voice = Voice("kpi", send)
        self._load = load
        self._clock = clock
        self._wanted: tuple[str, Options] = ("", {})
        self._hook: Hook | None = None
        self._slow: deque[bool] = deque(maxlen=SLOW_OF)
        self._told: set[str] = set()
        self._names: set[str] = set()
        self.faults: Counter[str] = Counter()

    def configure(self, config: AppConfig) -> None:
        """Another hook or other options load it anew; what is unchanged keeps its state, and stays off if it was switched off."""
        wanted = config.kpis, config.kpi_options
        if wanted == self._wanted:
            return
        self._wanted = wanted
        self._hook = None
        self._slow = deque(maxlen=SLOW_OF)
        self._told = set()
        self._names = set()
        if not config.kpis:
            self._voice.up()
            return
        try:
            self._hook = self._load(config.kpis, config.kpi_options)
        except JetfleetError as error:
            self._tell(error)
            return
        self._voice.up()

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:  # noqa: ARG002 - a Step's shape
        hook = self._hook
        if hook is None:
            return
        height, width = frame.image.shape[:2]
        answer = Answer(self._app, frame.source, frame.number, frame.wall, frame.captured, width, height, frame.detections)
        began = self._clock()
        try:
            kpis = checked(hook(answer))
            self._know(kpis)
        except JetfleetError as error:
            self._tell(error)
        except Exception as error:
            if "kpi.error" not in self._told:
                log.exception("KPI hook %s", self._wanted[0])
            self._tell(RuntimeFailure("kpi.error", f"KPI hook {self._wanted[0]} raised {type(error).__name__}; the board's log has more"))
        else:
            frame.kpis = {**frame.kpis, **kpis}
            self._meter.values(model.key, frame.source, as_values(kpis))
        took_ms = (self._clock() - began) * 1e3
        self._meter.stage(model.key, frame.source, "kpi", took_ms)
        self._judge(took_ms)

    def counts(self) -> dict[str, float]:
        """Faults since the start by code, as gauges."""
        return {f"{code}s": float(count) for code, count in self.faults.items()}

    def close(self) -> None:
        self._hook = None

    def _know(self, kpis: Mapping[str, float]) -> None:
        """Names are bounded over the hook's life, too. MalformedError `kpi.count`."""
        if not self._names.issuperset(kpis):
            names = self._names.union(kpis)
            if len(names) > MAX_KPIS:
                raise MalformedError("kpi.count", f"the hook's figures have had more than {MAX_KPIS} names")
            self._names = names

    def _judge(self, took_ms: float) -> None:
        self._slow.append(took_ms > SLOW_MS)
        if took_ms > SLOW_MS and sum(self._slow) >= MAX_SLOW:
            self._hook = None
            self._tell(RuntimeFailure("kpi.slow", f"KPI hook {self._wanted[0]} took over {SLOW_MS:.0f} ms for {MAX_SLOW} of "
                                                  f"{len(self._slow)} frames and is switched off until its settings change"))

    def _tell(self, error: JetfleetError) -> None:
        """Each kind of trouble is said once, until the settings change; all are counted."""
        self.faults[error.code] += 1
        if error.code not in self._told:
            self._told.add(error.code)
            self._voice.down(error)
