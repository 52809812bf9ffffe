"""What a challenger's trial may cost, what its numbers mean, and what is watched after the switch. Plain arithmetic.

Three gates: the signed probe set and the comparison on live frames (`judge_trial`), and the watch while the old model is still
there (`judge_watch`). Before anything is loaded, `plan_trial` decides from predicted memory whether both models fit beside each other.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .messages import TrialPolicy
from .wire import Message

WATCH_FRAMES = 10  # the last so many decide on agreement and on the median
WATCH_P99_FRAMES = 100  # a p99 of fewer frames is their slowest one: a single hiccup of the board would convict a model
THROTTLED_S = 2.0  # the kernel's cooling steps in and out for moments at a time
MEMORY_MARGIN = 1.1  # one process's peak varies by some percent from run to run
# Without a measurement: copies of the weights while a runtime packs them, and activations, which go with the input. Measured on x86: a
# process grew by 297 MB (ONNX Runtime) and 363 MB (OpenVINO) for ResNet-50's 102 MB at 224x224, by 123 and 117 MB for PP-OCRv4's 4.7 MB at
# 480x640. The rule gives 374 and 124.
PER_WEIGHTS = 3.5
PER_INPUT = 28.0  # times the input tensor in float32
PROCESS_MB = 100.0  # Python, numpy, OpenCV and a CPU runtime with no model in it: 75 to 81 measured

Judgement = tuple[bool, str, str]
"""(passed, code, sentence): code is empty when it passed."""


class TrialNumbers(Message, frozen=True):
    """What a trial saw. Champion fields are 0 when there is no champion (first install).

    `probe_bound` is the least agreement that the signed probe set asks for. `mean_iou` (0..1) is over what both found,
    `score_distance` (0..1) the mean difference of their scores. `skipped` counts frames that were not shadowed, by reason: share, age,
    heat. `spent_share` is the part of the time that the challenger took, `memory_mb` what the process grew by when it was loaded.
    """

    probe_agreement: float = 1.0
    live_frames: int = 0
    live_agreement: float = 1.0
    champion_p99_ms: float = 0.0
    challenger_p99_ms: float = 0.0
    probe_bound: float = 0.0
    mean_iou: float = 1.0
    score_distance: float = 0.0
    skipped: dict[str, int] = {}
    spent_share: float = 0.0
    memory_mb: float = 0.0


class WatchNumbers(Message, frozen=True):
    """The new champion's last frames while the old model is still kept.

    `p50_ms` is over the last `WATCH_FRAMES`, `p99_ms` over `frames`; `old_p99_ms` is the old model's over the same stages, 0 when not
    known. `compared` frames were also run by the old model. `rise_c` is the board's temperature over that at the switch, `throttled_s` for
    how long the kernel has been slowing the board down when it did not at the switch.
    """

    frames: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    old_p99_ms: float = 0.0
    compared: int = 0
    agreement: float = 1.0
    mean_iou: float = 1.0
    score_distance: float = 0.0
    memory_mb: float = 0.0
    rise_c: float = 0.0
    throttled_s: float = 0.0


class Need(Message, frozen=True):
    """Memory that a model is predicted to take, MB: beside another one in its process, and in a process of its own. 0: not known."""

    beside_mb: float = 0.0
    alone_mb: float = 0.0
    origin: Literal["measured", "size"] = "size"


class Room(Message, frozen=True):
    """Memory before a trial, MB, 0 where not known: what the challenger needs, what is free, what the champion's process would free."""

    need: Need = Need()
    free_mb: float = 0.0
    held_mb: float = 0.0


class Plan(NamedTuple):
    """How the challenger is tried; `mode` is empty when it cannot be, and `reason` always says why."""

    mode: Literal["", "beside", "stop-start"]
    reason: str


# --- memory ------------------------------------------------------------------------------------------------


def predict_memory(weights: int, pixels: int, *, peak_mb: float = 0.0, empty_mb: float = 0.0) -> Need:
    """What a model will take.

    Args:
        weights: bytes of its weight file.
        pixels: width times height of its input, three channels.
        peak_mb: peak of a process that ran it alone on this board; 0: nobody measured it, so the weight file decides.
        empty_mb: that process before it loaded the model; 0: not known.
    """
    if peak_mb > 0:
        alone = peak_mb * MEMORY_MARGIN
        return Need((peak_mb - empty_mb) * MEMORY_MARGIN if 0 < empty_mb < peak_mb else alone, alone, "measured")
    model = weights / 1e6 * PER_WEIGHTS + pixels * 3 * 4 / 1e6 * PER_INPUT
    return Need(model, model + PROCESS_MB, "size")


def why_no_room(need_mb: float, free_mb: float, origin: str) -> str:
    """The sentence that refuses a load, with its numbers; empty when it fits or when one of them is not known."""
    if not need_mb or not free_mb or need_mb <= free_mb:
        return ""
    by = "as measured here" if origin == "measured" else "by the size of its weights"
    return f"predicted: it needs {need_mb:.0f} MB ({by}), {free_mb:.0f} MB are free"


def plan_trial(policy: TrialPolicy, room: Room, *, champion: bool) -> Plan:
    """Beside the champion, instead of it for a while, or not at all. `champion`: whether one runs."""
    need, free = room.need, room.free_mb
    no_beside = why_no_room(need.beside_mb, free, need.origin)
    no_alone = why_no_room(need.alone_mb, free + room.held_mb if champion and free else free, need.origin)
    if not champion:
        return Plan("" if no_alone else "beside", no_alone)
    if policy.mode == "beside" or (policy.mode == "auto" and not no_beside):
        return Plan("" if no_beside else "beside", no_beside)
    if no_alone:
        return Plan("", f"{no_alone} once the running model is stopped")
    return Plan("stop-start", no_beside or "the deployment asks for it")


# --- compute -----------------------------------------------------------------------------------------------


class ShadowBudget:
    """Keeps the time that shadow runs take within a share of all time.

    Credit accrues with time and is never saved up, each run is charged when it is over, and the next one may start once the debt is
    paid. So over any window the runs that started in it took at most ``share * window`` and one run more.
    """

    __slots__ = ("_at", "_balance", "_share", "_since", "spent_s")

    def __init__(self, share: float) -> None:
        self._share = share
        self._balance = 0.0
        self._at: float | None = None
        self._since = 0.0
        self.spent_s = 0.0

    def may_run(self, now: float) -> bool:
        """Whether a run may start at `now` (monotonic seconds)."""
        if self._share <= 0.0:
            return False
        self._accrue(now)
        return self._balance >= -1e-9  # rounding must not cost a frame

    def spend(self, now: float, seconds: float) -> None:
        """A run of so many seconds ended at `now`."""
        self._balance -= seconds
        self.spent_s += seconds
        self._accrue(now)

    def share_spent(self, now: float) -> float:
        """The part of the time since the first question that runs have taken, 0..1."""
        passed = now - self._since if self._at is not None else 0.0
        return min(self.spent_s / passed, 1.0) if passed > 0 else 0.0

    def _accrue(self, now: float) -> None:
        if self._at is None:
            self._at = self._since = now
        self._balance = min(self._balance + max(now - self._at, 0.0) * self._share, 0.0)
        self._at = max(now, self._at)


# --- gates -------------------------------------------------------------------------------------------------


def judge_trial(policy: TrialPolicy, numbers: TrialNumbers) -> Judgement:
    """Whether the challenger may take over."""
    bound = policy.probe_tolerance or numbers.probe_bound
    if numbers.probe_agreement < bound:
        return False, "trial.probe", f"probe set: agreement {numbers.probe_agreement:.3f} is under {bound:.3f}"
    if policy.max_p99_ms and numbers.challenger_p99_ms > policy.max_p99_ms:
        return False, "trial.latency", f"p99 {numbers.challenger_p99_ms:.1f} ms is over {policy.max_p99_ms:.1f} ms"
    if not numbers.live_frames or not numbers.champion_p99_ms:
        return True, "", "probe set passed; no champion to compare with"
    code, sentence = _far_apart(policy, numbers.live_agreement, numbers.mean_iou, numbers.score_distance)
    if code:
        return False, f"trial.{code}", f"live frames: {sentence}"
    ratio = numbers.challenger_p99_ms / numbers.champion_p99_ms
    if ratio > policy.max_p99_ratio:
        return False, "trial.latency", f"p99 is {ratio:.2f}x the running model's, the limit is {policy.max_p99_ratio:.2f}x"
    return True, "", (f"agreement {numbers.live_agreement:.3f}, IoU {numbers.mean_iou:.3f}, score distance "
                      f"{numbers.score_distance:.3f} over {numbers.live_frames} frames, p99 {ratio:.2f}x the running model's")


def judge_watch(policy: TrialPolicy, numbers: WatchNumbers) -> Judgement:
    """Whether the new champion may stay. What was not measured, or on too few frames, convicts nobody."""
    if numbers.throttled_s >= THROTTLED_S:
        return False, "trial.heat", (
            f"the board has been slowed down for heat or power for {numbers.throttled_s:.0f} s, and was not before the switch")
    if policy.max_rise_c and numbers.rise_c > policy.max_rise_c:
        return False, "trial.heat", (
            f"the board is {numbers.rise_c:.1f} degrees hotter than at the switch, the limit is {policy.max_rise_c:.1f}")
    if numbers.compared >= WATCH_FRAMES:
        code, sentence = _far_apart(policy, numbers.agreement, numbers.mean_iou, numbers.score_distance)
        if code:
            return False, "trial.keep-agreement", f"after the switch: {sentence}"
    slow = _too_slow(policy, numbers)
    return (False, "trial.keep-latency", f"after the switch: {slow}") if slow else (True, "", "")


def _far_apart(policy: TrialPolicy, agreement: float, mean_iou: float, score_distance: float) -> tuple[str, str]:
    if agreement < policy.min_agreement:
        return "agreement", f"agreement of both models {agreement:.3f} is under {policy.min_agreement:.3f}"
    if mean_iou < policy.min_iou:
        return "iou", f"mean IoU of what both models found {mean_iou:.3f} is under {policy.min_iou:.3f}"
    if score_distance > policy.max_score_distance:
        return "score", f"the models' scores differ by {score_distance:.3f} on average, the limit is {policy.max_score_distance:.3f}"
    return "", ""


def _too_slow(policy: TrialPolicy, numbers: WatchNumbers) -> str:
    if numbers.frames < WATCH_FRAMES:
        return ""
    limits = [limit for limit in (policy.max_p99_ms, numbers.old_p99_ms * policy.max_p99_ratio) if limit > 0]
    limit = min(limits, default=0.0)
    if not limit:
        return ""
    if numbers.p50_ms > limit:  # half of the frames are over what one in a hundred may be: no need to wait for a hundred
        return f"the median of {WATCH_FRAMES} frames {numbers.p50_ms:.1f} ms is over {limit:.1f} ms"
    if numbers.frames >= WATCH_P99_FRAMES and numbers.p99_ms > limit:
        return f"p99 of {numbers.frames} frames {numbers.p99_ms:.1f} ms is over {limit:.1f} ms"
    return ""
