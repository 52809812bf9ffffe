"""A stand-in for the evaluate program, for tests at the process port: ``python evaluate_stand_in.py JOB RESULT``.

The "weights" file is JSON: what to do by `backend:precision`, else by `*`. `ms` answers with that latency (a list: by the
number of the run), `best` is one better run, `cpu` its CPU time, `answers` gives predictions; `do` is crash, hang,
garbage, silent, exit or error.
`tuned` answers a job with settings: milliseconds by setting's text, 10 for others; without it such a job gives none; `tune` is crash.
Each run appends a line to the weights file's ``.log`` (``.settings`` for a job with settings) and leaves its priority in ``.nice``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.messages import decode, encode
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import sketch_of
from jetfleet_contract.tuning import TuningFigures


def _settings(job: EvaluationJob, orders: dict[str, Any], result_path: Path) -> int:
    with Path(job.model).with_suffix(".settings").open("a") as file:
        file.write(f"{job.backend}:{job.precision}\n")
    if orders.get("tune") == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    plan = orders.get("tuned")
    figures = tuple(TuningFigures(tuning, (plan.get(tuning.text, 10.0),) * 3, (10.0,) * 3) for tuning in job.settings) if plan else ()
    result_path.write_bytes(encode(EvaluationResult(job.backend, precision=job.precision, tuned=figures)))
    return 0


def main(job_path: Path, result_path: Path) -> int:
    """Do what the weights say."""
    job = decode(job_path.read_bytes(), EvaluationJob)
    weights = Path(job.model)
    plan = json.loads(weights.read_text())
    name = f"{job.backend}:{job.precision}"
    orders = plan.get(name, plan.get("*", {"ms": 10.0}))
    weights.with_suffix(".nice").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
    if job.settings:
        return _settings(job, orders, result_path)
    with weights.with_suffix(".log").open("a") as file:
        file.write(f"{name}\n")
    done = weights.with_suffix(".log").read_text().split().count(name)
    action = orders.get("do", "")
    if action == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if action == "hang":
        time.sleep(600)
    if action == "exit":
        print("no such operator: Frobnicate", file=sys.stderr)
        return 3
    if action == "silent":
        return 0
    if action == "garbage":
        result_path.write_bytes(b"\xff{not json")
        return 0
    if action == "error":
        result_path.write_bytes(encode(EvaluationResult(job.backend, error="backend.load", detail="it does not load")))
        return 0
    each = orders["ms"]
    ms = each[min(done, len(each)) - 1] if isinstance(each, list) else each
    predictions = tuple((Detection(label, 0.9),) for label in orders.get("answers", ()))
    latencies = (orders.get("best", ms), *[ms] * (job.latency_runs - 1))
    result_path.write_bytes(encode(EvaluationResult(
        job.backend, precision=job.precision, latency=sketch_of(list(latencies)), latency_ms=latencies, predictions=predictions,
        peak_rss_mb=orders.get("mb", 50.0), cpu_ms=orders.get("cpu", 0.0))))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
