"""What the A/B machine of `slots` remembers, hears and asks for: its state, its events, its effects. Only data.

The state is stored as JSON. `schema` grows when its meaning changes; a stored state that this version does not know is
read by `restore`, which then keeps the committed slot and nothing else.
"""

from __future__ import annotations

from typing import Any, Literal, Union, get_args

import msgspec

from .messages import AppConfig, AppSpec, Message, Source, TrialPolicy
from .policy import Candidate
from .trials import Room, TrialNumbers, WatchNumbers

SCHEMA = 1

Phase = Literal["idle", "fetching", "choosing", "probing", "trial", "keeping"]
FetchStep = Literal["", "manifest", "parts", "weights"]
Outcome = Literal["", "committed", "refused", "rolled_back", "failed"]
PHASES: tuple[Phase, ...] = ("idle", "fetching", "choosing", "probing", "trial", "keeping")


# --- state -------------------------------------------------------------------------------------------------


class Setup(Message, frozen=True):
    """What surrounds a model in a pipeline: config, sources, and the apps before and after it."""

    config: AppConfig = AppConfig()
    sources: tuple[Source, ...] = ()
    input_from: str = ""
    feed_to: tuple[str, ...] = ()
    runner: Literal["builtin", "exec"] = "builtin"


class Target(Message, frozen=True):
    """What a signed deployment wants of one app. `feed_to` are the apps that name this one as `input_from`; `release` is the bundle's
    place among the publications of its model, 0 while that is not known."""

    seq: int
    spec: AppSpec
    rollout: str = ""
    feed_to: tuple[str, ...] = ()
    release: int = 0

    @property
    def setup(self) -> Setup:
        return Setup(self.spec.config, self.spec.sources, self.spec.input_from, self.feed_to, self.spec.runner)


class Slot(Message, frozen=True):
    """One model on disk. `weights` is the blob of the chosen variant, `blobs` all that must not be collected, `release` as in `Target`."""

    bundle: str
    name: str = ""
    version: str = ""
    setup: Setup = Setup()
    candidate: Candidate | None = None
    weights: str = ""
    blobs: tuple[str, ...] = ()
    release: int = 0


class Progress(Message, frozen=True):
    """What a report says: where an update is (`outcome` empty) or how it ended, `phase` being where."""

    seq: int
    phase: Phase
    bundle: str = ""
    version: str = ""
    from_version: str = ""
    outcome: Outcome = ""
    code: str = ""
    detail: str = ""
    candidate: str = ""
    metrics: dict[str, float] = {}
    rollout: str = ""


class AppSlots(Message, frozen=True):
    """All that is remembered of one app. `spent_s` is the time in this phase up to clock reading (`mark`, `boot`). `paused`: nothing runs
    while the challenger is probed, because the board cannot hold it beside the champion."""

    app: str
    schema: int = SCHEMA
    phase: Phase = "idle"
    seq: int = 0
    target: Target | None = None
    champion: Slot | None = None
    challenger: Slot | None = None
    previous: Slot | None = None
    fetch_step: FetchStep = ""
    attempt: int = 0
    champion_crashes: int = 0
    alone: bool = False
    switched: bool = False
    stores: int = 0
    spent_s: float = 0.0
    mark: float = 0.0
    boot: str = ""
    metrics: dict[str, float] = {}
    last: Progress | None = None
    paused: bool = False


# --- reading it back ---------------------------------------------------------------


def restore(app: str, data: bytes | None) -> AppSlots:
    """Read a stored state. What cannot be understood maps to the safe state: idle with the committed slot, if that can be read.

    The deployment number then is 0, so that the stored deployment is applied again from the beginning.
    """
    if data is None:
        return AppSlots(app)
    try:
        state = msgspec.json.decode(data, type=AppSlots)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return _salvage(app, data)
    if state.app != app or state.schema != SCHEMA or not _is_sound(state):
        return AppSlots(app, champion=state.champion if state.app == app else None)
    return state


def _salvage(app: str, data: bytes) -> AppSlots:
    """The committed slot of a record that this version cannot read as a whole: a later release may have added fields anywhere."""
    try:
        found = msgspec.json.decode(data)
        if not isinstance(found, dict) or found.get("app") != app:
            return AppSlots(app)
        return AppSlots(app, champion=msgspec.convert(_known_part(Slot, found.get("champion")), Slot | None))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return AppSlots(app)


def _known_part(kind: Any, value: Any) -> Any:
    """`value` without the fields that `kind` does not have, at any depth."""
    for part in (kind, *get_args(kind)):
        if not (isinstance(part, type) and issubclass(part, msgspec.Struct)):
            continue
        if isinstance(value, list):
            return [_known_part(part, one) for one in value]
        if isinstance(value, dict):
            known = {field.encode_name: field.type for field in msgspec.structs.fields(part)}
            return {name: _known_part(known[name], one) for name, one in value.items() if name in known}
    return value


def _is_sound(state: AppSlots) -> bool:
    """The fields that a phase needs are there."""
    if state.phase == "idle":
        return state.challenger is None
    if state.target is None or state.challenger is None:
        return False
    if state.phase == "trial" and not state.alone and state.champion is None:
        return False
    return state.phase not in ("probing", "trial", "keeping") or state.challenger.candidate is not None


# --- events ------------------------------------------------------------------------------------------------


class Resume(Message, frozen=True, tag="resume"):
    """The supervisor has just started with this stored state."""


class Deploy(Message, frozen=True, tag="deploy"):
    """A verified deployment names this app."""

    target: Target


class Undeploy(Message, frozen=True, tag="undeploy"):
    """A verified deployment does not name this app any more."""

    seq: int


class Fetched(Message, frozen=True, tag="fetched"):
    """All blobs of a step are verified and on disk; `then` are those of the next step, as the content told. `release` is what the signed
    target says, which may have come after the deployment. `received` bytes were needed, `by_delta` of them as deltas, which `saved` so
    many; `carried` are all that came for it, repeats and what only others needed included."""

    bundle: str
    step: FetchStep
    then: tuple[str, ...] = ()
    received: int = 0
    release: int = 0
    by_delta: int = 0
    saved: int = 0
    carried: int = 0


class Chosen(Message, frozen=True, tag="chosen"):
    """The board has measured its candidates and chose one; None when nothing can run, with the reason."""

    bundle: str
    candidate: Candidate | None
    weights: str = ""
    reason: str = ""


class Probed(Message, frozen=True, tag="probed"):
    """The throw-away process has answered the signed probe set, which asks for agreement `bound`; `code` is set when it could not run, and
    `unstarted` when it was not even started for want of memory. `room` is the memory that a trial would need and has, `champion_p99_ms` how
    fast the running model has been lately (0: not known)."""

    bundle: str
    agreement: float
    code: str = ""
    detail: str = ""
    bound: float = 0.0
    room: Room = Room()
    champion_p99_ms: float = 0.0
    unstarted: bool = False


class Compared(Message, frozen=True, tag="compared"):
    """Challenger and champion have run on the same live frames; `code` is set when the challenger could not run."""

    bundle: str
    numbers: TrialNumbers
    code: str = ""
    detail: str = ""


class Ran(Message, frozen=True, tag="ran"):
    """The pipeline runs this model now, started from nothing; `gap_ms` after another one was told to stop for it (0: none was)."""

    bundle: str
    gap_ms: float = 0.0


class TookOver(Message, frozen=True, tag="took-over"):
    """The pipeline has switched to this model between two frames."""

    bundle: str
    gap_ms: float = 0.0
    frames_lost: int = 0
    steady_gap_p99_ms: float = 0.0


class Watched(Message, frozen=True, tag="watched"):
    """How the model that has taken over does while the old one is kept."""

    bundle: str
    numbers: WatchNumbers


class Faulted(Message, frozen=True, tag="faulted"):
    """Work on the challenger ended. `model`: it is the bundle's doing (malformed, unsigned), not the board's (disk full)."""

    bundle: str
    code: str
    detail: str = ""
    model: bool = False


class Crashed(Message, frozen=True, tag="crashed"):
    """The pipeline process ended. `bundle` is the model it blamed, empty when it could not say."""

    bundle: str = ""
    code: str = ""
    detail: str = ""


class Rechosen(Message, frozen=True, tag="rechosen"):
    """The champion's bundle was measured again, because the board is another one than it was (power mode, heat): this candidate of it has
    won, and has passed the signed probe set. `reason` says what changed."""

    bundle: str
    candidate: Candidate
    weights: str
    reason: str = ""


class Tick(Message, frozen=True, tag="tick"):
    """Time has passed: see `next_tick`."""


Event = Union[Resume, Deploy, Undeploy, Fetched, Chosen, Probed, Compared, Ran, TookOver, Watched, Faulted, Crashed, Rechosen, Tick]


# --- effects -----------------------------------------------------------------------------------------------


class Persist(Message, frozen=True, tag="persist"):
    """Make this state durable; until that succeeded, run nothing that follows."""

    state: AppSlots


class Fetch(Message, frozen=True, tag="fetch"):
    """Get these blobs into the store, then say `Fetched`."""

    bundle: str
    step: FetchStep
    blobs: tuple[str, ...]


class Choose(Message, frozen=True, tag="choose"):
    """Measure the candidates, then say `Chosen`."""

    bundle: str


class Probe(Message, frozen=True, tag="probe"):
    """Run the probe set in a throw-away process, then say `Probed`."""

    slot: Slot


class StartPipeline(Message, frozen=True, tag="start"):
    """The app's pipeline runs this slot; started, or restarted with back-off, unless it already does."""

    slot: Slot


class Configure(Message, frozen=True, tag="configure"):
    """The running pipeline has this setup."""

    setup: Setup


class Try(Message, frozen=True, tag="try"):
    """The running pipeline compares this slot with its model, as soon as it runs."""

    slot: Slot
    policy: TrialPolicy


class Switch(Message, frozen=True, tag="switch"):
    """The running pipeline answers with this bundle; the old model stays loaded for `keep_s`."""

    bundle: str
    keep_s: float


class Watch(Message, frozen=True, tag="watch"):
    """The running pipeline, which was started with this bundle, tells how it does; `old_p99_ms` is the model's before it, 0 if unknown."""

    bundle: str
    policy: TrialPolicy
    old_p99_ms: float


class DropChallenger(Message, frozen=True, tag="drop"):
    """The running pipeline has no challenger loaded."""

    bundle: str


class Back(Message, frozen=True, tag="back"):
    """The pipeline answers with this slot again: from memory when it still can, else started anew."""

    slot: Slot


class StopPipeline(Message, frozen=True, tag="stop"):
    """The app has no pipeline."""


class Abandon(Message, frozen=True, tag="abandon"):
    """Nobody fetches, measures or probes for this bundle any more."""

    bundle: str


class SendReport(Message, frozen=True, tag="report"):
    """The host learns this; the same `progress` is one report however often it is sent."""

    progress: Progress


class CollectGarbage(Message, frozen=True, tag="collect"):
    """Blobs that no slot of any app holds may go."""


Effect = Union[Persist, Fetch, Choose, Probe, StartPipeline, Configure, Try, Switch, Watch, DropChallenger, Back, StopPipeline,
               Abandon, SendReport, CollectGarbage]
Effects = tuple[Effect, ...]
EVENTS: tuple[type, ...] = (Resume, Deploy, Undeploy, Fetched, Chosen, Probed, Compared, Ran, TookOver, Watched, Faulted, Crashed,
                            Rechosen, Tick)
