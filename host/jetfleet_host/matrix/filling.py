"""Fills the matrix: builds each method of each model once, times what this machine can run, computes floors for boards, takes records in.

A model's methods are timed together and in turns, so that a slow phase of the machine hits all alike. A cell that fails
keeps its reason, and the rest goes on; every finished cell is on disk before the next model begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.bundle import TaskSpec, digest_of
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.topics import check_name
from jetfleet_host.boards import load_board
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.dataset import DataSet
from jetfleet_host.compress.intake.splitting import joined, load_splits
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.recipe import Shape
from jetfleet_host.compress.timing import Timed, Timing, time_interleaved

from .cells import Axis, Cell, Header, Matrix, cell_of, failed_cell
from .machine import ThisMachine
from .method_build import Bench, left_out, model_name
from .methods import Method
from .records import Records
from .store import MatrixStore
from .ways import Measured, measured_ways, ways_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What to fill. `models`: files or factories; `task_of` gives task and shape of one; `now`: seconds since 1970, when a timing ended."""

    models: tuple[str, ...]
    targets: tuple[str, ...]
    methods: tuple[Method, ...]
    data: Path
    task_of: Callable[[str], tuple[TaskSpec, Shape]]
    now: Callable[[], float]
    records: Records = field(default_factory=Records)
    max_drop: float = 0.5
    calibration_images: int = 32
    threads: int = 0
    rounds: int = 3
    runs: int = 20
    seed: int = 0


@dataclass(frozen=True)
class _Made:
    """A method's bundle of one model."""

    method: Method
    key: str
    bundle: OpenBundle


@dataclass(frozen=True)
class _Failed:
    """Why a method has no bundle of one model."""

    method: Method
    key: str
    reason: str


def fill(request: Request, store: MatrixStore, machine: ThisMachine, progress: Progress) -> Matrix:
    """Fill what is not filled yet.

    Raises:
        InputError: anything wrong with the options, the data or the folder; never what a single cell ran into.
        StorageError: the folder cannot be written.
    """
    boards = tuple(load_board(name) for name in request.targets)
    names = _names(request.models)
    splits = load_splits(request.data, request.seed, request.calibration_images)
    data = joined((splits.validation, splits.train, splits.calibration))
    digests = {name: _digest(Path(model)) for name, model in names.items()}
    store.begin(Header(tuple(names), request.targets, tuple(method.name for method in request.methods), data.digest, request.max_drop,
                       request.threads, digests))
    filler = _Filler(request, store, machine, boards, data, progress)
    for index, (name, model) in enumerate(names.items()):
        progress("models", index, len(names))
        filler.model(name, model)
    progress("models", len(names), len(names))
    return store.matrix()


class _Filler:
    def __init__(self, request: Request, store: MatrixStore, machine: ThisMachine, boards: Sequence[BoardFile], data: DataSet,
                 progress: Progress) -> None:
        self.request, self.store, self.machine, self.boards = request, store, machine, boards
        self.data, self.progress = data, progress
        self.checkpoints, self.runner = Checkpoints(store.cache), JobRunner()

    def model(self, name: str, model: str) -> None:
        """All cells of one model."""
        try:
            task, shape = self.request.task_of(model)
            bench = Bench(name, model, self.request.data, task, shape, self.request.targets, self.request.seed,
                          self.request.calibration_images, self.request.threads)
            digest = digest_of(bench.original(self.store.cache).read_bytes())
        except Exception as error:  # noqa: BLE001 - a stranger's file: the reason is the result
            key = self.checkpoints.key("matrix-model", model)
            self._fail(name, [_Failed(method, key, told(error)) for method in self.request.methods])
            return
        made = [self._made(bench, self._bundle_key(digest, bench, method), method)
                for method in self.request.methods if self._open(bench, digest, method)]
        self._fail(name, [one for one in made if isinstance(one, _Failed)])
        good = [one for one in made if isinstance(one, _Made)]
        timings = self._timed(good)
        for one in good:
            self._cells(name, one, timings)

    def _open(self, bench: Bench, digest: str, method: Method) -> bool:
        """Whether some cell of that method is still to be filled; a floor is, when records may replace it."""
        key = self._bundle_key(digest, bench, method)
        found = [self.store.find(self._cell_key(key, Axis(bench.name, board.board, method.name))) for board in self.boards]
        return any(cell is None or not cell.done or (cell.origin == "floor" and self.request.records.records) for cell in found)

    def _bundle_key(self, digest: str, bench: Bench, method: Method) -> str:
        wish = self.request
        return self.checkpoints.key("matrix-bundle", digest, self.data.digest, bench.task, list(bench.shape), method, wish.max_drop,
                                    wish.calibration_images)

    def _cell_key(self, bundle_key: str, axis: Axis) -> str:
        return self.checkpoints.key("matrix-cell", bundle_key, axis, self.request.threads, self.request.rounds, self.request.runs)

    def _made(self, bench: Bench, key: str, method: Method) -> _Made | _Failed:
        out = self.store.bundles / key[:32]
        bundle = _whole(out)
        if bundle is None:
            try:
                bundle = bench.build(method, out, self.store.cache, self.request.max_drop,
                                     lambda stage, done, of: self.progress(f"{bench.name}, {method.name}: {stage}", done, of))
            except Exception as error:  # noqa: BLE001 - whatever a cell runs into is its reason; the others go on
                return _Failed(method, key, told(error))
        return _Made(method, key, bundle)

    def _timed(self, made: Iterable[_Made]) -> dict[Measured, Timing]:
        """One timing of each different (file, backend, precision) over all of the model's methods."""
        local = [board for board in self.boards if self.machine.is_a(board)]
        if not local:
            return {}
        wanted: dict[Measured, tuple[Path, TaskSpec]] = {}
        for one in made:
            for way in measured_ways(one.bundle, one.method, local, self.machine):
                wanted.setdefault(way, (one.bundle.blob_path(way.digest), one.bundle.spec.task))
        if not wanted:
            return {}
        task = next(iter(wanted.values()))[1]
        timings = time_interleaved([Timed(way.name, path, way.backend, way.precision) for way, (path, _) in wanted.items()], task,
                                   self.data.images[0], self.runner, rounds=self.request.rounds, runs=self.request.runs,
                                   threads=self.request.threads, step=lambda done, of: self.progress("latency", done, of))
        return {way: timings[way.name] for way in wanted}

    def _cells(self, name: str, made: _Made, timings: dict[Measured, Timing]) -> None:
        evaluation, taken = made.bundle.evaluation, self.request.now()
        samples = max((row.samples for row in evaluation.rows), default=0)
        for board in self.boards:
            axis = Axis(name, board.board, made.method.name)
            ways = ways_of(made.bundle, made.method, board, self.machine, timings, self.request.threads, taken)
            ways = [self.request.records.measured(way, board) for way in ways]
            cell = cell_of(axis, self._cell_key(made.key, axis), evaluation.metric, samples, ways, made.key[:32])
            note = left_out(made.bundle)
            self._keep(msgspec.structs.replace(cell, reason=f"{cell.reason}; {note}") if note else cell)

    def _keep(self, cell: Cell) -> None:
        """A cell that another machine has measured is not given up for one that this one cannot."""
        known = self.store.find(cell.key)
        if known is None or known.origin != "measured" or cell.origin == "measured":
            self.store.keep(cell)

    def _fail(self, name: str, failed: Iterable[_Failed]) -> None:
        for one in failed:
            for board in self.boards:
                axis = Axis(name, board.board, one.method.name)
                self.store.keep(failed_cell(axis, self._cell_key(one.key, axis), one.reason))


def told(error: Exception) -> str:
    """An error as one sentence for a cell."""
    if isinstance(error, JetfleetError):
        return f"{error.what} [{error.code}]"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else 'no text'}"


def _whole(out: Path) -> OpenBundle | None:
    """A bundle that an earlier run finished; a damaged one is moved away and made again."""
    if not out.exists():
        return None
    try:
        return open_bundle(out)
    except (InputError, MalformedError, UntrustedError):
        out.rename(out.with_name(f"{out.name}.damaged"))
        return None


def _names(models: Sequence[str]) -> dict[str, str]:
    """Models by their names; InputError `matrix.name` when two have the same."""
    found: dict[str, str] = {}
    for model in models:
        name = model_name(model)
        check_name("model", name)
        if name in found:
            raise InputError("matrix.name", f"two models are named {name!r}", where=model, remedy="rename one of them")
        found[name] = model
    return found


def _digest(path: Path) -> str:
    """Of the file; a factory and a file that cannot be read have none."""
    try:
        return digest_of(path.read_bytes())
    except OSError:
        return ""
