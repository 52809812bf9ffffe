"""The demo from beginning to end: build, sign, publish, roll out, update while running, plant a bad model, show what happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import Result
from jetfleet_contract.predictions import Detection, match_frame
from jetfleet_host.publish import Published, publish

from .catalogue import Catalogue, make_catalogue
from .children import Children
from .fleet import DEVICES, DemoFleet
from .narration import Advance, Narration
from .observations import MIN_IOU, ORIENT, TEXT, Observations
from .plots import annotated_frame, latency_plot
from .scene import Video, make_video
from .summary import BAD, BETTER, GOOD, Chosen, as_json, problems

WORK, MARK = "fleet", ".jetfleet-demo"
ROLLOUT_TIMEOUT_S = 1900.0  # two waves' own time-out and some: the server judges first
SETTLE_S = 10.0
DEFAULT_SECONDS = 30.0


@dataclass(frozen=True)
class DemoSettings:
    """`seconds` is how long the fleet just runs, shared by the three versions; `out` gets pictures and, with `keep`, everything."""

    out: Path
    cache: Path
    seconds: float = DEFAULT_SECONDS
    keep: bool = False


class Demo:
    """One run. `run` gives the outcome as JSON-ready data; what was started is gone when it returns or raises."""

    def __init__(self, settings: DemoSettings, tell: Narration) -> None:
        self._settings = settings
        self._tell = tell
        self._elapsed: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Everything.

        Raises:
            TransportError, InputError, IncompatibleError: a model, picture or folder that is needed is not there.
            RuntimeFailure: `demo.child`, `demo.timeout` when the fleet did not do its part.
        """
        work = _fresh_folder(self._settings.out / WORK)
        with ExitStack() as ending:
            if not self._settings.keep:
                ending.callback(shutil.rmtree, work, ignore_errors=True)
            video = self._timed("video", "A video whose truth is known", lambda _: make_video(self._settings.cache / "demo"))
            models = self._timed("build", "Models: compressed, measured, scored", lambda a: make_catalogue(self._settings.cache, a))
            seen = Observations(video.truth)
            children = ending.enter_context(Children(work / "logs"))
            measured = self._settings.cache / "demo" / "measurements"
            fleet = DemoFleet(work, measured, children, seen, video.path, lambda: self._tell.elapsed_s)
            ending.callback(fleet.close)
            published = self._timed("publish", "Signed and published", lambda a: self._publish(fleet, models, a))
            self._timed("start", "Broker, server and three agents", lambda a: self._start(fleet, seen, a))
            trouble = self._story(fleet, seen, published)
            chosen = self._last_look(fleet, seen, trouble)
        return self._outcome(seen, video, chosen, trouble)

    def _timed(self, name: str, title: str, work: Callable[[Advance], Any]) -> Any:
        began = self._tell.elapsed_s
        with self._tell.step(title) as advance:
            result = work(advance)
        self._elapsed[name] = self._tell.elapsed_s - began
        return result

    # --- acts -------------------------------------------------------------------------------------------------

    def _publish(self, fleet: DemoFleet, models: Catalogue, advance: Advance) -> dict[tuple[str, str], Published]:
        found = {}
        for i, (key, bundle) in enumerate(models.bundles.items()):
            advance(i / len(models.bundles), f"{key[0]} {key[1]}")
            found[key] = publish(fleet.project, bundle)
        return found

    def _start(self, fleet: DemoFleet, seen: Observations, advance: Advance) -> None:
        fleet.start_server()
        fleet.start_agents()
        fleet.wait_until(lambda: len(seen.births) == len(DEVICES), 90.0, "the boards to say hello",
                         lambda: advance(len(seen.births) / len(DEVICES), f"{len(seen.births)} of {len(DEVICES)} boards"))

    def _story(self, fleet: DemoFleet, seen: Observations, published: dict[tuple[str, str], Published]) -> str:
        """The acts in order; what went wrong with a rollout that everything after it needs, else ""."""
        share = self._settings.seconds / 3
        everywhere = len(DEVICES)
        act = _Act(fleet, seen, published)
        trouble: str = self._timed("install", "Version 1 goes to all boards: fetched, verified, measured, started",
                                   lambda a: act.roll_out(TEXT, GOOD, everywhere, a) or act.roll_out(ORIENT, GOOD, everywhere, a))
        if trouble:
            return trouble
        self._timed("run_v1", "Version 1 runs", lambda a: self._let_run(fleet, seen, share, a))
        trouble = self._timed("update", "Version 2 while running: first to one board, then to the others",
                              lambda a: act.roll_out(TEXT, BETTER, 1, a))
        if trouble:
            return trouble
        self._timed("run_v2", "Version 2 runs", lambda a: self._let_run(fleet, seen, share, a))
        self._timed("refuse", "Version 3 is planted: it loads, agrees with itself, and is wrong", lambda a: act.roll_out(TEXT, BAD, 1, a))
        self._timed("run_on", "The fleet stays on version 2", lambda a: self._let_run(fleet, seen, share, a))
        return ""

    def _let_run(self, fleet: DemoFleet, seen: Observations, seconds: float, advance: Advance) -> None:
        began = self._tell.elapsed_s
        while (passed := self._tell.elapsed_s - began) < seconds:
            fleet.pump()
            advance(passed / seconds, "")
        advance(1.0, f"{sum(seen.results.values())} results so far")

    # --- the end ----------------------------------------------------------------------------------------------

    def _last_look(self, fleet: DemoFleet, seen: Observations, trouble: str) -> list[Chosen]:
        """Wait for the boards' last word, and ask each why it runs what it runs."""
        fleet.settle(lambda: bool(trouble) or not problems(seen, DEVICES), SETTLE_S)
        return fleet.chosen()

    def _outcome(self, seen: Observations, video: Video, chosen: list[Chosen], trouble: str) -> dict[str, Any]:
        notes = {c.device: f"{c.device_class}, {c.candidate}" for c in chosen}
        pictures = self._timed("pictures", "Pictures", lambda _: self._pictures(seen, video, notes))
        return as_json(seen, DEVICES, chosen, pictures, self._elapsed, trouble)

    def _pictures(self, seen: Observations, video: Video, notes: dict[str, str]) -> dict[str, str]:
        out = self._settings.out
        latency = latency_plot(out / "latency.png", seen.points(), seen.marks(), title="Text detector: latency by stage", notes=notes)
        found = {"latency": str(latency)}
        best = seen.best_frame(BETTER)
        if best is not None:
            found["frame"] = str(_draw(out / "frame.png", best, seen, video))
        return found


class _Act:
    """Rolls one version out and follows it to its end."""

    def __init__(self, fleet: DemoFleet, seen: Observations, published: dict[tuple[str, str], Published]) -> None:
        self._fleet = fleet
        self._seen = seen
        self._published = published

    def roll_out(self, app: str, version: str, canary: int, advance: Advance) -> str:
        """Until the server calls the rollout over; why it is not done, else ""."""
        rollout = self._fleet.roll_out(app, self._published[app, version], canary=canary)
        self._fleet.wait_until(lambda: self._is_over(rollout), ROLLOUT_TIMEOUT_S, f"the rollout of {app} {version}",
                               lambda: self._tell(app, version, advance))
        state = self._fleet.rollout_state(rollout)
        if state is None or state.phase == "done":
            return ""
        return f"the rollout of {app} {version} ended as {state.phase}: {state.reason}"

    def _is_over(self, rollout: str) -> bool:
        state = self._fleet.rollout_state(rollout)
        return state is not None and state.final

    def _tell(self, app: str, version: str, advance: Advance) -> None:
        outcomes = self._seen.outcomes(app, version)
        reports = [report for (_, of), report in sorted(self._seen.progress.items()) if of == app and report.version == version]
        text = ", ".join(f"{report.device} {report.outcome or report.phase}" for report in reports)
        advance(len(outcomes) / len(DEVICES), f"{app} {version}: {text or 'asked for'}")


def _draw(path: Path, result: Result, seen: Observations, video: Video) -> Path:
    truth = video.truth.frames[result.position]
    count = match_frame(tuple(Detection(TEXT, 1.0, box.box) for box in truth), result.detections, min_iou=MIN_IOU)
    detections = seen.with_turns(result)
    caption = f"text-detector {result.version} as {result.candidate}: F1 {count.f1:.2f} on frame {result.position}"
    return annotated_frame(path, video.frame(result.position), truth, detections, caption=caption)


def _fresh_folder(folder: Path) -> Path:
    """An empty folder of ours. A folder that is not the demo's is never touched."""
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("demo.folder", f"{folder} is there already and was not made by the demo", where=str(folder),
                         remedy="give another --out")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder
