"""Has what a camera sees moved away from what the model was evaluated on? Histograms of a window against the bundle's reference.

The measure is the population stability index, ``sum((q - p) * ln(q / p))`` over bins, p the reference's share and q the window's; 0.1 is
commonly called small, 0.2 and over a shift. For samples of a and b draws from one distribution it is not 0: its expectation is
``(bins - 1) * (1 / a + 1 / b)`` (Yurdakul and Naranjo, "Statistical properties of the population stability index", 2020). So that small
samples raise no alarm, that expectation is taken off first.

Bins are quantiles of the reference: each holds the same share, so none is empty and no single one decides. Empty bins of the window count
as half a draw.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta

from .app_config import Drift
from .predictions import Prediction
from .sketch import Sketch, mid_of, sketch_of
from .wire import Message

BINS = 6
MIN_FRAMES = 20
MAX_LABELS = 64
REST = "(rest)"  # labels past the most frequent ones

Shares = Annotated[tuple[float, ...], Meta(max_length=64)]


class Histogram(Message, frozen=True):
    """`edges` are ascending inner bounds, a value that equals one belongs above it; `shares` (one more) add up to 1, from `count` draws."""

    edges: Shares
    shares: Shares
    count: int


class DriftReference(Message, frozen=True):
    """What the reference model saw and said on the builder's images. `values`: luma, blur, score, answers (how many a frame); `labels`:
    share of each label among all answers."""

    frames: int
    values: Annotated[dict[str, Histogram], Meta(max_length=16)] = {}
    labels: Annotated[dict[str, float], Meta(max_length=MAX_LABELS + 1)] = {}


class Seen(Message, frozen=True):
    """One window of one source: sketches of the same values, and how often each label came. `frames` were looked at."""

    frames: int
    values: dict[str, Sketch] = {}
    labels: dict[str, int] = {}


class DriftState(Message, frozen=True):
    """How many windows in a row were over (positive) or within the threshold (negative), and whether the alarm stands."""

    run: int = 0
    alarmed: bool = False


def histogram(values: Sequence[float], bins: int = BINS) -> Histogram | None:
    """The reference histogram of a sample; None without values.

    Values are taken as a sketch knows them, for windows are sketches: edges between 0.9986 and 0.9998, where the scores of a sure model
    lie, would tell apart what no window can, and be an alarm for ever. So no bucket of a sketch lies in two bins.
    """
    buckets = sketch_of(list(values)).buckets
    ordered = [mid_of(bucket) for bucket in sorted(buckets) for _ in range(buckets[bucket])]
    if not ordered:
        return None
    quantiles = {ordered[len(ordered) * i // bins] for i in range(1, bins)} - {ordered[0]}
    # Half-way to the next smaller value, which is a whole bucket or more away: rounding moves nothing over it.
    edges = sorted({float(f"{(value + ordered[bisect_left(ordered, value) - 1]) / 2:.6g}") for value in quantiles})
    if not edges and ordered[0] > 0:  # all draws alike: what differs lies outside
        edges = [ordered[0] * 0.9, ordered[0] * 1.1]
    counts = [0] * (len(edges) + 1)
    for value in ordered:
        counts[bisect_right(edges, value)] += 1
    return Histogram(tuple(edges), tuple(count / len(ordered) for count in counts), len(ordered))


def reference_of(images: Sequence[tuple[float, float]], answers: Sequence[Prediction]) -> DriftReference | None:
    """The reference of a bundle: (luma, blur) and the answers of each image. None without images. Rounded, so that two machines whose
    arithmetic differs in the last bit make the same bundle."""
    if not images or len(images) != len(answers):
        return None
    samples = {"luma": [round(luma, 2) for luma, _ in images], "blur": [round(blur, 2) for _, blur in images],
               "answers": [float(len(answer)) for answer in answers],
               "score": [round(item.score, 4) for answer in answers for item in answer]}
    counted = Counter(item.label for answer in answers for item in answer)
    total = sum(counted.values())
    kept = dict(counted.most_common(MAX_LABELS))
    if len(counted) > len(kept):
        kept[REST] = total - sum(kept.values())
    found = {name: histogram(values) for name, values in samples.items()}
    return DriftReference(len(images), {name: one for name, one in found.items() if one is not None},
                          {label: count / total for label, count in sorted(kept.items())})


def reference_from(windows: Sequence[Seen]) -> DriftReference:
    """A camera's own reference: what it saw in its first windows."""
    values = {name: Sketch() for window in windows for name in window.values}
    labels: Counter[str] = Counter()
    for window in windows:
        labels.update(window.labels)
        for name, sketch in window.values.items():
            values[name] = values[name].merged(sketch)
    total = sum(labels.values())
    found = {name: histogram([mid_of(bucket) for bucket, count in sketch.buckets.items() for _ in range(count)])
             for name, sketch in values.items()}
    return DriftReference(sum(window.frames for window in windows), {name: one for name, one in found.items() if one is not None},
                          {label: count / total for label, count in sorted(labels.items())})


def stability(expected: Sequence[float], counts: Sequence[int], *, draws: int, reference_draws: int) -> float:
    """Population stability index past what chance gives, >= 0.

    Args:
        expected: the reference's share of each bin.
        counts: the window's, in the same bins.
        draws: independent draws behind `counts` (boxes of one frame are one draw).
        reference_draws: the same of `expected`.
    """
    total = sum(counts)
    if len(expected) < 2 or not total:
        return 0.0
    smooth = total + 0.5 * len(counts)
    index = 0.0
    for share, count in zip(expected, counts, strict=True):
        p, q = max(share, 0.5 / (reference_draws + 0.5 * len(expected))), (count + 0.5) / smooth
        index += (q - p) * math.log(q / p)
    chance = (len(expected) - 1) * (1 / max(draws, 1) + 1 / max(reference_draws, 1))
    return max(0.0, index - chance)


def judge(reference: DriftReference, seen: Seen) -> dict[str, float] | None:
    """The index of each value, and of ``labels``; None when too few frames were seen to say anything.

    A value that the window lacks altogether (no answer had a score) is left out: ``answers`` tells that.
    """
    if seen.frames < MIN_FRAMES:
        return None
    found = {}
    for name, expected in reference.values.items():
        sketch = seen.values.get(name, Sketch())
        if sketch.count:
            found[name] = stability(expected.shares, counts_in(sketch, expected.edges), draws=min(sketch.count, seen.frames),
                                    reference_draws=min(expected.count, reference.frames))
    if reference.labels and seen.labels:
        known = [label for label in reference.labels if label != REST]
        counts = [seen.labels.get(label, 0) for label in known]
        rest = sum(seen.labels.values()) - sum(counts)
        shares = [reference.labels[label] for label in known]
        found["labels"] = stability([*shares, reference.labels.get(REST, 0.0)], [*counts, rest], draws=seen.frames,
                                    reference_draws=reference.frames)
    return found


def nearest(references: Sequence[DriftReference], seen: Seen) -> dict[str, float] | None:
    """What `judge` says against the reference that the window is most like; None when it says nothing, or there is no reference."""
    found = [indices for reference in references if (indices := judge(reference, seen)) is not None]
    return min(found, key=lambda indices: worst(indices)[1], default=None)


def counts_in(sketch: Sketch, edges: Sequence[float]) -> tuple[int, ...]:
    """How many of a sketch's values lie between the edges; exact but for values within the sketch's own error of an edge."""
    counts = [0] * (len(edges) + 1)
    for bucket, count in sketch.buckets.items():
        counts[bisect_right(edges, mid_of(bucket))] += count
    return tuple(counts)


def step(state: DriftState, indices: Mapping[str, float], spec: Drift) -> tuple[DriftState, bool | None]:
    """One more judged window.

    Returns:
        The new state, and True when the alarm begins, False when it ends, else None. Both need `spec.windows` windows in a row.
    """
    over = max(indices.values(), default=0.0) > spec.threshold
    run = max(state.run, 0) + 1 if over else min(state.run, 0) - 1
    run = max(-spec.windows, min(run, spec.windows))
    if not state.alarmed and run >= spec.windows:
        return DriftState(run, True), True
    if state.alarmed and run <= -spec.windows:
        return DriftState(run, False), False
    return DriftState(run, state.alarmed), None


def worst(indices: Mapping[str, float]) -> tuple[str, float]:
    """The value that moved most, and its index; ("", 0.0) of nothing."""
    return max(indices.items(), key=lambda item: item[1], default=("", 0.0))
