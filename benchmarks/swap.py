"""A swap while a file plays: frames lost, and the longest gap between answers around it against the steady p99 gap.

The real pipeline process with the demo's detector, a second copy of it on trial beside it, then Switch and Back, several times: forward
to a challenger, and back to the old model from memory, as an automatic rollback does while the old one still watches the new one. Every
frame of the file must be answered exactly once. The peer is what a user would otherwise do: stop the process and start it with the
other model (its gap is from the last answer before to the first one after; its file starts again).

    python benchmarks/swap.py [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from pipeline_process import Pipeline, demo_model, demo_video, order_of, percentile, result_times, spread

from jetfleet_agent.ipc import Back, Run, Running, Switch, Switched, TrialResult, Try
from jetfleet_contract.messages import AppConfig, Source, TrialPolicy
from jetfleet_contract.policy import Candidate

STEADY_FRAMES = 80


def swaps(candidate: Candidate, video: Path, threads: int, rounds: int, fps: float) -> dict[str, Any]:
    """Switch and Back, `rounds` times each, in one process."""
    model = demo_model()
    pipeline = Pipeline()
    source = Source("front", str(video), fps=fps, loop=True)
    pipeline.send(Run(order_of(model, candidate, threads), AppConfig(), (source,), window_s=1.0))
    pipeline.until_more(Running, 0)
    pipeline.until_results(STEADY_FRAMES)
    for index in range(rounds):
        other = order_of(model, candidate, threads, "b", f"{index + 2}")
        pipeline.send(Try(other, TrialPolicy(frames=10)))
        pipeline.until_more(TrialResult, index)
        trial = pipeline.of(TrialResult)[-1]
        if trial.code:
            raise SystemExit(f"the challenger did not run: {trial.code} {trial.detail}")
        for order in (Switch(other.bundle, keep_s=600.0), Back()):
            told, seen = len(pipeline.of(Switched)), len(pipeline.results)
            pipeline.send(order)
            pipeline.until_more(Switched, told)
            pipeline.until_results(seen + 20)
    pipeline.stop()
    results = pipeline.results
    switched = pipeline.of(Switched)
    numbers = [result.frame for result in results]
    lost = sum(max(0, b - a - 1) for a, b in itertools.pairwise(numbers))
    twice = len(numbers) - len(set(numbers))
    times = result_times(results[:STEADY_FRAMES])
    steady = percentile([(b - a) * 1e3 for a, b in itertools.pairwise(times[20:])], 0.99)
    return {"candidate": candidate.name, "fps": fps, "gaps_ms": [s.gap_ms for s in switched],
            "forward_ms": [s.gap_ms for s in switched[::2]], "back_ms": [s.gap_ms for s in switched[1::2]],
            "lost_told": sum(s.frames_lost for s in switched), "lost_counted": lost, "twice": twice,
            "frames": len(numbers), "steady_p99_ms": steady,
            "ratio": [s.gap_ms / (s.steady_p99_gap_ms or steady) for s in switched]}


def restarts(candidate: Candidate, video: Path, threads: int, rounds: int, fps: float) -> dict[str, Any]:
    """The peer: stop the process, start it again with the other model."""
    model, gaps, last = demo_model(), [], 0.0
    for index in range(rounds + 1):
        pipeline = Pipeline()
        source = Source("front", str(video), fps=fps, loop=True)
        pipeline.send(Run(order_of(model, candidate, threads), AppConfig(), (source,), window_s=1.0))
        pipeline.until_results(5)
        times = result_times(pipeline.results)
        if index:
            gaps.append((times[0] - last) * 1e3)
        pipeline.stop()
        last = result_times(pipeline.results)[-1]
    return {"candidate": candidate.name, "gaps_ms": gaps}


def table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = ["Demo's detector at 640x480, file source, every frame counts; each swap is one Switch or one Back. Median (range), ms.", "",
             "| candidate | source | swaps | answered | lost | twice | forward | rollback | steady p99 gap | gap / p99 (<= 2) | restart |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for ours, peer in rows:
        source = f"paced at {ours['fps']:.0f} fps" if ours["fps"] else "as fast as it goes"
        lines.append(
            f"| `{ours['candidate'].partition('@')[2]}` | {source} | {len(ours['gaps_ms'])} | {ours['frames']} "
            f"| **{ours['lost_counted']}** | {ours['twice']} | {spread(ours['forward_ms'])} | {spread(ours['back_ms'])} "
            f"| {ours['steady_p99_ms']:.2f} "
            f"| **{statistics.median(ours['ratio']):.2f}** (worst {max(ours['ratio']):.2f}) | {spread(peer['gaps_ms'])} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one candidate, two swaps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else 8
    video = demo_video(4.0 if arguments.quick else 15.0)
    cases = [(Candidate("v", "openvino", "fp32"), 0.0)]
    if not arguments.quick:
        cases += [(Candidate("v", "openvino", "fp32"), 10.0), (Candidate("v", "onnxruntime", "fp32"), 0.0)]
    rows = []
    for candidate, fps in cases:
        print(f"  {candidate.name} {fps:.0f} fps", file=sys.stderr)
        rows.append((swaps(candidate, video, arguments.threads, rounds, fps),
                     restarts(candidate, video, arguments.threads, max(1, rounds // 2), fps)))
    results = Path(__file__).parent / "results" / "swap.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps([{"swap": ours, "restart": peer} for ours, peer in rows], indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
