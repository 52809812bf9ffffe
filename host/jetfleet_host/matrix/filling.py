"""Fills the matrix: builds each method of each model once, times what this machine can run, computes floors for boards, takes records in.

A model's methods are timed together and in turns, so that a slow phase of the machine hits all alike. A cell that fails
keeps its reason, and the rest goes on; every finished cell is on disk before the next model begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.bundle import TaskSpec, digest_of
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.topics import check_name
from jetfleet_host.boards import load_board
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.compress.building import build
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.dataset import DataSet, load_data
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.compress.recipe import Job, Recipe, Shape
from jetfleet_host.compress.timing import Timed, Timing, time_interleaved

from .cells import Axis, Cell, Header, Matrix, cell_of, failed_cell
from .machine import ThisMachine
from .methods import Method
from .records import Records
from .store import MatrixStore
from .ways import Measured, measured_ways, ways_of

Progress = Callable[[str, int, int], None]
VERSION = "matrix"


@dataclass(frozen=True)
class Request:
    """What to fill. `task_of` gives task and shape of a model file; `now` seconds since 1970, asked when a timing ends."""

    models: tuple[Path, ...]
    targets: tuple[str, ...]
    methods: tuple[Method, ...]
    data: Path
    task_of: Callable[[Path], tuple[TaskSpec, Shape]]
    now: Callable[[], float]
    records: Records = field(default_factory=Records)
    max_drop: float = 0.5
    calibration_images: int = 32
    threads: int = 0
    rounds: int = 3
    runs: int = 20


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
    data = load_data(request.data)
    digests = {name: _digest(path) for name, path in names.items()}
    store.begin(Header(tuple(names), request.targets, tuple(method.name for method in request.methods), data.digest, request.max_drop,
                       request.threads, digests))
    filler = _Filler(request, store, machine, boards, data, progress)
    for index, (name, path) in enumerate(names.items()):
        progress("models", index, len(names))
        filler.model(name, path, digests[name])
    progress("models", len(names), len(names))
    return store.matrix()


class _Filler:
    def __init__(self, request: Request, store: MatrixStore, machine: ThisMachine, boards: Sequence[BoardFile], data: DataSet,
                 progress: Progress) -> None:
        self.request, self.store, self.machine, self.boards = request, store, machine, boards
        self.data, self.progress = data, progress
        self.checkpoints, self.runner = Checkpoints(store.cache), JobRunner()

    def model(self, name: str, path: Path, digest: str) -> None:
        """All cells of one model."""
        try:
            task, shape = self.request.task_of(path)
        except Exception as error:  # noqa: BLE001 - a stranger's file: the reason is the result
            key = self.checkpoints.key("matrix-model", digest)
            self._fail(name, [_Failed(method, key, told(error)) for method in self.request.methods])
            return
        made = [self._made(name, path, task, shape, self._bundle_key(digest, task, shape, method), method)
                for method in self.request.methods if self._open(name, digest, task, shape, method)]
        self._fail(name, [one for one in made if isinstance(one, _Failed)])
        good = [one for one in made if isinstance(one, _Made)]
        timings = self._timed(good)
        for one in good:
            self._cells(name, one, timings)

    def _open(self, name: str, digest: str, task: TaskSpec, shape: Shape, method: Method) -> bool:
        """Whether some cell of that method is still to be filled; a floor is, when records may replace it."""
        key = self._bundle_key(digest, task, shape, method)
        found = [self.store.find(self._cell_key(key, Axis(name, board.board, method.name))) for board in self.boards]
        return any(cell is None or not cell.done or (cell.origin == "floor" and self.request.records.records) for cell in found)

    def _bundle_key(self, digest: str, task: TaskSpec, shape: Shape, method: Method) -> str:
        wish = self.request
        return self.checkpoints.key("matrix-bundle", digest, self.data.digest, task, list(shape), method, wish.max_drop,
                                    wish.calibration_images)

    def _cell_key(self, bundle_key: str, axis: Axis) -> str:
        return self.checkpoints.key("matrix-cell", bundle_key, axis, self.request.threads, self.request.rounds, self.request.runs)

    def _made(self, name: str, path: Path, task: TaskSpec, shape: Shape, key: str, method: Method) -> _Made | _Failed:
        wish = self.request
        out = self.store.bundles / key[:32]
        bundle = _whole(out)
        if bundle is None:
            recipe = Recipe(name, VERSION, wish.targets, task, shape, methods=method.makes, max_drop=wish.max_drop,  # type: ignore[arg-type]
                            calibrator=method.calibrator, calibration_images=wish.calibration_images, threads=wish.threads,
                            latency_rounds=0)
            try:
                build(Job(path, wish.data, out, self.store.cache), recipe,
                      lambda stage, done, of: self.progress(f"{name}, {method.name}: {stage}", done, of))
                bundle = open_bundle(out)
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
            self._keep(cell)

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


def _names(models: Sequence[Path]) -> dict[str, Path]:
    """Models by the name of their file; InputError `matrix.name` when two have the same."""
    found: dict[str, Path] = {}
    for path in models:
        name = path.stem.lower()
        check_name("model", name)
        if name in found:
            raise InputError("matrix.name", f"two models are named {name!r}", where=str(path), remedy="rename one of the files")
        found[name] = path
    return found


def _digest(path: Path) -> str:
    """Of the file; a file that cannot be read has none, and its cells will say why."""
    try:
        return digest_of(path.read_bytes())
    except OSError:
        return ""
