"""The cascade on printed text: a detector whose weights were rounded to a few bits on the board, the full one at the host, all of it real:
broker, serve, agent, pipeline, the model's process.

F1 against the known truth of answers that are sure (score of 0.5 or more): the board alone, the board with the cascade (amended results in
the place of the plain ones), and the host's model on every whole frame, which is what sending all frames would give. Beside it what
left the board, and how long an answer takes from the crop's arrival at the broker to the answer's.

    python benchmarks/cascade.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from brokers import until  # noqa: E402
from cascade_site import DEVICE, CascadeSite, Exhibit, cascade_site  # noqa: E402

from jetfleet_contract import topics  # noqa: E402
from jetfleet_contract.bundle import InputSpec, TaskSpec  # noqa: E402
from jetfleet_contract.crops import Answer, Crop  # noqa: E402
from jetfleet_contract.evaluation import EvaluationJob  # noqa: E402
from jetfleet_contract.messages import Envelope, decode  # noqa: E402
from jetfleet_contract.predictions import MatchCount, Prediction, match_frame  # noqa: E402
from jetfleet_host.compress.dataset import load_data  # noqa: E402
from jetfleet_host.compress.jobs import JobRunner  # noqa: E402
from jetfleet_host.demo.models import text_detector  # noqa: E402
from jetfleet_host.demo.scene import HEIGHT, WIDTH, labelled_images  # noqa: E402

SURE = 0.5
FPS = 1.0
HALF = (0.5, 0.5, 0.5)
TASK = TaskSpec("detect-db", InputSpec("x", WIDTH, HEIGHT, "bgr", "stretch", mean=HALF, std=HALF), ("text",), {"box_threshold": 0.2})
SETTINGS = """privacy = { purposes = ["cascade"] }
[reader.cascade]
below = 0.7
above = 0.2
deadline_s = 2.0
repeat_s = 5.0
most = 8
model = "good:1"
"""


def rounded(source: Path, out: Path, bits: int) -> Path:
    """The model with each weight tensor rounded to 2^bits even steps of its range: naive low-bit weights."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    constants = [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute
                 if attribute.name == "value"]
    for tensor in (*model.graph.initializer, *constants):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        step = float(np.abs(values).max()) / (2 ** (bits - 1) - 1)
        tensor.CopyFrom(numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), tensor.name))
    onnx.save(model, str(out))
    return out


def f1(answers: dict[int, Prediction], truth: tuple[Prediction, ...]) -> float:
    """Over the frames that were answered."""
    total = MatchCount()
    for position, answer in answers.items():
        total = total.plus(match_frame(truth[position], tuple(found for found in answer if found.score >= SURE)))
    return total.f1


def watched(site: CascadeSite, frames: int) -> dict[str, Any]:
    """One pass over the frames by the board, and what came back."""
    site.begin(SETTINGS, fps=FPS)
    spy = site.spy
    begin = len(spy.messages)
    first = len(spy.results(amended=False))
    until(lambda: len(spy.results(amended=False)) >= first + frames, "one pass", 600)
    until(lambda: len(spy.on(topics.answer(DEVICE))) >= len(site.crops()), "the last answers", 60)
    passed = {result.frame for result in spy.results(amended=False)[first:first + frames]}
    plain = {r.position: r.detections for r in spy.results(amended=False) if r.frame in passed}
    amended = {r.position: r.detections for r in spy.results(amended=True) if r.frame in passed}
    asked: dict[int, float] = {}
    latencies, sizes = [], []
    for at, (topic, payload) in list(zip(spy.times, spy.messages, strict=False))[begin:]:
        if topic == topics.crop(DEVICE):
            asked[decode(bytes(decode(payload, Envelope).signed), Crop).id] = at
            sizes.append(len(payload))
        elif topic == topics.answer(DEVICE):
            number = decode(bytes(decode(payload, Envelope).signed), Answer).id
            if number in asked:
                latencies.append((at - asked[number]) * 1e3)
    return {"plain": plain, "both": {**plain, **amended}, "amended": len(amended), "crops": len(sizes), "bytes": sum(sizes),
            "latency_ms": sorted(latencies)}


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer frames: for a look, not for the record")
    parser.add_argument("--bits", type=int, default=7, help="bits of the board's weights (default %(default)s)")
    arguments = parser.parse_args()
    count = 40 if arguments.quick else 120
    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as scratch:
        folder = Path(scratch)
        frames = labelled_images(folder / "frames", count, seed=11)
        data = load_data(frames)
        truth = data.truth or ()
        whole_bytes = statistics.mean(path.stat().st_size for path in data.images)
        good = text_detector()
        shown = Exhibit(rounded(good, folder / "weak.onnx", arguments.bits), good, TASK, frames)
        job = EvaluationJob(str(good), TASK, "onnxruntime", "fp32", 1, tuple(map(str, data.images)), warmup=0, latency_runs=0)
        whole = dict(enumerate(JobRunner().run(job).predictions))
        (folder / "site").mkdir()
        with cascade_site(folder / "site", shown) as site:
            row = watched(site, count)
    host = f1(whole, truth)
    figures = {"bits": arguments.bits, "frames": count, "f1_edge": f1(row["plain"], truth), "f1_cascade": f1(row["both"], truth),
               "f1_host": host, "amended": row["amended"], "crops": row["crops"], "bytes_per_frame": row["bytes"] / count,
               "png_bytes_per_frame": whole_bytes, "latency_ms": row["latency_ms"]}
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "cascade.json").write_text(json.dumps(figures, indent=1))
    print(table(figures))


def table(figures: dict[str, Any]) -> str:
    """As markdown."""
    latencies = figures["latency_ms"]

    def at(share: float) -> str:
        return f"{latencies[min(len(latencies) - 1, int(share * len(latencies)))]:.0f}" if latencies else "-"

    both = f"the board with the cascade ({figures['crops']} crops, {figures['amended']} frames amended)"
    what = f"{figures['frames']} stills of 640x480 at {FPS:.0f} a second, PP-OCRv4's detector"
    return "\n".join([
        f"{what}; on the board with weights of {figures['bits']} bits. One run.", "",
        "| | F1 | bytes a frame |", "|---|---|---|",
        f"| the board alone | {figures['f1_edge']:.3f} | 0 |",
        f"| {both} | {figures['f1_cascade']:.3f} | {figures['bytes_per_frame']:.0f} |",
        f"| the host's model on every whole frame (as PNG) | {figures['f1_host']:.3f} | {figures['png_bytes_per_frame']:.0f} |", "",
        f"Answers, from the crop at the broker to the answer there: p50 {at(0.5)} ms, p95 {at(0.95)} ms, {len(latencies)} of them."])


if __name__ == "__main__":
    main()
