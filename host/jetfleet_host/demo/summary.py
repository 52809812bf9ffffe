"""The demo's end: what should have happened and did or did not, as JSON and as tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jetfleet_contract.sketch import Sketch

from .observations import ORIENT, TEXT, Frames, Observations, Update

if TYPE_CHECKING:
    from rich.table import Table

GOOD, BETTER, BAD = "1.0.0", "2.0.0", "3.0.0"
STAGE_ORDER = ("capture", "wait", "pre", "infer", "decode", "sink", "total", "age")


@dataclass(frozen=True)
class Chosen:
    """What a board decided to run, and why."""

    device: str
    device_class: str
    version: str
    candidate: str
    reason: str


def problems(seen: Observations, devices: Sequence[str]) -> list[str]:
    """What should have happened and did not; empty when the demo showed all it promises."""
    found = []
    for app, version in ((ORIENT, GOOD), (TEXT, GOOD), (TEXT, BETTER)):
        outcomes = seen.outcomes(app, version)
        found += [f"{app} {version} was not committed on {device}: {outcomes.get(device, 'no outcome')}"
                  for device in devices if outcomes.get(device) != "committed"]
    bad = seen.outcomes(TEXT, BAD)
    if "refused" not in bad.values():
        found.append(f"the bad {TEXT} {BAD} was refused nowhere: {bad or 'no outcome'}")
    found += [f"the bad {TEXT} {BAD} was {outcome} on {device}" for device, outcome in bad.items() if outcome != "refused"]
    running = seen.running(TEXT)
    found += [f"{device} ends with {TEXT} {running[device].version if device in running else 'nothing'} instead of {BETTER}"
              for device in devices if device not in running or running[device].version != BETTER]
    silent = [device for device in devices if not seen.results.get(device)]
    return found + [f"{device} never sent a result" for device in silent]


def as_json(seen: Observations, devices: Sequence[str], chosen: Iterable[Chosen], pictures: Mapping[str, str],
            elapsed_s: Mapping[str, float], trouble: str = "") -> dict[str, Any]:
    """The whole outcome, ready for `json.dumps`; `trouble` is what stopped the demo early, if anything."""
    found = [*([trouble] if trouble else []), *problems(seen, devices)]
    return {
        "passed": not found,
        "problems": found,
        "updates": [_update(update) for update in seen.updates],
        "latency_ms": {device: _stages(stages) for device, stages in seen.latency(TEXT).items()},
        "latency_ms_by_app": {app: {device: _stages(stages) for device, stages in seen.latency(app).items()} for app in (TEXT, ORIENT)},
        "frames": _all_frames(seen.frames(TEXT)),
        "f1": {f"{v.app} {v.version} {v.candidate}": round(count.f1, 4) for v, count in sorted(seen.scores.items(), key=_by_name)},
        "f1_frames": {f"{v.app} {v.version} {v.candidate}": seen.answered[v] for v in sorted(seen.scores, key=str)},
        "orientation_accuracy": {f"{v.app} {v.version} {v.candidate}": round(right / total, 4)
                                 for v, (right, total) in seen.turns.items() if total},
        "chosen": {c.device: {"class": c.device_class, "version": c.version, "candidate": c.candidate, "reason": c.reason} for c in chosen},
        "results": dict(seen.results),
        "elapsed_s": {name: round(seconds, 1) for name, seconds in elapsed_s.items()},
        "pictures": dict(pictures),
    }


def _by_name(pair: tuple[Any, Any]) -> str:
    return str(pair[0])


def _update(update: Update) -> dict[str, Any]:
    return {"device": update.device, "app": update.app, "from": update.from_version, "to": update.to_version,
            "outcome": update.outcome, "code": update.code, "reason": update.reason, "candidate": update.candidate,
            "frames_lost": update.frames_lost, "gap_ms": round(update.gap_ms, 2), "steady_p99_ms": round(update.steady_p99_ms, 2),
            "at_s": round(update.at, 1)}


def _stages(stages: Mapping[str, Sketch]) -> dict[str, dict[str, float]]:
    ordered = sorted(stages, key=lambda stage: STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER))
    return {stage: {"p50": round(stages[stage].quantile(0.5), 3), "p95": round(stages[stage].quantile(0.95), 3),
                    "p99": round(stages[stage].quantile(0.99), 3), "count": stages[stage].count} for stage in ordered}


def _all_frames(frames: Mapping[str, Frames]) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for counted in frames.values():
        for cause, count in counted.dropped.items():
            dropped[cause] = dropped.get(cause, 0) + count
    return {"seen": sum(f.seen for f in frames.values()), "done": sum(f.done for f in frames.values()), "dropped": dropped,
            "by_device": {device: {"seen": f.seen, "done": f.done, "dropped": dict(f.dropped)} for device, f in sorted(frames.items())}}


def tables(outcome: Mapping[str, Any]) -> list[Table]:
    """The outcome for a reader: updates, boards, accuracy."""
    return [_updates_table(outcome), _boards_table(outcome), _accuracy_table(outcome)]


def _updates_table(outcome: Mapping[str, Any]) -> Table:
    table = _table("Updates", "device", "app", "from", "to", "outcome", "lost", "gap (usual p99) ms", "why")
    for update in outcome["updates"]:
        swapped = update["from"] and update["outcome"] == "committed"
        lost, gap = (str(update["frames_lost"]), f"{update['gap_ms']:.0f} ({update['steady_p99_ms']:.0f})") if swapped else ("-", "-")
        table.add_row(update["device"], update["app"], update["from"] or "-", update["to"], _coloured(update["outcome"]), lost, gap,
                      update["reason"])
    return table


def _boards_table(outcome: Mapping[str, Any]) -> Table:
    table = _table("Boards (inference measured here; capability of other classes simulated)", "device", "class", "runs", "as",
                   "infer p50 / p99 ms", "total p50 / p99 ms", "frames", "dropped")
    for device, chosen in outcome["chosen"].items():
        stages = outcome["latency_ms"].get(device, {})
        frames = outcome["frames"]["by_device"].get(device, {"done": 0, "dropped": {}})
        dropped = ", ".join(f"{count} {cause}" for cause, count in sorted(frames["dropped"].items())) or "0"
        table.add_row(device, chosen["class"], chosen["version"], chosen["candidate"], _pair(stages, "infer"), _pair(stages, "total"),
                      str(frames["done"]), dropped)
    return table


def _accuracy_table(outcome: Mapping[str, Any]) -> Table:
    table = _table("Scored live against the video's truth", "app", "version", "variant", "score", "frames")
    for name, value in outcome["f1"].items():
        app, version, candidate = name.split(" ", 2)
        table.add_row(app, version, candidate, f"F1 {value:.3f}", str(outcome["f1_frames"][name]))
    for name, value in outcome["orientation_accuracy"].items():
        app, version, candidate = name.split(" ", 2)
        table.add_row(app, version, candidate, f"accuracy {value:.3f}", "")
    return table


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pair(stages: Mapping[str, Any], stage: str) -> str:
    return f"{stages[stage]['p50']:.1f} / {stages[stage]['p99']:.1f}" if stage in stages else "-"


def _coloured(outcome: str) -> str:
    return f"[{'green' if outcome == 'committed' else 'dark_orange'}]{outcome}[/]"
