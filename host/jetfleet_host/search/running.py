"""One search: at each point a build under the guard and a measurement beside the original, then the best recipe as a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.bundle import TaskSpec, digest_of
from jetfleet_contract.errors import InputError, StorageError
from jetfleet_host.boards import load_board
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.intake.splitting import joined
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.recipe import Shape
from jetfleet_host.compress.timing import Timed, Timing, time_interleaved
from jetfleet_host.durable import write_file
from jetfleet_host.matrix.cells import Axis, Cell, cell_of
from jetfleet_host.matrix.filling import told
from jetfleet_host.matrix.machine import ThisMachine
from jetfleet_host.matrix.method_build import Bench, left_out, model_name
from jetfleet_host.matrix.methods import NAMED, Method
from jetfleet_host.matrix.pareto import front
from jetfleet_host.matrix.ways import Measured, measured_ways, ways_of

from .recipe_text import recipe_text
from .space import Space, Value
from .study import Judged, RefusedError, Search, Told

Progress = Callable[[str, int, int], None]
BEST = "best.toml"
_ANY = Method("search", ())


@dataclass(frozen=True)
class Wish:
    """What to search for. `model`: a file or a factory; `target`: the board whose latency counts; `storage` "": a file in `out`; `study`
    "": follows from the search."""

    model: str
    data: Path
    out: Path
    space: Space
    target: str
    task: TaskSpec
    shape: Shape
    now: Callable[[], float]
    trials: int = 20
    seed: int = 0
    storage: str = ""
    study: str = ""
    threads: int = 0
    rounds: int = 2
    runs: int = 20
    calibration_images: int = 32


@dataclass(frozen=True)
class Found:
    """What a search found. `best`: the fastest trial within the limit of its recipe, which is in the file `recipe`; `on_front`: numbers of
    the trials that no other beats in both."""

    study: str
    base: Cell
    trials: tuple[Told, ...]
    on_front: tuple[int, ...]
    best: Told
    recipe: Path


def search(wish: Wish, machine: ThisMachine, progress: Progress) -> Found:
    """Go on with a search until `wish.trials` trials have ended.

    Raises:
        InputError: as `build` for the original; `search.target` when nothing can be said of its latency there; `search.none` when every
            trial was refused; `search.storage`, `search.other`.
        StorageError: the folder cannot be written.
    """
    runner = _Runner(wish, machine, load_board(wish.target), progress)
    base = runner.base()
    identity = runner.identity()
    name = wish.study or f"{runner.bench.name}-{identity[:12]}"
    study = Search(wish.storage or f"sqlite:///{wish.out.resolve() / 'search.db'}", name, wish.space.parameters, wish.seed, identity)
    study.run(wish.trials, runner.judge, lambda done, of: progress("trials", done, of))
    ended = study.ended()
    return _chosen(name, base, ended, wish)


class _Runner:
    def __init__(self, wish: Wish, machine: ThisMachine, board: BoardFile, progress: Progress) -> None:
        self.wish, self.machine, self.board, self.progress = wish, machine, board, progress
        seed = wish.space.template.get("seed", 0)
        if not isinstance(seed, int):
            raise InputError("search.space", "the seed may not vary: it says which images validate", remedy="give one number")
        self.bench = Bench(model_name(wish.model), wish.model, wish.data, wish.task, wish.shape, (wish.target,), seed,
                           wish.calibration_images, wish.threads)
        splits = self.bench.splits()
        self.data = joined((splits.validation, splits.train, splits.calibration))
        self.cache = wish.out / "cache"
        self.checkpoints, self.runner = Checkpoints(self.cache), JobRunner()
        self.model = digest_of(self.bench.original(self.cache).read_bytes())
        self.original = self._bundle(NAMED["fp32"], 100.0)

    def base(self) -> Cell:
        """The original in fp32 on the target; everything is told against it."""
        [cell] = self._cells([(self.original, NAMED["fp32"])])
        if cell.way is None:
            raise InputError("search.target", f"nothing can be said of a latency on {self.board.board}: {cell.reason}",
                             remedy="take a target that this machine is, or one whose board file knows its peaks (jetfleet boards show)")
        return cell

    def identity(self) -> str:
        """Digest of what makes two processes part of one search."""
        wish = self.wish
        space = hashlib.sha256(msgspec.json.encode(wish.space.template, order="sorted")).hexdigest()
        return self.checkpoints.key("search", self.model, self.data.digest, space, wish.target, wish.task, list(wish.shape), wish.seed)

    def judge(self, values: Mapping[str, Value]) -> Judged:
        """Build at a point and measure it beside the original. RefusedError with the guard's reason, or what went wrong there."""
        recipe = self.wish.space.recipe_at(values)
        try:
            bundle = self._bundle(Method("search", (), recipe=recipe), recipe.max_drop)
        except StorageError:
            raise
        except Exception as error:
            raise RefusedError(told(error)) from error
        if refused := left_out(bundle):
            raise RefusedError(refused)
        cell, base = self._cells([(bundle, _ANY), (self.original, NAMED["fp32"])])
        if cell.way is None or base.way is None or cell.way.accuracy is None or base.way.accuracy is None:
            raise RefusedError(cell.reason)
        drop = round(100.0 * (base.way.accuracy - cell.way.accuracy), 4)
        if drop > recipe.max_drop:
            raise RefusedError(f"drop of {drop:.2f} points against the original is over the limit of {recipe.max_drop:.2f}")
        ms, of = (way.p50_ms if way.p50_ms is not None else way.floor_ms or 0.0 for way in (cell.way, base.way))
        facts = {"candidate": cell.way.candidate, "drop": drop, "bytes": cell.way.size, "ms": ms, "original_ms": of, "origin": cell.origin,
                 "device": cell.way.provenance.device, "ran_in": cell.way.provenance.ran_in, "bundle": bundle.manifest_digest}
        return Judged(cell.way.accuracy, round(ms / of, 6) if of else float("inf"), facts)

    def _bundle(self, method: Method, max_drop: float) -> OpenBundle:
        key = self.checkpoints.key("search-bundle", method, self.data.digest, self.bench.task, list(self.bench.shape), self.model,
                                   self.bench.calibration_images)
        out = self.wish.out / "bundles" / key[:32]
        out.parent.mkdir(parents=True, exist_ok=True)
        if (out / "oci-layout").is_file():
            return open_bundle(out, verify=False)
        return self.bench.build(method, out, self.cache, max_drop, self.progress)

    def _cells(self, pairs: Sequence[tuple[OpenBundle, Method]]) -> list[Cell]:
        """Bundles on the target, all timed in turns where this machine is one."""
        wanted: dict[Measured, Timed] = {}
        for bundle, method in pairs if self.machine.is_a(self.board) else ():
            for way in measured_ways(bundle, method, [self.board], self.machine):
                wanted[way] = Timed(way.name, bundle.blob_path(way.digest), way.backend, way.precision)
        wish = self.wish
        timings = time_interleaved(list(wanted.values()), pairs[0][0].spec.task, self.data.images[0], self.runner, rounds=wish.rounds,
                                   runs=wish.runs, threads=wish.threads, step=lambda done, of: self.progress("latency", done, of))
        by_way, taken = {way: timings[way.name] for way in wanted}, wish.now()
        return [self._cell(bundle, method, by_way, taken) for bundle, method in pairs]

    def _cell(self, bundle: OpenBundle, method: Method, timings: Mapping[Measured, Timing], taken: float) -> Cell:
        ways = ways_of(bundle, method, self.board, self.machine, timings, self.wish.threads, taken)
        samples = max((row.samples for row in bundle.evaluation.rows), default=0)
        axis = Axis(self.bench.name, self.board.board, method.name)
        return cell_of(axis, "", bundle.evaluation.metric, samples, ways, "")


def _chosen(name: str, base: Cell, ended: tuple[Told, ...], wish: Wish) -> Found:
    good = [(trial, trial.judged) for trial in ended if trial.judged is not None]
    if not good:
        reasons = dict.fromkeys(trial.reason for trial in ended)
        raise InputError("search.none", f"every one of {len(ended)} trials was refused: {'; '.join(list(reasons)[:3])}",
                         remedy="widen the space towards gentler settings, raise its max_drop, or give more data")
    on_front = tuple(good[index][0].number for index in front([(judged.latency, judged.accuracy) for _, judged in good]))
    best, judged = min(good, key=lambda pair: (pair[1].latency, -pair[1].accuracy, pair[0].number))
    comment = (f"Found by a search of {len(ended)} trials ({name}, trial {best.number}): {judged.latency:.3f} of the original's latency on "
               f"{wish.target}\n({judged.facts['origin']}, {judged.facts['device']}), accuracy {judged.accuracy:.4f}, "
               f"drop {judged.facts['drop']:+.2f} points.")
    path = wish.out / BEST
    write_file(path, recipe_text(wish.space.recipe_at(best.values), comment).encode())
    return Found(name, base, ended, on_front, best, path)
