"""Commands: boards list, boards show. What is known of each board, and from where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from jetfleet_contract.boards import BoardFile, PowerMode

_JSON = typer.Option(False, "--json", help="Print JSON.")
_BOARD = typer.Argument(..., metavar="BOARD", help="A board's name, as `jetfleet boards list` has it.")

_HELP = """What is known of each board: hardware, releases, power modes, flashing names, and the source of every value.

Examples:

    jetfleet boards

    jetfleet boards show agx-orin-64
"""
_LIST = """List every board file, and whether the agent runs there today.

Example: jetfleet boards list --json
"""
_SHOW = """Show one board: what it has and runs, what is planned, and where each value comes from.

Examples:

    jetfleet boards show orin-nano

    jetfleet boards show thor-t5000 --json
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="boards", help=_HELP, invoke_without_command=True)
    group.callback()(boards)
    group.command("list", help=_LIST)(list_boards)
    group.command("show", help=_SHOW)(show)
    app.add_typer(group)


def boards(context: typer.Context, as_json: bool = _JSON) -> None:
    if context.invoked_subcommand is None:
        list_boards(as_json)


def list_boards(as_json: bool = _JSON) -> None:
    from jetfleet_host.boards import board_names, load_board

    found = [load_board(name) for name in board_names()]
    if as_json:
        typer.echo(json.dumps([board.to_tree() for board in found], indent=2))
        return
    typer.echo(f"{'board':20} {'SM':5} {'memory':>7} {'agent':8} what it is")
    for board in found:
        sm = board.gpu.sm if board.gpu else "-"
        memory = f"{board.memory_mb / 1024:.0f} GB" if board.memory_mb else "-"
        typer.echo(f"{board.board:20} {sm:5} {memory:>7} {'yes' if board.support == 'agent' else 'planned':8} {board.title}")


def show(name: str = _BOARD, as_json: bool = _JSON) -> None:
    from jetfleet_host.boards import load_board

    board = load_board(name)
    typer.echo(json.dumps(board.to_tree(), indent=2) if as_json else "\n".join(lines_of(board)))


def lines_of(board: BoardFile) -> Iterator[str]:
    """The board as text; what is not known has no line."""
    yield f"{board.board}: {board.title} ({board.arch})"
    yield "agent: runs there" if board.support == "agent" else f"agent: planned; {board.why_not}"
    yield from _identity(board)
    yield from _hardware(board)
    for rule in board.backends:
        pays = f", known to pay: {', '.join(rule.pays)}" if rule.pays else ""
        yield f"backend {rule.name}: {', '.join(rule.precisions)}{pays}"
    yield from (f"power mode {mode.name}: {_mode(mode)}" for mode in board.power_modes)
    for release in board.releases:
        parts = {"L4T": release.l4t, "CUDA": release.cuda, "TensorRT": release.tensorrt, "Python": release.python, "glibc": release.glibc}
        yield f"release {release.name}: " + ", ".join(f"{what} {version}" for what, version in parts.items() if version)
    yield from (f"camera {camera.name}: {camera.pipeline}" for camera in board.cameras)
    yield from (f"flash, {target.name}: {target.tool} {target.config}" for target in board.flash)
    yield from (f"note: {note}" for note in board.notes)
    yield from (f"source of {path}: {text}" for path, text in board.sources.items())


def _identity(board: BoardFile) -> Iterator[str]:
    if board.device_tree:
        yield f"told by: device tree {', '.join(board.device_tree)}"
    if board.driver:
        yield f"told by: the kernel driver {board.driver}"
    if board.any_isa:
        yield f"told by: one of the CPU flags {', '.join(board.any_isa)}"


def _hardware(board: BoardFile) -> Iterator[str]:
    cores = f", {board.cores} cores" if board.cores else ""
    if board.cpu:
        yield f"CPU: {board.cpu}{cores}"
    if board.memory_mb:
        yield f"memory: {board.memory_mb} MB" + (f", {board.memory_gb_s:g} GB/s" if board.memory_gb_s else "")
    if board.gpu:
        counts = {"multiprocessors": board.gpu.sm_count, "CUDA cores": board.gpu.cuda_cores, "tensor cores": board.gpu.tensor_cores,
                  "KiB of L2": board.gpu.l2_kb, "DLA cores": board.gpu.dla_cores}
        yield f"GPU: {board.gpu.name}, SM {board.gpu.sm}, " + ", ".join(f"{n} {what}" for what, n in counts.items() if n is not None)
    if board.dla:
        used = ", ".join(board.dla.releases)
        yield f"DLA: generation {board.dla.generation}, {', '.join(board.dla.precisions)}; TensorRT uses it on {used}"
    if board.thermal_zones:
        yield f"thermal zones: {', '.join(board.thermal_zones)}"


def _mode(mode: PowerMode) -> str:
    parts = [f"{mode.watts:g} W" if mode.watts else "", f"GPU {mode.gpu_mhz:g} MHz" if mode.gpu_mhz else "",
             f"{mode.memory_gb_s:g} GB/s" if mode.memory_gb_s else ""]
    parts += [f"{tops:g} dense {name} TOPS" for name, tops in mode.dense_tops.items()]
    parts += [f"{tops:g} {name} TOPS by the DLA" for name, tops in mode.dla_tops.items()]
    return ", ".join(part for part in parts if part) or "no figure known"
