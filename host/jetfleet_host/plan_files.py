"""A rollout's plan as an operator writes it, in TOML: read, checked, and given over as what it means.

Lengths of time are seconds or ``30s``, ``10m``, ``2h``, ``1d``; sizes are bytes or ``500 MB``, ``2 GB`` (powers of ten). A number of boards
is a count or a share of all boards, ``"10%"``, rounded up, so that no wave is empty. An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from jetfleet_contract.errors import InputError
from jetfleet_contract.gates import Gates
from jetfleet_contract.kpis import MAX_KPIS, KpiBound, is_name
from jetfleet_contract.messages import DeliveryPolicy, TrialPolicy
from jetfleet_contract.rollout_plan import Budget, OnBreach, Selector, Window
from jetfleet_contract.unknown_keys import refuse_unknown

from .store.journal import Overrides

MAX_PLAN_BYTES = 256 * 1024
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Size = int | str
"""A number of boards: a count, or a share as ``"10%"``."""
Length = float | str
Bytes = int | str

_LENGTH = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhd])")
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kMGT]?)B")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)\s*%")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_POWERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Hours = tuple[Annotated[int, Meta(ge=0, le=23)], Annotated[int, Meta(ge=0, le=24)]]
T = TypeVar("T")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class SelectSection(_Section, frozen=True, rename={"classes": "class"}):
    """Which boards; see `rollout_plan.Selector`. `devices` names them, in the order of the waves. `follow`: new ones join."""

    devices: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    tags: dict[str, str | tuple[str, ...]] = {}
    exclude: tuple[str, ...] = ()
    everybody: bool = False
    follow: bool = False


class WindowSection(_Section, frozen=True):
    hours: Hours = (0, 24)
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()


class GatesSection(_Section, frozen=True):
    """See `gates.Gates`; `max_bad` is 0 unless `min_success` allows for some. `kpi` bounds business figures by name."""

    max_bad: int | None = None
    min_success: Share = 1.0
    confidence: Annotated[float, Meta(ge=0.5, lt=1.0)] = 0.95
    max_p95_ratio: Annotated[float, Meta(ge=0.0)] = 2.0
    max_p99_ratio: Annotated[float, Meta(ge=0.0)] = 0.0
    min_samples: Annotated[int, Meta(ge=1)] = 30
    min_agreement: Share = 0.0
    min_probe_agreement: Share = 0.0
    max_crashes: int = -1
    max_temperature_c: Annotated[float, Meta(ge=0.0, le=200.0)] = 0.0
    max_throttled: Share = 1.0
    evidence: Length = 120.0
    on_undecided: Literal["pause", "pass", "breach"] = "pause"
    kpi: dict[str, KpiBound] = {}


class DeliverySection(_Section, frozen=True):
    """See `messages.DeliveryPolicy`."""

    on_delta_failure: Literal["fail", "full"] = "fail"
    bytes_per_day: Bytes = 0
    hours: tuple[Hours, ...] = ()


class BudgetSection(_Section, frozen=True):
    """See `rollout_plan.Budget`."""

    max_bytes: Bytes = 0
    max_bytes_per_day: Bytes = 0


class PlanFile(_Section, frozen=True):
    """The whole file. `model` is NAME:VERSION, `apps` a path relative to the file."""

    app: str = ""
    model: str = ""
    apps: str = ""
    canary: Size = 1
    waves: tuple[Size, ...] = ()
    wave_size: Size = 0
    hold: Length | tuple[Length, ...] = 30.0
    timeout: Length = 3600.0
    on_breach: OnBreach = "rollback"
    select: SelectSection = SelectSection()
    windows: tuple[WindowSection, ...] = ()
    gates: GatesSection = GatesSection()
    budget: BudgetSection = BudgetSection()
    delivery: DeliverySection | None = None
    trial: TrialPolicy | None = None


def read_plan(path: Path) -> PlanFile:
    """Read a plan; its `apps` becomes an absolute path.

    Raises:
        InputError: `plan.unreadable`, `plan.syntax`, `plan.unknown`, `plan.value`.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_PLAN_BYTES:
            raise InputError("plan.syntax", f"{path.name} is over the limit of {MAX_PLAN_BYTES} bytes", where=str(path))
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise InputError("plan.unreadable", f"cannot read {path}: {error.strerror}", where="--plan",
                         remedy="jetfleet rollout plan --example > plan.toml") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError("plan.syntax", f"{path.name} is no TOML: {error}", where=str(path),
                         remedy="jetfleet rollout plan --example shows one") from None
    return plan_of(table, path)


def plan_of(table: dict[str, Any], path: Path) -> PlanFile:
    """What a plan's table says; everything in it is checked. Raises InputError `plan.unknown`, `plan.value`."""
    refuse_unknown(table, PlanFile, "plan.unknown", path.name, str(path))
    try:
        plan = msgspec.convert(table, PlanFile)
        for size in (plan.canary, plan.wave_size, *plan.waves):
            boards_of(size, 1)
        for read in (gates_of, holds_of, windows_of, budget_of, overrides_of, selector_of):
            read(plan)
    except (msgspec.ValidationError, ValueError) as error:
        raise InputError("plan.value", f"a value in {path.name} is wrong: {error}", where=str(path),
                         remedy="jetfleet rollout plan --example shows each key") from None
    return msgspec.structs.replace(plan, apps=str(path.parent / plan.apps) if plan.apps else "")


# --- what a plan means ---------------------------------------------------------------------------------------------


def boards_of(size: Size, total: int) -> int:
    """How many of `total` boards: a share is rounded up. Raises ValueError when it is neither a count nor a share."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _SHARE.fullmatch(str(size))
    if match is None or float(match[1]) > 100.0:
        raise ValueError(f"{size!r} is no number of boards: a count, or a share as \"10%\"")
    return -int(-total * float(match[1]) // 100.0)


def seconds_of(length: Length) -> float:
    """A length of time in seconds. Raises ValueError."""
    if isinstance(length, (int, float)) and 0.0 <= length < 1e9:
        return float(length)
    match = _LENGTH.fullmatch(str(length))
    if match is None:
        raise ValueError(f"{length!r} is no length of time: seconds, or 30s, 10m, 2h, 1d")
    return float(match[1]) * _UNITS[match[2]]


def bytes_of(size: Bytes) -> int:
    """A number of bytes. Raises ValueError."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _BYTES.fullmatch(str(size))
    if match is None:
        raise ValueError(f"{size!r} is no number of bytes: a count, or 500 MB, 2 GB")
    return int(float(match[1]) * _POWERS[match[2]])


def gates_of(plan: PlanFile) -> Gates:
    """The gates; hold is that of the first wave."""
    said = plan.gates
    max_bad = said.max_bad if said.max_bad is not None else (0 if said.min_success >= 1.0 else -1)
    return Gates(max_bad, said.min_success, said.max_p95_ratio, said.min_samples, holds_of(plan)[0], seconds_of(said.evidence),
                 seconds_of(plan.timeout), said.confidence, said.max_p99_ratio, said.min_agreement, said.min_probe_agreement,
                 said.max_crashes, said.max_temperature_c, said.max_throttled, said.on_undecided, _kpis_of(said.kpi))


def _kpis_of(said: dict[str, KpiBound]) -> dict[str, KpiBound]:
    if len(said) > MAX_KPIS:
        raise ValueError(f"gates.kpi bounds {len(said)} figures, an app has at most {MAX_KPIS}")
    for name, bound in said.items():
        if not is_name(name):
            raise ValueError(f"gates.kpi.{name[:60]!s} is no name of a figure: 1 to 40 of a-z, 0-9, '_', '-'")
        if bound == KpiBound():
            raise ValueError(f"gates.kpi.{name} sets no bound: least, most, min_ratio or max_ratio")
    return dict(said)


def holds_of(plan: PlanFile) -> tuple[float, ...]:
    """Seconds that each wave is watched, the last of them for all further ones; never empty."""
    lengths = plan.hold if isinstance(plan.hold, tuple) else (plan.hold,)
    if not lengths:
        raise ValueError("hold is empty")
    return tuple(seconds_of(length) for length in lengths)


def windows_of(plan: PlanFile) -> tuple[Window, ...]:
    """When waves may open."""
    if any(window.hours[0] == window.hours[1] for window in plan.windows):
        raise ValueError("a window's hours [from, to) are empty")
    return tuple(Window(window.hours, tuple(sorted(DAYS.index(day) for day in window.days))) for window in plan.windows)


def budget_of(plan: PlanFile) -> Budget:
    return Budget(bytes_of(plan.budget.max_bytes), bytes_of(plan.budget.max_bytes_per_day))


def overrides_of(plan: PlanFile) -> Overrides:
    """What the plan sets of the app itself."""
    said = plan.delivery
    return Overrides(plan.trial, DeliveryPolicy(said.on_delta_failure, bytes_of(said.bytes_per_day), said.hours) if said else None)


def selector_of(plan: PlanFile) -> Selector | None:
    """The boards that the plan means; None when it does not say, or names them."""
    said = plan.select
    tags = {key: (globs,) if isinstance(globs, str) else globs for key, globs in said.tags.items()}
    if said.site:
        tags["site"] = said.site
    if not (said.names or said.classes or tags or said.everybody):
        return None
    return Selector(said.names, said.classes, tags, said.exclude)


EXAMPLE = """\
# A rollout's plan: jetfleet rollout start --plan plan.toml. What is left out has the value shown.

app = "reader"
model = "ocr:2"
# apps = "apps.toml"          # settings of the app; without it boards keep what they have

canary = 1                    # boards of the first wave: a count, or a share as "5%" (rounded up)
waves = ["10%", "40%"]        # the waves after it; what is left over is a last one
# wave_size = 20              # instead of waves: all of one size
hold = ["10m", "1h"]          # how long each wave is watched, the last length for all further ones
timeout = "1h"                # a board that has not answered by then is silent
on_breach = "rollback"        # or pause (a person decides), or abort (the boards keep what they have)

[select]                      # any of a list, all of the keys, none of exclude; * and ? fit anything
class = ["orin-*"]
# names = ["dock-*"]
# devices = ["dock-1", "dock-2"]     # or exactly these, in this order
# site = ["berlin*"]                 # jetfleet devices tag dock-1 site=berlin-2 line=3
# tags = { line = ["3", "4"] }
exclude = ["dock-9", "site=lab"]
follow = false                # true: boards that come later join the last wave

[[windows]]                   # when a wave may open, UTC; boards under way go on. None: always
hours = [22, 4]
days = ["mon", "tue", "wed", "thu"]

[gates]
min_success = 0.95            # share of a wave that must commit; judged with the confidence below
confidence = 0.95
max_p95_ratio = 1.2           # new over old latency on the same boards; 0: no such gate
max_p99_ratio = 1.5
min_agreement = 0.0           # of live frames with the old model, as boards reported it; 0: no such gate
min_probe_agreement = 0.0     # of the probe set
max_crashes = 0               # of the pipeline on any board; -1: no such gate
max_temperature_c = 90.0      # 0: no such gate
max_throttled = 0.5           # share of a board's windows; 1: no such gate
evidence = "10m"              # how long after the hold the gates may look for evidence
on_undecided = "pause"        # or pass, or breach: what follows when it did not suffice
# [gates.kpi.people]          # the mean over frames of a figure that the app's KPI hook gives; any of:
# min_ratio = 0.9             # new over old on the same boards
# max_ratio = 1.1
# least = 0.5                 # by itself
# most = 40.0

[budget]                      # bytes that all boards together may receive; 0: no bound
max_bytes = "20 GB"
max_bytes_per_day = "5 GB"    # when it is used up, the next wave waits for tomorrow

[delivery]                    # of each board
on_delta_failure = "fail"     # or full: fetch everything when a delta cannot be applied
bytes_per_day = "500 MB"
hours = [[20, 6]]             # UTC hours in which a board asks for chunks

[trial]                       # the board's own trial of the new model
frames = 30                   # so many live frames are answered by both models
min_agreement = 0.7           # of their answers: F1, 0..1
min_iou = 0.0                 # mean overlap of what both found; 0: no such bound
max_score_distance = 1.0      # mean difference of their scores; 1: no such bound
max_p99_ratio = 2.0           # of the time a frame takes, new over old
mode = "auto"                 # or beside, or stop-start: for boards that cannot hold two models; auto goes by predicted memory
share = 0.25                  # of the time that the new model may take beside the old one
max_age_ms = 500.0            # a live frame that is older is left to the old model alone
keep_s = 30.0                 # so long the old model is kept after the switch, and comes back by itself on a breach
watch_share = 0.1             # of the time that it then takes to watch the new one
max_rise_c = 15.0             # the board may get so much hotter meanwhile; 0: no such bound
"""
