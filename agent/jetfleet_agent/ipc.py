"""What supervisor and pipeline say to each other: JSON lines over a Unix socket, one pipeline process an app.

The supervisor listens on ``<state>/run/supervisor.sock`` (mode 0600, peer credentials checked) and starts
``python -m jetfleet_agent.pipeline --app APP --socket PATH``. The pipeline connects, says `Hello`, and is told what to
run. Frames never cross this socket. Order of a swap:

    Run(champion) ... Try(challenger) -> TrialResult -> Switch | Drop -> Switched -> Watched ... -> Back | time to forget the old one
"""

from __future__ import annotations

from typing import Literal, Union

import msgspec

from jetfleet_contract.bundle import ModelSpec
from jetfleet_contract.crops import Note
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import AppConfig, Message, Result, Series, Source, TrialPolicy
from jetfleet_contract.policy import Candidate
from jetfleet_contract.predictions import Detection
from jetfleet_contract.trials import TrialNumbers, WatchNumbers
from jetfleet_contract.tuning import Tuning

MAX_LINE_BYTES = 1 << 20


class Way(Message, frozen=True):
    """One way to run a model: which verified file of its bundle, on which runtime. `tuning` is how that is set up, as this board measured
    it, and `eco` how it takes clearly less CPU time; None where nothing does."""

    candidate: Candidate
    path: str
    tuning: Tuning = Tuning()
    eco: Tuning | None = None


class Model(Message, frozen=True):
    """A verified model on disk: which bundle, which file, how to run it. `bundle` is the manifest's 64 hex digits; `tuning` is how its
    runtime is set up, as this board measured it, and `eco` how it takes clearly less CPU time; None where nothing does. `engine` is
    what was compiled from the file for that tuning, here or on a board alike; None: the pipeline compiles. `lean`
    is the way to run it while the board is hot: another candidate of the same bundle. `kernels` is the agent's state folder, where
    kernels that the host signed lie; empty: only the wheel's are looked for."""

    bundle: str
    version: str
    candidate: Candidate
    path: str
    spec: ModelSpec
    threads: int = 0
    tuning: Tuning = Tuning()
    eco: Tuning | None = None
    engine: EngineFile | None = None
    lean: Way | None = None
    kernels: str = ""


# --- supervisor -> pipeline -----------------------------------------------------------------------------------


class SinkPlaces(Message, frozen=True):
    """Where this board lets an app's sinks write and listen: the folder of its result files (empty: none) with the bound on all of one
    sink's files in MB, the folder of result sockets (empty: none), and the address that previews with a token bind to."""

    files: str = ""
    files_mb: int = 1024
    sockets: str = ""
    preview_address: str = "127.0.0.1"


class Run(Message, frozen=True, tag="run"):
    """Start, or restart from nothing, with this model, these sources, this config.

    `feed` is the folder of Unix sockets for chained apps: an app with `input_from` listens on ``feed/APP.sock`` and
    receives crops from the app that it names. `stuck_s`: a part that has been in one call of a driver or a vendor's library for so long is
    taken for hung.
    """

    model: Model
    config: AppConfig
    sources: tuple[Source, ...] = ()
    input_from: str = ""
    feed_to: tuple[str, ...] = ()
    feed: str = ""
    window_s: float = 10.0
    places: SinkPlaces = SinkPlaces()
    stuck_s: float = 30.0
    runner: Literal["builtin", "exec"] = "builtin"


class Configure(Message, frozen=True, tag="configure"):
    """Change settings or sources of the running app; no model change, no trial."""

    config: AppConfig
    sources: tuple[Source, ...] = ()
    feed_to: tuple[str, ...] = ()


class Try(Message, frozen=True, tag="try"):
    """Load the challenger beside the champion and run both on live frames until `policy.frames` were compared."""

    model: Model
    policy: TrialPolicy


class Switch(Message, frozen=True, tag="switch"):
    """Put the challenger in the champion's place between two frames; keep the old one loaded for `keep_s`."""

    bundle: str
    keep_s: float = 30.0


class Watch(Message, frozen=True, tag="watch"):
    """Say `Watched` from time to time how the running model does, whose process was started with it: no old one is there to compare with,
    only its p99 `old_p99_ms` (0: not known)."""

    bundle: str
    policy: TrialPolicy
    old_p99_ms: float = 0.0


class Heat(Message, frozen=True, tag="heat"):
    """Whether the board is slowed down for heat or power: nothing is shadowed while it is."""

    throttled: bool


class Drop(Message, frozen=True, tag="drop"):
    """Unload the challenger; the champion never stopped."""

    bundle: str


class Back(Message, frozen=True, tag="back"):
    """Put the previous model back, from memory while it is still loaded."""


class Pace(Message, frozen=True, tag="pace"):
    """How much the app may do while the board is short of cooling or power; obeyed at once, without a restart, and until the next one.

    `fps`: frames a second that are read of each source at most, by its name; ``""`` stands for every source that is not named. A source's
    own `fps` stays a bound. An empty map lifts all caps. `hot`: nothing may run that can wait, as a trial's shadow.
    `eco`: the model runs as `Model.eco` says, exchanged between two frames; `lean`: the same with `Model.lean`; `whole`: frames are not cut
    into tiles. `reason` is a stable code, empty when all is well.
    """

    fps: dict[str, float] = {}
    hot: bool = False
    reason: str = ""
    eco: bool = False
    whole: bool = False
    lean: bool = False

    def cap(self, source: str) -> float:
        """Frames a second of that source at most; 0: no cap."""
        return self.fps.get(source, self.fps.get("", 0.0))


class Answered(Message, frozen=True, tag="answered"):
    """What the host says of crop `name`, in the pixels of the canvas that it was cut from; `code` when it says nothing, or never will."""

    name: str
    detections: tuple[Detection, ...] = ()
    code: str = ""


class Stop(Message, frozen=True, tag="stop"):
    """Finish the frame in hand, close the sources, exit 0."""


Order = Union[Run, Configure, Try, Switch, Watch, Heat, Drop, Back, Pace, Answered, Stop]


# --- pipeline -> supervisor -----------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """First line of a connection."""

    app: str
    pid: int


class Running(Message, frozen=True, tag="running"):
    """The model is loaded and its first frame has been answered (or no frame came within 5 s: `frames` is then 0). `floor_ms`: its session
    alone, at warm-up; `tuning`: how its runtime is set up, in words; `gpu_work`: what
    `Backend.gpu_work` says. `at` is when that first answer was
    out, in seconds of the machine's monotonic clock, which all its processes share."""

    bundle: str
    candidate: str
    provider: str = ""
    frames: int = 0
    floor_ms: float = 0.0
    tuning: str = ""
    at: float = 0.0
    gpu_work: str = ""


class TrialResult(Message, frozen=True, tag="trial"):
    """The comparison on live frames is done, or the challenger failed to load or run (`code` is then set)."""

    bundle: str
    numbers: TrialNumbers
    code: str = ""
    detail: str = ""


class Switched(Message, frozen=True, tag="switched"):
    """The other model answers now. `gap_ms` is the time between the last result before and the first one after."""

    bundle: str
    candidate: str
    gap_ms: float
    frames_lost: int
    steady_p99_gap_ms: float = 0.0


class Watched(Message, frozen=True, tag="watched"):
    """How the model that took over does while the old one is kept. Heat is not ours to tell."""

    bundle: str
    numbers: WatchNumbers


class Window(Message, frozen=True, tag="window"):
    """Counters and sketches since the last window. The gauge `work_p99_ms` is the running model's own time a frame (pre-processing, session
    and decoding), over the frames that nothing was shadowed beside."""

    started: float
    duration_s: float
    series: tuple[Series, ...]
    gauges: dict[str, float] = {}


class Results(Message, frozen=True, tag="results"):
    """Results for what the supervisor sends on: MQTT and webhooks. Bounded: the oldest go, counted, when the socket is full."""

    results: tuple[Result, ...]


class CropReady(Message, frozen=True, tag="crop"):
    """A crop of something uncertain lies in the app's spool under this name. Whether it leaves the board is the supervisor's to say."""

    name: str
    note: Note


class SourceEvent(Message, frozen=True, tag="source"):
    """A source came, went or ended; `code` is the typed cause. Never convicts a model."""

    source: str
    up: bool
    code: str = ""
    detail: str = ""


class Raised(Message, frozen=True, tag="raised"):
    """An alarm begins (`up`) or ends. It stands until it ends or the process does; `code` is stable, `source` may be empty, a camera, or
    what stands behind the model: ``sink.NAME``, ``kpi`` or ``tracking``."""

    source: str
    up: bool
    code: str
    detail: str = ""


class Stuck(Message, frozen=True, tag="stuck"):
    """A part has been in one call for `seconds`. `code`: ``watchdog.source`` (that source was opened anew beside the hung thread; `fatal`
    when there are too many of those), ``watchdog.infer``, ``watchdog.decode``, ``watchdog.sink``. A thread cannot be ended, so `fatal`
    asks for a new process."""

    code: str
    part: str
    seconds: float
    fatal: bool


class Failed(Message, frozen=True, tag="failed"):
    """The running model failed; the process exits next. `code` is stable."""

    bundle: str
    code: str
    detail: str


Event = Union[Hello, Running, TrialResult, Switched, Watched, Window, Results, CropReady, SourceEvent, Raised, Stuck, Failed]

_ENCODER = msgspec.json.Encoder()
_ORDERS = msgspec.json.Decoder(Order)
_EVENTS = msgspec.json.Decoder(Event)


def to_line(message: msgspec.Struct) -> bytes:
    """One JSON line, newline included."""
    return _ENCODER.encode(message) + b"\n"


def order_from(line: bytes) -> Order:
    """Decode a line from the supervisor, or MalformedError `ipc.bad`."""
    try:
        order: Order = _ORDERS.decode(line)
        return order
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError("ipc.bad", f"not an order: {error}") from None


def event_from(line: bytes) -> Event:
    """Decode a line from a pipeline, or MalformedError `ipc.bad`."""
    if len(line) > MAX_LINE_BYTES:
        raise MalformedError("ipc.large", f"a line of {len(line)} bytes is over the limit")
    try:
        event: Event = _EVENTS.decode(line)
        return event
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError("ipc.bad", f"not an event: {error}") from None
