"""The words of the rollout machine: its state, the events that it takes and the effects that it asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Union

import msgspec

from .gates import BoardEvidence, GateName
from .messages import Instant, Message
from .rollout_plan import Plan

Phase = Literal["planned", "waiting", "running", "holding", "paused", "reverting", "done", "stopped", "aborted", "reverted"]
Status = Literal["waiting", "issued", "committed", "refused", "rolled_back", "failed", "silent", "reverting", "reverted", "stuck"]

FINAL: frozenset[str] = frozenset({"done", "stopped", "aborted", "reverted"})
BAD: frozenset[str] = frozenset({"refused", "rolled_back", "failed"})


class Progress(Message, frozen=True):
    """One board's part of a rollout."""

    wave: int
    status: Status = "waiting"
    code: str = ""
    detail: str = ""


class Verdict(Message, frozen=True):
    """What a gate said of a wave. `undecided`: the evidence did not suffice, and the plan's policy or an operator decided."""

    wave: int
    gate: GateName
    passed: bool
    why: str
    numbers: dict[str, float] = {}
    undecided: bool = False


class Spending(Message, frozen=True):
    """Bytes that all boards of a rollout have received: in all, and on UTC day `day` (days since 1970)."""

    total: int = 0
    today: int = 0
    day: int = 0


class Rollout(Message, frozen=True):
    """The whole state. `since` is when the current phase began; `resume_to` is set while paused.

    `standing` is what the gates said when they last looked and were not agreed; `looks` counts these looks. Up to wave `accepted` an
    operator has overruled the gates; `waived`: and the budget. `spent` is the last that was heard of it.
    """

    plan: Plan
    devices: dict[str, Progress]
    phase: Phase = "planned"
    wave: int = -1
    since: Instant | None = None
    resume_to: Phase = "planned"
    verdicts: tuple[Verdict, ...] = ()
    code: str = ""
    reason: str = ""
    standing: tuple[Verdict, ...] = ()
    looks: int = 0
    accepted: int = -1
    waived: bool = False
    spent: Spending = Spending()

    def wave_devices(self, wave: int) -> tuple[str, ...]:
        return self.plan.waves[wave] if 0 <= wave < len(self.plan.waves) else ()

    def count(self, statuses: Iterable[str], wave: int | None = None) -> int:
        """How many boards (of one wave, or of all) have one of these statuses."""
        wanted = set(statuses)
        return sum(p.status in wanted and wave in (None, p.wave) for p in self.devices.values())

    @property
    def final(self) -> bool:
        return self.phase in FINAL


# --- events ------------------------------------------------------------------------------------------------------


class Start(Message, frozen=True):
    """Begin with the canary."""


class Outcome(Message, frozen=True):
    """A board's verified answer to what this rollout issued to it; `back` when it answers the way back."""

    device: str
    outcome: Literal["committed", "refused", "rolled_back", "failed"]
    code: str = ""
    detail: str = ""
    back: bool = False


class Evidence(Message, frozen=True):
    """What the boards of the wave under way have shown so far. Boards that have not committed count for nothing."""

    boards: tuple[BoardEvidence, ...]


class Tick(Message, frozen=True):
    """Time has passed."""


class Spent(Message, frozen=True):
    """The boards have received this much."""

    spending: Spending


class Joined(Message, frozen=True):
    """Boards that the plan's selector fits and that were not there when it was made, with the version each runs (empty: none)."""

    boards: dict[str, str]


class Pause(Message, frozen=True):
    """No further waves until `Resume`; boards that already have the new deployment go on."""


class Resume(Message, frozen=True):
    """Go on where it stopped; the clocks of the phase start anew. With `accept`, an operator (`by`) overrules what the gates said of this
    wave, or the budget."""

    accept: bool = False
    by: str = ""


class Abort(Message, frozen=True):
    """End now; with `rollback` the touched boards get their old version again."""

    rollback: bool = False


class Restored(Message, frozen=True):
    """The host has loaded this state from its journal: repeat the effects that may have been lost."""


Event = Union[Start, Outcome, Evidence, Tick, Spent, Joined, Pause, Resume, Abort, Restored]


# --- effects -----------------------------------------------------------------------------------------------------


class Persist(Message, frozen=True):
    """Make `state` durable; `changed` names the boards whose `Progress` differs from the last durable one."""

    state: Rollout
    changed: tuple[str, ...] = ()


class Issue(Message, frozen=True):
    """Give this board the new bundle, unless this rollout already did."""

    device: str


class Revert(Message, frozen=True):
    """Give this board what it had before this rollout, unless this rollout already did."""

    device: str


Effect = Union[Persist, Issue, Revert]
Step = tuple[Rollout, tuple[Effect, ...]]


def changed(state: Rollout, **values: object) -> Rollout:
    """The state with some fields replaced."""
    return msgspec.structs.replace(state, **values)


def with_devices(state: Rollout, progress: dict[str, Progress]) -> Rollout:
    return changed(state, devices={**state.devices, **progress})


def with_verdicts(state: Rollout, *verdicts: Verdict) -> Rollout:
    return changed(state, verdicts=(*state.verdicts, *verdicts))
