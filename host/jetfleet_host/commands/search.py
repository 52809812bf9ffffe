"""Command: search."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_host.commands.bars import stage_bars

if TYPE_CHECKING:
    from jetfleet_host.search.running import Found

STORAGE_VARIABLE = "JETFLEET_SEARCH_STORAGE"
_MODEL = typer.Argument(..., metavar="MODEL", help="The trained model: a file, or a factory package.module:function.")
_SPACE = typer.Option("search", "--space", metavar="NAME|S.toml", help="The space: a recipe file whose values may be ranges and choices, "
                      "or one that comes along: search (torch modules), search-ptq (any model).")
_DATA = typer.Option(..., "--data", help="Labelled images: a folder, a .npz or a factory, as for `jetfleet build`.")
_OUT = typer.Option(..., "--out", help="Folder for bundles, the best recipe and, without --storage, the trials.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("search")(search)


def search(
    model: str = _MODEL,
    space: str = _SPACE,
    data: str = _DATA,
    out: Path = _OUT,
    target: str = typer.Option("cpu-x86", help="The board whose latency counts: measured when this machine is one, else its floor."),
    trials: int = typer.Option(20, min=1, max=100_000, help="Trials in all, those of earlier runs and of other processes among them."),
    seed: int = typer.Option(0, min=0, help="The same seed, model and data propose the same points."),
    storage: str = typer.Option("", help=f"URL of a database that machines share (default: ${STORAGE_VARIABLE}, else a file in --out)."),
    study: str = typer.Option("", help="Name of the search in the storage (default: follows from model, data, space, target and seed)."),
    preset: str = typer.Option("", help="Known pre-processing, as for `jetfleet build`."),
    task: str = typer.Option("", help="What the output means, as for `jetfleet build` (default: classify)."),
    shape: str = typer.Option("", help="Input shape, for example 1x3x224x224 (default: the model's own)."),
    mean: str = typer.Option("", help="One or three numbers: tensor = (pixel * scale - mean) / std."),
    std: str = typer.Option("", help="One or three numbers."),
    scale: float = typer.Option(0.0, help="Factor on the 0..255 pixels (default: the preset's, 1/255)."),
    threads: int = typer.Option(0, min=0, max=1024, help="CPU threads for scoring and timing; 0 lets the runtime decide."),
    latency_rounds: int = typer.Option(2, min=1, max=100, help="Rounds of timing, the original and a trial in turns."),
    as_json: bool = _JSON,
) -> None:
    """Search recipes for accuracy and the target's latency, and write the best one as a recipe file.

    A trial that the guard refuses counts as pruned. A search that was stopped goes on; processes with one --storage search together.

    Examples:

        jetfleet search nets:resnet18 --data images --target orin-nano --out found

        jetfleet search nets:resnet18 --space space.toml --trials 40 --data images --out found

        jetfleet search model.onnx --space space.toml --data images --out found --storage postgresql+psycopg://fleet@db/search --json
    """
    from msgspec.structs import replace

    from jetfleet_contract.errors import InputError
    from jetfleet_host.commands.task_options import task_reader
    from jetfleet_host.compress.intake.images import data_folder
    from jetfleet_host.compress.recipe_shelf import space_names, text_of
    from jetfleet_host.matrix.machine import this_machine
    from jetfleet_host.search.running import Wish
    from jetfleet_host.search.running import search as run
    from jetfleet_host.search.space import parse_space

    try:
        read = parse_space(text_of(space).encode() if space in space_names() else Path(space).read_bytes(), space)
    except OSError as error:
        raise InputError("search.space", f"the space cannot be read: {error.strerror}", where=space, remedy="check the path") from None
    spec, size = task_reader(task or ("" if preset else "classify"), preset, shape=shape, mean=mean, std=std, scale=scale)(model)
    given = data_folder(data, out / "cache" / "data")
    spec = replace(spec, labels=spec.labels or given.classes)
    wish = Wish(model, given.folder, out, read, target, spec, size, time.time, trials, seed,
                storage or os.environ.get(STORAGE_VARIABLE, ""), study, threads, latency_rounds)
    with stage_bars() as step:
        found = run(wish, this_machine(), step)
    _show(found, as_json)


def _show(found: Found, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(found), indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=found.study, title_justify="left")
    for heading in ("trial", "accuracy", "of the original's latency", "drop", "candidate", "values"):
        table.add_column(heading, overflow="fold")
    for trial in found.trials:
        values = " ".join(f"{name}={value}" for name, value in trial.values.items())
        number = f"{trial.number}{' *' if trial.number in found.on_front else ''}{' best' if trial == found.best else ''}"
        if trial.judged is None:
            table.add_row(number, "-", "-", "-", escape(f"refused: {trial.reason}"), values, style="red")
            continue
        judged = trial.judged
        table.add_row(number, f"{judged.accuracy:.4f}", f"{judged.latency:.3f}", f"{judged.facts['drop']:+.2f}",
                      str(judged.facts["candidate"]), values)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    origin = found.base.origin
    where = "measured beside the original on this machine" if origin == "measured" else "computed floors of the board, nothing was measured"
    console.print(f"Latency: {where}. *: on the Pareto front.", highlight=False)
    print(f"Wrote {found.recipe}.")


def _as_json(found: Found) -> dict[str, Any]:
    trials = [{"number": trial.number, "values": dict(trial.values), "refused": trial.reason if trial.judged is None else None,
               "accuracy": trial.judged.accuracy if trial.judged else None, "latency": trial.judged.latency if trial.judged else None,
               "on_front": trial.number in found.on_front, **(trial.judged.facts if trial.judged else {})} for trial in found.trials]
    return {"study": found.study, "origin": found.base.origin, "best": found.best.number, "recipe": str(found.recipe), "trials": trials}
