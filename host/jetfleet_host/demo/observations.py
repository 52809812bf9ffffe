"""What the demo sees on the broker, turned into its numbers. Pure: topics and bytes in, figures out; nothing is connected here.

Text results are scored against the video's truth by frame, orientation results against the turn of the label they lie on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jetfleet_contract import topics
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import AppState, Birth, Envelope, Report, Result, Series, Telemetry, decode
from jetfleet_contract.predictions import Detection, MatchCount, match_frame
from jetfleet_contract.similarity import iou
from jetfleet_contract.sketch import Sketch

from .plots import LatencyPoint, SwapMark
from .scene import Truth, TruthBox

TEXT, ORIENT = "text", "orient"
MIN_IOU = 0.5
SAME_PLACE_IOU = 0.8
KEPT_RESULTS = 2000
KEPT_TURNS = 64


@dataclass(frozen=True)
class Update:
    """One app's update on one device, as the device reported it; `at` is seconds since the demo began."""

    device: str
    app: str
    from_version: str
    to_version: str
    outcome: str
    code: str
    reason: str
    candidate: str
    frames_lost: int
    gap_ms: float
    steady_p99_ms: float
    at: float


@dataclass
class Frames:
    """Counters of frames over all telemetry windows."""

    seen: int = 0
    done: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, series: Series) -> None:
        self.seen += series.seen
        self.done += series.done
        for cause, count in series.dropped.items():
            self.dropped[cause] = self.dropped.get(cause, 0) + count


@dataclass(frozen=True)
class Variant:
    """What answered: telemetry and scores are kept by it."""

    app: str
    version: str
    candidate: str


class Observations:
    """Collects results, reports, births and telemetry of the whole fleet. One thread calls it.

    Args:
        truth: the truth of the video that every device plays.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self.births: dict[str, Birth] = {}
        self.updates: list[Update] = []
        self.progress: dict[tuple[str, str], Report] = {}
        self.scores: dict[Variant, MatchCount] = {}
        self.answered: dict[Variant, int] = {}
        self.turns: dict[Variant, tuple[int, int]] = {}
        self.results: dict[str, int] = {}
        self.malformed = 0
        self._reports: set[tuple[str, int]] = set()
        self._windows: set[tuple[str, int, int]] = set()
        self._frames: dict[tuple[str, str], Frames] = {}
        self._sketches: dict[tuple[str, str, str], Sketch] = {}
        self._points: list[tuple[str, LatencyPoint]] = []
        self._kept: dict[tuple[str, int], Result] = {}
        self._turned: dict[int, list[Detection]] = {}

    # --- in ---------------------------------------------------------------------------------------------------

    def message(self, topic: str, payload: bytes, at: float) -> None:
        """One message from the broker, `at` seconds after the demo began. What cannot be read is counted in `malformed`."""
        try:
            device, leaf = topics.device_of(topic), topic.rpartition("/")[2]
            if leaf == "result":
                self._result(device, decode(payload, Result))
            elif leaf == "telemetry":
                self._telemetry(decode(bytes(decode(payload, Envelope).signed), Telemetry), at)
            elif leaf == "report":
                self._report(decode(bytes(decode(payload, Envelope).signed), Report), at)
            elif leaf == "birth" and payload:
                self.births[device] = decode(bytes(decode(payload, Envelope).signed), Birth)
        except MalformedError:
            self.malformed += 1

    def _result(self, device: str, result: Result) -> None:
        self.results[device] = self.results.get(device, 0) + 1
        if not 0 <= result.position < len(self._truth.frames):
            return
        truth = self._truth.frames[result.position]
        variant = Variant(result.app, result.version, result.candidate)
        self.answered[variant] = self.answered.get(variant, 0) + 1
        if result.app == ORIENT:
            self._turn(variant, truth, result)
            return
        expected = tuple(Detection(TEXT, 1.0, box.box) for box in truth)
        count = match_frame(expected, result.detections, min_iou=MIN_IOU)
        self.scores[variant] = self.scores.get(variant, MatchCount()).plus(count)
        if len(self._kept) < KEPT_RESULTS or (result.version, result.position) in self._kept:
            self._kept[(result.version, result.position)] = result

    def _turn(self, variant: Variant, truth: Iterable[TruthBox], result: Result) -> None:
        """Right and all answers for crops that lie on a label; a crop of something else has no true turn."""
        right, total = self.turns.get(variant, (0, 0))
        told = self._turned.setdefault(result.position, [])
        told.extend(result.detections)
        del told[:-KEPT_TURNS]
        for detection in result.detections:
            label = label_under(truth, detection)
            if label is not None:
                total += 1
                right += detection.label == str(label.turn)
        self.turns[variant] = (right, total)

    def _telemetry(self, window: Telemetry, at: float) -> None:
        key = (window.device, window.session, window.window)
        if key in self._windows:
            return
        self._windows.add(key)
        for series in window.series:
            self._frames.setdefault((window.device, series.app), Frames()).add(series)
            for stage, sketch in series.stages.items():
                place = (window.device, series.app, stage)
                self._sketches[place] = self._sketches.get(place, Sketch()).merged(sketch)
                if sketch.count:
                    point = LatencyPoint(window.device, stage, at - window.duration_s / 2, sketch.quantile(0.5), sketch.quantile(0.99))
                    self._points.append((series.app, point))

    def _report(self, report: Report, at: float) -> None:
        if (report.device, report.id) in self._reports:
            return
        self._reports.add((report.device, report.id))
        before = self.progress.get((report.device, report.app))
        self.progress[(report.device, report.app)] = report
        if report.outcome and (report.outcome != "committed" or report.version != report.from_version):  # else: it ran already
            metrics = report.metrics
            self.updates.append(Update(
                report.device, report.app, report.from_version, report.version, report.outcome, report.code,
                _reason(report, before), report.candidate, round(metrics.get("frames_lost", 0)),
                metrics.get("gap_ms", 0.0), metrics.get("steady_gap_p99_ms", 0.0), at))

    # --- out --------------------------------------------------------------------------------------------------

    def outcomes(self, app: str, version: str) -> dict[str, str]:
        """The outcome of an update by device, for those that have answered."""
        return {update.device: update.outcome for update in self.updates if (update.app, update.to_version) == (app, version)}

    def running(self, app: str) -> dict[str, AppState]:
        """What each device's birth says it runs of an app."""
        return {device: state for device, birth in self.births.items() for state in birth.apps if state.app == app}

    def frames(self, app: str = TEXT) -> dict[str, Frames]:
        return {device: frames for (device, of), frames in self._frames.items() if of == app}

    def latency(self, app: str = TEXT) -> dict[str, dict[str, Sketch]]:
        """Sketches (ms) of the whole run by device and stage."""
        found: dict[str, dict[str, Sketch]] = {}
        for (device, of, stage), sketch in sorted(self._sketches.items()):
            if of == app:
                found.setdefault(device, {})[stage] = sketch
        return found

    def points(self, app: str = TEXT) -> list[LatencyPoint]:
        return [point for of, point in self._points if of == app]

    def marks(self, app: str = TEXT) -> list[SwapMark]:
        return [SwapMark(u.device, u.at, f"v{u.to_version.split('.')[0]} {u.outcome.replace('_', ' ')}", u.outcome)
                for u in self.updates if u.app == app]

    def best_frame(self, version: str) -> Result | None:
        """Of the kept results of a version, the one that shows most: many labels matched, few answers astray, both ways up."""
        kept = [result for (of, _), result in sorted(self._kept.items()) if of == version]
        return max(kept, key=self._worth, default=None)

    def with_turns(self, result: Result) -> tuple[Detection, ...]:
        """The detections of a text result, labelled by what the orientation app said of the same place on the same frame."""
        told = self._turned.get(result.position, [])
        return tuple(Detection(_turn_at(told, found), found.score, found.box, found.quad) for found in result.detections)

    def _worth(self, result: Result) -> tuple[int, int]:
        truth = self._truth.frames[result.position]
        count = match_frame(tuple(Detection(TEXT, 1.0, box.box) for box in truth), result.detections, min_iou=MIN_IOU)
        turned = sum(box.turn == 180 for box in truth)
        return count.matched - count.extra - count.missed, min(turned, len(truth) - turned)


def _reason(report: Report, before: Report | None) -> str:
    """Why an update ended so. What a trial found is told with the step before; the end only says that nothing went wrong since."""
    if report.outcome == "committed" and before is not None and before.bundle == report.bundle and before.detail:
        return before.detail
    return report.detail or report.code or "no reason given"


def _turn_at(told: Iterable[Detection], found: Detection) -> str:
    same = [t for t in told if t.box is not None and found.box is not None and iou(t.box, found.box) >= SAME_PLACE_IOU]
    return {"0": "upright", "180": "turned"}.get(same[-1].label, "") if same else ""


def label_under(truth: Iterable[TruthBox], detection: Detection) -> TruthBox | None:
    """The label that a detection lies on, at the IoU that also counts as found."""
    place = detection.box
    if place is None:
        return None
    overlap, best = max(((iou(label.box, place), label) for label in truth), key=lambda pair: pair[0], default=(0.0, None))
    return best if overlap >= MIN_IOU else None
