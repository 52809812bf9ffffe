"""Floors of a bundle's candidates on the boards that it is for: computed from board files and graphs, never measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.errors import InputError
from jetfleet_contract.policy import candidates
from jetfleet_contract.roofline import Work, floor, modes_with_peak

from .boards import load_board
from .bundles import OpenBundle
from .network_work import work_of

FORMULA = ("Floors are computed, not measured: the roofline (Williams et al., 2009) summed over convolutions and matrix products, each "
           "the longer of operations / dense peak and bytes / bandwidth; weights count once, activations beyond the L2 cache, "
           "fused work not at all. Peaks: the board file (jetfleet boards show BOARD).")
HEADINGS = ("candidate", "board", "power mode", "floor ms", "whole graph ms", "bound by")


@dataclass(frozen=True)
class FloorLine:
    """One candidate on one board in one power mode. `floor_ms` is None where nothing can be said, and `reason` says why."""

    candidate: str
    board: str
    power_mode: str
    floor_ms: float | None
    whole_graph_ms: float | None = None
    bound: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """As table cells, in the order of `HEADINGS`."""
        if self.floor_ms is None:
            return (self.candidate, self.board, self.power_mode or "-", "-", "-", self.reason)
        return (self.candidate, self.board, self.power_mode, f"{self.floor_ms:.3g}", f"{self.whole_graph_ms:.3g}", self.bound)


def floors_of(bundle: OpenBundle) -> list[FloorLine]:
    """A line for each TensorRT candidate, each board of the bundle's targets that has TensorRT, and each power mode with a known peak."""
    boards = [board for name in bundle.spec.targets if (board := _known(name)) is not None and board.rule("tensorrt") is not None]
    found: list[FloorLine] = []
    works: dict[str, Work | str] = {}
    for candidate in candidates(bundle.spec) if boards else ():
        if candidate.backend != "tensorrt":
            continue
        if candidate.variant not in works:
            works[candidate.variant] = _work(bundle, candidate.variant)
        for board in boards:
            found.extend(_lines(candidate.name, candidate.precision, board, works[candidate.variant]))
    return found


def _known(name: str) -> BoardFile | None:
    try:
        return load_board(name)
    except InputError:
        return None  # a bundle may come from a project with board files of its own


def _work(bundle: OpenBundle, variant: str) -> Work | str:
    try:
        return work_of(bundle.blob_path(bundle.spec.variant(variant).digest))
    except InputError as error:
        return error.what


def _lines(name: str, precision: str, board: BoardFile, work: Work | str) -> Iterator[FloorLine]:
    rule = board.rule("tensorrt")
    if rule is None or precision not in rule.precisions:
        yield FloorLine(name, board.board, "", None, reason=f"TensorRT does not run {precision} there")
        return
    if isinstance(work, str):
        yield FloorLine(name, board.board, "", None, reason=work)
        return
    modes = list(modes_with_peak(board))
    if not modes:
        yield FloorLine(name, board.board, "", None, reason="the board file knows no peak")
    for mode in modes:
        least = floor(work, board, mode, precision)
        if least is None:
            yield FloorLine(name, board.board, mode.name, None, reason=f"the board file knows no peak for {precision}")
        else:
            yield FloorLine(name, board.board, mode.name, float(f"{least.ms:.4g}"), float(f"{least.whole_ms:.4g}"), least.bound)
