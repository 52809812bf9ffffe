"""What a challenger on trial costs its champion, against the share of the time that it is allowed.

The real pipeline process with the demo's detector on a file as fast as it goes (every frame counts, so throughput is what suffers), and a
second copy of the model as the challenger. Rounds are interleaved: without a challenger, then with one at each share, in one process.
The cost is what is missing of the throughput right before; it should be at most the share.

    python benchmarks/shadow.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from pipeline_process import Pipeline, demo_model, demo_video, order_of, result_times, spread

from jetfleet_agent.ipc import Drop, Run, Running, TrialResult, Try
from jetfleet_contract.messages import AppConfig, Source, TrialPolicy
from jetfleet_contract.policy import Candidate

SHARES = (0.1, 0.25, 0.5)
SETTLE_FRAMES = 30
ENDLESS = 1_000_000


class Bench:
    """One process that runs the champion for all rounds."""

    def __init__(self, candidate: Candidate, video: Path, threads: int) -> None:
        self._candidate = candidate
        self._threads = threads
        self._loads = 0
        self._pipeline = Pipeline()
        source = Source("front", str(video), loop=True)
        self._pipeline.send(Run(order_of(demo_model(), candidate, threads), AppConfig(), (source,), window_s=1.0))
        self._pipeline.until_more(Running, 0)
        self._pipeline.until_results(4 * SETTLE_FRAMES)  # the pipeline measures first whether its stages overlap

    def fps(self, frames: int) -> float:
        """Answers a second over the next so many."""
        start = len(self._pipeline.results) + SETTLE_FRAMES
        self._pipeline.until_results(start + frames)
        times = result_times(self._pipeline.results[start:start + frames])
        return (len(times) - 1) / (times[-1] - times[0])

    def shadowed(self, share: float, frames: int) -> tuple[float, float]:
        """(answers a second with a challenger at that share, the share that it took over a trial of its own)."""
        self._loads += 1
        challenger = order_of(demo_model(), self._candidate, self._threads, "b", f"{self._loads + 1}")
        self._try(challenger, TrialPolicy(frames=5, share=share))  # loaded, and its caches warm
        self._pipeline.send(Drop(challenger.bundle))
        told = len(self._pipeline.of(TrialResult))
        self._pipeline.send(Try(challenger, TrialPolicy(frames=ENDLESS, share=share)))
        self._pipeline.until_results(len(self._pipeline.results) + 2 * SETTLE_FRAMES)
        fps = self.fps(frames)
        self._pipeline.send(Drop(challenger.bundle))
        if len(self._pipeline.of(TrialResult)) > told:
            raise SystemExit(f"the challenger did not run: {self._pipeline.of(TrialResult)[-1]}")
        spent = self._try(challenger, TrialPolicy(frames=20, share=share)).numbers.spent_share
        self._pipeline.send(Drop(challenger.bundle))
        return fps, spent

    def _try(self, challenger: Any, policy: TrialPolicy) -> TrialResult:
        told = len(self._pipeline.of(TrialResult))
        self._pipeline.send(Try(challenger, policy))
        self._pipeline.until_more(TrialResult, told)
        result = self._pipeline.of(TrialResult)[-1]
        if result.code:
            raise SystemExit(f"the challenger did not run: {result.code} {result.detail}")
        return result

    def stop(self) -> None:
        self._pipeline.stop()


def measure(candidate: Candidate, video: Path, threads: int, rounds: int, frames: int) -> dict[str, Any]:
    """Cost and share spent of each round, by share."""
    bench = Bench(candidate, video, threads)
    costs: dict[float, list[float]] = {share: [] for share in SHARES}
    spent: dict[float, list[float]] = {share: [] for share in SHARES}
    alone: list[float] = []
    for _ in range(rounds):
        for share in SHARES:
            before = bench.fps(frames)
            during, took = bench.shadowed(share, frames)
            after = bench.fps(frames)
            alone += [before, after]
            costs[share].append(1.0 - during / ((before + after) / 2))
            spent[share].append(took)
    bench.stop()
    return {"candidate": candidate.name, "alone_fps": alone, "cost": {str(share): costs[share] for share in SHARES},
            "spent": {str(share): spent[share] for share in SHARES}}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["Demo's detector at 640x480, file source as fast as it goes, the challenger is a copy of the champion. Median (range).", "",
             "| candidate | alone, frames/s | budget | share that the challenger took | cost in throughput (<= budget) |",
             "|---|---|---|---|---|"]
    for row in rows:
        for share in SHARES:
            cost = [100 * value for value in row["cost"][str(share)]]
            spent = [100 * value for value in row["spent"][str(share)]]
            lines.append(f"| `{row['candidate'].partition('@')[2]}` | {statistics.median(row['alone_fps']):.1f} | {share:.0%} "
                         f"| {spread(spent)} % | **{spread(cost)} %** |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one candidate, one round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    rounds, frames = (1, 100) if arguments.quick else (5, 300)
    candidates = [Candidate("v", "openvino", "fp32")]
    if not arguments.quick:
        candidates.append(Candidate("v", "onnxruntime", "fp32"))
    video = demo_video(4.0 if arguments.quick else 15.0)
    rows = []
    for candidate in candidates:
        print(f"  {candidate.name}", file=sys.stderr)
        rows.append(measure(candidate, video, arguments.threads, rounds, frames))
    results = Path(__file__).parent / "results" / "shadow.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
