"""Backends `local` and `ssh`: engines built by the agent's own programs, here or on a board on the bench.

The board says what it is (`jetfleet-agent probe`), then loads each variant as it would at its start and writes down what its runtime
compiled (`jetfleet_agent.pipeline.evaluate` with `export`). The key is the one that boards of that footing ask for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.engines import Passport, check_passport, engine_name, key_of
from jetfleet_contract.errors import IncompatibleError, InputError, RuntimeFailure, StorageError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.footings import KINDS, footing_of, recipe_of, tuning_of
from jetfleet_contract.messages import Capability, encode
from jetfleet_contract.policy import PRECISIONS_OF
from jetfleet_contract.tuning import Tuning
from jetfleet_host.bundles import open_bundle
from jetfleet_host.durable import sync_folder, write_file
from jetfleet_host.engines.records import RECORD, Built, Record, check_engine, read_record, renewed
from jetfleet_host.engines.sources import Weights

SUFFIX = ".engine"
Told = Callable[[str, float], None]


class Machine(Protocol):
    """Where the agent's programs run."""

    name: str

    def probe(self) -> Capability:
        """What the machine is."""

    def build(self, job: EvaluationJob, weights: Weights, engine: Path, told: Told) -> EvaluationResult:
        """Run the job there on the weights; what it exports is `engine` here. A job that fails is a result with an error."""


class Settings(msgspec.Struct, frozen=True):
    """As boards run the model: `threads` 0 lets the runtime decide, `folded` takes uint8 frames."""

    threads: int = 0
    folded: bool = False


def task_of(bundle: Path) -> TaskSpec:
    """The bundle's task, which a board needs to load a model.

    Raises:
        InputError: `engine.source` for a lone file.
    """
    if not bundle.is_dir():
        raise InputError("engine.source", "a board builds from a bundle, which says what the input is", where=str(bundle),
                         remedy="make one with jetfleet build; a lone ONNX file goes with --with rtx-aot")
    return open_bundle(bundle, verify=False).spec.task


def build(machine: Machine, weights: Weights, task: TaskSpec, out: Path, settings: Settings, told: Told) -> list[Built]:
    """An engine in `out` for each way that the machine's runtimes run the weights.

    Raises:
        IncompatibleError: `engine.nothing` when no runtime there makes engines of them. RuntimeFailure: the program's own code.
        MalformedError: `engine.truncated`, `engine.flipped`: what arrived is not what was built. StorageError: `store.write`.
    """
    capability = machine.probe()
    passports = _passports(capability, weights, task, settings, machine.name)
    if not passports:
        there = ", ".join(info.name for info in capability.backends if not info.missing) or "none"
        raise IncompatibleError("engine.nothing",
                                f"{machine.name} ({capability.board}) has no runtime that makes engines of "
                                f"{weights.name} ({weights.precision})",
                                remedy=f"its runtimes are {there}; take another variant or another board")
    return [_one(machine, passport, weights, task, out, told) for passport in passports]


def _passports(capability: Capability, weights: Weights, task: TaskSpec, settings: Settings, builder: str) -> list[Passport]:
    found = []
    for backend, kind in KINDS.items():
        footing = footing_of(capability, backend)
        runs = {precision for info in capability.backends if info.name == backend for precision in info.precisions}
        for precision in PRECISIONS_OF.get((weights.precision, backend), ()):
            tuning = Tuning(folded=settings.folded and kind.folds)
            recipe = recipe_of(backend, weights.digest, precision, task.input, tuning, settings.threads)
            if footing is not None and recipe is not None and precision in runs:
                found.append(check_passport(Passport(footing, recipe, weights.subject, weights.name, builder)))
    return found


def _one(machine: Machine, passport: Passport, weights: Weights, task: TaskSpec, out: Path, told: Told) -> Built:
    key, recipe = key_of(passport), passport.recipe
    path, record_path = out / (engine_name(key) + SUFFIX), out / (engine_name(key) + RECORD)
    kept = read_record(record_path, path)
    if kept is not None:
        return Built(renewed(kept, passport, record_path), path, fresh=False)
    job = EvaluationJob("", task, passport.footing.backend, recipe.precision, recipe.threads, warmup=0,
                        latency_runs=0, tuning=tuning_of(recipe))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as work:
            made = Path(work) / "engine"
            result = machine.build(job, weights, made, told)
            if result.error or result.engine is None:
                raise RuntimeFailure(result.error or "engine.export", f"{machine.name} built no engine of {weights.name}: {result.detail}",
                                     remedy="see what the runtime says; jetfleet engines check names what it lacks")
            size = made.stat().st_size
            check_engine(made, "sha256:" + result.engine.digest, size)
            made.replace(path)
            sync_folder(out)
    except OSError as error:
        raise StorageError("store.write", f"cannot keep the engine: {error.strerror or error}", where=str(out),
                           remedy="check free space and permissions of the folder") from None
    record = Record(key, passport, "sha256:" + result.engine.digest, size)
    write_file(record_path, encode(record))
    return Built(record, path, fresh=True)
