"""Command: matrix."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jetfleet_host.commands.bars import stage_bars
from jetfleet_host.commands.list_options import ListCommand

if TYPE_CHECKING:
    from jetfleet_host.matrix.cells import Matrix

_MODELS = typer.Option(..., "--models", metavar="MODEL", help="Trained models: files, or factories package.module:function; one or more.")
_TARGETS = typer.Option(..., "--targets", metavar="BOARD", help="Targets, by the names of their board files.")
_METHODS = typer.Option(["fp32", "fp16", "int8"], "--methods", metavar="METHOD",
                        help="fp32, bf16, fp16, int8, ptq-minmax, ptq-percentile, ptq-entropy, ptq-mse, the name of a "
                             "recipe (`jetfleet recipes`), or a recipe file R.toml: one or more.")
_DATA = typer.Option(..., "--data", help="Folder of images, with labels.json or class sub-folders where there are labels.")
_OUT = typer.Option(..., "--out", help="Folder of the matrix; an earlier run's cells in it stay.")
_RECORDS = typer.Option([], "--record", metavar="FILE",
                        help="What a board measured itself: jetfleet-agent bench --bundle DIR --record FILE.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("matrix", cls=ListCommand)(matrix)


def matrix(
    models: list[str] = _MODELS,
    targets: list[str] = _TARGETS,
    methods: list[str] = _METHODS,
    data: Path = _DATA,
    out: Path = _OUT,
    record: list[Path] = _RECORDS,
    preset: str = typer.Option("", help="Known pre-processing, as for `jetfleet build`."),
    task: str = typer.Option("", help="What the output means, as for `jetfleet build` (default: classify)."),
    shape: str = typer.Option("", help="Input shape, for example 1x3x224x224 (default: each model's own)."),
    mean: str = typer.Option("", help="One or three numbers: tensor = (pixel * scale - mean) / std."),
    std: str = typer.Option("", help="One or three numbers."),
    scale: float = typer.Option(0.0, help="Factor on the 0..255 pixels (default: the preset's, 1/255)."),
    max_drop: float = typer.Option(0.5, min=0.0, help="Largest accepted loss of accuracy against fp32, in points."),
    calibration_images: int = typer.Option(32, min=1, max=4096, help="Images to calibrate with, evenly spaced over the data."),
    threads: int = typer.Option(0, min=0, max=1024, help="CPU threads for scoring and timing; 0 lets the runtime decide."),
    latency_rounds: int = typer.Option(3, min=1, max=100, help="Rounds of timing over all candidates of a model."),
    seed: int = typer.Option(0, min=0, help="Of the split: which images train, validate and calibrate; one for all methods."),
    latency_runs: int = typer.Option(20, min=1, max=10_000, help="Timed sessions of a candidate in each round."),
    as_json: bool = _JSON,
) -> None:
    """Fill {model x target x method}: accuracy, size, latency, memory, and where each number comes from.

    A target that this machine is gets measured here; a Jetson's cell is the floor of its roofline until a record of a board of its class
    comes; what is neither is empty, with the reason. A run that was stopped goes on where it was.

    Examples:

        jetfleet matrix --models a.onnx b.onnx --targets cpu-x86 orin-nano --methods fp32 int8 --data images --out m

        jetfleet matrix --models a.onnx --targets orin-nano --data images --out m --record orin.json --json
    """
    from jetfleet_host.commands.task_options import task_reader
    from jetfleet_host.matrix.filling import Request, fill
    from jetfleet_host.matrix.machine import this_machine
    from jetfleet_host.matrix.methods import method_of
    from jetfleet_host.matrix.records import Records, load_record
    from jetfleet_host.matrix.store import MatrixStore

    chosen = tuple(method_of(name) for name in dict.fromkeys(methods))
    read = task_reader(task or ("" if preset else "classify"), preset, shape=shape, mean=mean, std=std, scale=scale)
    request = Request(tuple(models), tuple(dict.fromkeys(targets)), chosen, data, read, time.time,
                      Records(tuple(load_record(path) for path in record)), max_drop, calibration_images, threads, latency_rounds,
                      latency_runs, seed)
    with stage_bars() as step:
        filled = fill(request, MatrixStore(out), this_machine(), step)
    show(filled, out, as_json)


def show(filled: Matrix, folder: Path, as_json: bool) -> None:
    """A matrix on the terminal, or as JSON."""
    from jetfleet_host.matrix import views

    if as_json:
        print(json.dumps({**views.as_json(filled), "path": str(folder)}, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=str(folder), title_justify="left")
    for index, heading in enumerate(views.HEADINGS):
        table.add_column(heading, justify="left" if index in (0, 1, 2, 11) else "right", overflow="fold")
    for cells, cell in zip(views.text_rows(filled), filled.cells, strict=True):
        table.add_row(*map(escape, cells), style="" if cell.origin != "empty" else "red")
    console = Console() if sys.stdout.isatty() else Console(width=180)
    console.print(table)
    for sentence in views.provenance(filled):
        console.print(sentence, highlight=False)
    found = views.counts(filled)
    print(f"{found['measured']} measured, {found['floor']} floors, {found['empty']} empty"
          + (f", {found['missing']} not reached yet" if found["missing"] else "") + f". Next: jetfleet report {folder} --html report.html")
