"""Business figures of an app: what a hook may say of a frame, how it travels, and how a fleet's figures are compared. Pure.

A figure travels as sketches among a series' `values`: ``kpi.NAME`` of the values from 0 up, ``kpi.NAME.neg`` of the magnitudes of those
below (DDSketch keeps negative values in a second store likewise). Count and sum are exact, so a mean is, whatever its sign.

Sources: the mean of a ratio estimate and its error over clusters, Cochran, Sampling Techniques (1977), section 6.13: frames that follow
each other are alike, so a window is one observation. Bounds of new over old by the linear contrast ``new - bound * old``, Fieller, J. R.
Stat. Soc. B 16 (1954): defined where the old figure is zero, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from .errors import MalformedError
from .messages import Message
from .significance import mean_bounds, normal_quantile
from .sketch import Sketch

MAX_KPIS = 12  # twice as many sketches, where all take both signs: with what else a series has, within a collector's bound
MAX_VALUE = 1e12
PREFIX = "kpi."
NEGATIVE = ".neg"
MIN_BOARDS = 5
MIN_WINDOWS = 4

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,38}[a-z0-9])?")


def is_name(name: object) -> bool:
    """Whether this may name a figure: 1 to 40 of ``a-z 0-9 _ -``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(name: object) -> str:
    """A figure's name. MalformedError `kpi.name`."""
    if not isinstance(name, str) or not is_name(name):
        raise MalformedError("kpi.name", f"{str(name)[:60]!r} is no name of a figure", remedy="1 to 40 of a-z, 0-9, '_', '-'")
    return name


def checked(said: object) -> dict[str, float]:
    """What a hook said of one frame, if it keeps to the contract: at most `MAX_KPIS` finite numbers of at most 1e12.

    Raises:
        MalformedError: `kpi.kind` (no mapping), `kpi.count`, `kpi.name`, `kpi.value`.
    """
    if not isinstance(said, Mapping):
        raise MalformedError("kpi.kind", f"the hook gave {type(said).__name__}, not a mapping of names to numbers")
    if len(said) > MAX_KPIS:
        raise MalformedError("kpi.count", f"{len(said)} figures are over the limit of {MAX_KPIS}")
    return {check_name(name): _number(name, value) for name, value in said.items()}


def _number(name: object, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy's numbers, too
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_VALUE:  # not a number fails as well
        raise MalformedError("kpi.value", f"figure {name} is no finite number of at most {MAX_VALUE:g}")
    return number


def as_values(kpis: Mapping[str, float]) -> dict[str, float]:
    """One frame's figures as what is recorded: names of sketches and non-negative values."""
    return {f"{PREFIX}{name}{NEGATIVE}" if value < 0 else f"{PREFIX}{name}": abs(value) for name, value in kpis.items()}


def names_in(values: Iterable[str]) -> set[str]:
    """The figures among the names of a series' values."""
    return {name.removeprefix(PREFIX).removesuffix(NEGATIVE) for name in values if name.startswith(PREFIX)}


class Figure(msgspec.Struct, frozen=True):
    """The distribution of one figure: `above` of values from 0 up, `below` of the magnitudes of the others."""

    above: Sketch = Sketch()
    below: Sketch = Sketch()

    @property
    def count(self) -> int:
        return self.above.count + self.below.count

    def merged(self, other: Figure) -> Figure:
        """The figure of both samples together."""
        return Figure(self.above.merged(other.above), self.below.merged(other.below))

    @property
    def total(self) -> float:
        """The exact sum."""
        return self.above.total - self.below.total

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def least(self) -> float:
        return -self.below.most if self.below.count else self.above.least

    @property
    def most(self) -> float:
        return self.above.most if self.above.count else -self.below.least

    def quantile(self, q: float) -> float:
        """The value below which a share `q` (0..1) of the sample lies, within the sketch's relative error; 0 when empty."""
        if not self.count:
            return 0.0
        rank, under = q * (self.count - 1), self.below.count
        if rank < under:
            return -self.below.quantile((under - 1 - rank) / (under - 1) if under > 1 else 0.0)
        return self.above.quantile((rank - under) / (self.above.count - 1) if self.above.count > 1 else 0.0)


# --- comparison ----------------------------------------------------------------------------------------------------


class KpiBound(Message, frozen=True):
    """How a figure's mean over frames may be under the new version. `least` and `most` bound it by itself; `min_ratio` and `max_ratio`
    against the mean under the old one on the same boards (for figures that are not negative). None: no such bound."""

    least: float | None = None
    most: float | None = None
    min_ratio: Annotated[float, Meta(ge=0.0)] | None = None
    max_ratio: Annotated[float, Meta(ge=0.0)] | None = None


class Tally(Message, frozen=True):
    """One board's frames under one version: how many, the figure's mean over them, and the standard error of that mean (None: unknown, for
    want of windows)."""

    count: int = 0
    mean: float = 0.0
    error: float | None = None


def tally(windows: Iterable[tuple[int, float]]) -> Tally:
    """The tally of windows of (frames, sum of the figure over them); empty ones count for nothing."""
    parts = [(count, total) for count, total in windows if count]
    n = sum(count for count, _ in parts)
    if not n:
        return Tally()
    mean = math.fsum(total for _, total in parts) / n
    if len(parts) < MIN_WINDOWS:
        return Tally(n, mean)
    square = math.fsum((total - mean * count) ** 2 for count, total in parts)
    return Tally(n, mean, math.sqrt(square * len(parts) / (len(parts) - 1)) / n)


def bounds(tallies: Sequence[tuple[Tally, Tally]], factor: float, alpha: float) -> tuple[float, float, float]:
    """The mean over boards of ``new - factor * old``, and its bounds, each wrong with a chance of about `alpha`.

    Args:
        tallies: (old, new) of each board; `factor` 0 asks for the new one alone.

    Returns:
        (mean, low, high); infinite bounds where the evidence does not tell. From `MIN_BOARDS` boards on each board is one observation;
        with fewer it can speak of these boards only, and their windows are.
    """
    values = [new.mean - factor * old.mean for old, new in tallies]
    mean = math.fsum(values) / len(values)
    if len(values) >= MIN_BOARDS:
        return mean, *mean_bounds(values, alpha)
    errors = [error for old, new in tallies for error in ((new.error, _times(factor, old.error)) if factor else (new.error,))]
    if any(error is None for error in errors):
        return mean, -math.inf, math.inf
    reach = normal_quantile(1.0 - alpha) * math.hypot(*(error or 0.0 for error in errors)) / len(values)
    return mean, mean - reach, mean + reach


def _times(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error
