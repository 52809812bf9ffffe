"""Commands of the group engines that make engines on the host, and that say beforehand why one cannot be made: build, check."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError

if TYPE_CHECKING:
    from jetfleet_host.engines.board_builds import Machine, Settings
    from jetfleet_host.engines.jobs import Fault
    from jetfleet_host.engines.operator_table import Release
    from jetfleet_host.engines.records import Built
    from jetfleet_host.engines.sources import Weights, Wish

_SOURCE = typer.Argument(..., metavar="BUNDLE_OR_ONNX", help="A bundle folder, or one .onnx file.")
_VARIANTS = typer.Option([], "--variant", help="Only this variant of the bundle; may be given again. All by default.")
_SMS = typer.Option([], "--sm", min=1,
                    help="Only this compute capability, as 89; may be given again (default: 80, 86, 89, 120, 121).")
_BATCH = typer.Option("", "--batch", metavar="MIN,USUAL,MAX", help="Batch sizes for a model whose batch axis is free.")
_SIZE = typer.Option("", "--size", metavar="HxW", help="Input size where height and width are free (default: the bundle's).")
_LIBRARIES = typer.Option(None, "--libraries", help="Where TensorRT for RTX is kept (default: the user's cache).")
_OFFLINE = typer.Option(False, "--offline", help="Fetch nothing: TensorRT for RTX must be there.")
_THREADS = typer.Option(0, "--threads", min=0, max=1024, help="Threads that the board runs the model with; local and ssh.")
_FOLDED = typer.Option(False, "--folded", help="The engine takes uint8 frames, normalisation is part of it; local and ssh.")
_REMOTE_PYTHON = typer.Option("python3", "--remote-python", help="The agent's Python on the board; ssh.")
_SSH_KEY = typer.Option(None, "--ssh-key", help="Private key (default: the user's own, and the SSH agent's).")
_KNOWN_HOSTS = typer.Option(None, "--known-hosts", help="Host keys to believe (default: ~/.ssh/known_hosts).")
_JSON = typer.Option(False, "--json", help="Print JSON.")

_BUILD = """Build engines from a bundle or an ONNX file: here without a GPU, for this machine, or on a board on the bench.

`--with rtx-aot` builds with TensorRT for RTX ahead of time: engines for GeForce and RTX PRO GPUs (sm_75 to sm_121), which their driver
finishes on the board. It comes from PyPI (91 MB) and is kept in a cache. Jetson boards build their own engines: no host can.
`--with local` lets the agent's runtimes compile for this machine, `--with ssh:USER@HOST` for a builder board of the class: its host key
must be known, and the agent installed there. An engine that is there already, of the same inputs, is not built again.

Examples:

    jetfleet engines build text.bundle --with rtx-aot --sm 89 --out engines

    jetfleet engines build yolo.onnx --with rtx-aot --sm 86 --sm 89 --batch 1,4,8 --out engines --json

    jetfleet engines build text.bundle --with local --variant int8 --out engines

    jetfleet engines build text.bundle --with ssh:jetson@orin-bench --remote-python /opt/jetfleet/bin/python --out engines
"""
_CHECK = """Say what speaks against an engine of a model before a board tries: operators, restrictions, types, free axes, by node.

For TensorRT for RTX its own parser answers, where it is at hand; for TensorRT 10.3 (JetPack 6) and 11 the published table of operators.
Ends with 1 when there is something.

Examples:

    jetfleet engines check model.onnx --for tensorrt-10.3

    jetfleet engines check text.bundle --variant int8 --for tensorrt-rtx --json
"""


def add_commands(engines: typer.Typer) -> None:
    """Add these to the group `engines`."""
    engines.command("build", help=_BUILD)(build)
    engines.command("check", help=_CHECK)(check)


def build(source: Path = _SOURCE,
          backend: str = typer.Option(..., "--with", help="What builds: rtx-aot, local, or ssh:USER@HOST[:PORT]."),
          out: Path = typer.Option(..., "--out", "-o", help="Folder of the engines; made when it is missing."),  # noqa: B008 - typer's way
          variant: list[str] = _VARIANTS, sm: list[int] = _SMS, batch: str = _BATCH, size: str = _SIZE,
          memory_mb: int = typer.Option(16384, "--memory-mb", min=512, help="Address space that a build may take."),
          libraries: Path | None = _LIBRARIES, offline: bool = _OFFLINE, threads: int = _THREADS, folded: bool = _FOLDED,
          remote_python: str = _REMOTE_PYTHON, ssh_key: Path | None = _SSH_KEY, known_hosts: Path | None = _KNOWN_HOSTS,
          as_json: bool = _JSON) -> None:
    """See `_BUILD`."""
    from jetfleet_contract.messages import encode
    from jetfleet_host.engines.board_builds import Settings
    from jetfleet_host.engines.sources import Wish, weights_of

    batches, pixels = _numbers(batch, ",", 3, "--batch"), _numbers(size, "x", 2, "--size")
    make: Callable[[Weights], list[Built]]
    if backend == "rtx-aot":
        wish = Wish(batches, (pixels[0], pixels[1]) if pixels else (0, 0))
        make = _ahead_of_time(tuple(sm), wish, out, memory_mb, lambda: _libraries(libraries, offline))
    else:
        machine = _machine(backend, remote_python, ssh_key, known_hosts)
        make = _on(machine, source, out, Settings(threads, folded))
    chosen = weights_of(source, tuple(variant))
    done: list[Built] = []
    failed: list[tuple[str, JetfleetError]] = []
    for weights in chosen:
        made = _unless_incompatible(make, weights)
        if isinstance(made, JetfleetError):
            failed.append((weights.name, made))
        else:
            done += made
    if failed and len(chosen) == 1:
        raise failed[0][1]
    if as_json:
        rows = [{**json.loads(encode(built.record)), "file": str(built.path), "fresh": built.fresh} for built in done]
        print(json.dumps({"out": str(out), "engines": rows, "refused": [{"variant": name, "code": error.code, "what": error.what}
                                                                        for name, error in failed]}, indent=2))
    else:
        _print_built(done, failed)
    if failed and not done:
        raise typer.Exit(failed[0][1].exit_code)


def check(source: Path = _SOURCE,
          release: str = typer.Option(..., "--for", help="tensorrt-10.3, tensorrt-11 or tensorrt-rtx."), variant: list[str] = _VARIANTS,
          batch: str = _BATCH, size: str = _SIZE, libraries: Path | None = _LIBRARIES, offline: bool = _OFFLINE,
          as_json: bool = _JSON) -> None:
    """See `_CHECK`."""
    from jetfleet_contract.messages import encode
    from jetfleet_host.engines.operator_table import RELEASES
    from jetfleet_host.engines.sources import weights_of

    if release not in RELEASES:
        raise InputError("engine.release", f"no table for {release[:40]!r}", where="--for", remedy=f"use {', '.join(RELEASES)}")
    _numbers(batch, ",", 3, "--batch")
    _numbers(size, "x", 2, "--size")
    found = {weights.name: _faults(weights, RELEASES[release], bool(batch or size), libraries, offline)
             for weights in weights_of(source, tuple(variant))}
    if as_json:
        rows = [{"name": name, "judge": judge, "faults": [json.loads(encode(fault)) for fault in faults]}
                for name, (judge, faults) in found.items()]
        print(json.dumps({"for": release, "models": rows}, indent=2))
    else:
        for name, (judge, faults) in found.items():
            _print_faults(name, RELEASES[release].title, judge, faults)
    if any(faults for _, faults in found.values()):
        raise typer.Exit(1)


def _ahead_of_time(sms: tuple[int, ...], wish: Wish, out: Path, memory_mb: int,
                   place: Callable[[], Path]) -> Callable[[Weights], list[Built]]:
    """An engine for each SM."""
    from jetfleet_host.engines import rtx_aot

    chosen, builders = rtx_aot.checked_sms(sms), list[rtx_aot.RtxBuilder]()

    def make(weights: Weights) -> list[Built]:
        if not builders:
            builders.append(rtx_aot.RtxBuilder(place(), memory_mb=memory_mb))
        done = []
        for sm in chosen:
            with _progress(f"{weights.name} for sm_{sm}") as told:
                done.append(builders[0].build(weights, out, sm, wish, told=told))
        return done

    return make


def _on(machine: Machine, source: Path, out: Path, settings: Settings) -> Callable[[Weights], list[Built]]:
    """An engine for each way that the machine runs the weights."""
    from jetfleet_host.engines import board_builds

    task = board_builds.task_of(source)

    def make(weights: Weights) -> list[Built]:
        with _progress(f"{weights.name} on {machine.name}") as told:
            return board_builds.build(machine, weights, task, out, settings, told)

    return make


def _machine(backend: str, python: str, key: Path | None, known_hosts: Path | None) -> Machine:
    from jetfleet_host.engines.local_machine import LocalMachine
    from jetfleet_host.engines.ssh_machine import SshMachine, address_of

    if backend == "local":
        return LocalMachine()
    kind, _, address = backend.partition(":")
    if kind != "ssh" or not address:
        raise InputError("engine.backend", f"nothing here builds with {backend[:40]!r}", where="--with",
                         remedy="use rtx-aot, local, or ssh:USER@HOST")
    return SshMachine(address_of(address), python=python, key=key, known_hosts=known_hosts)


def _unless_incompatible(make: Callable[[Weights], list[Built]], weights: Weights) -> list[Built] | IncompatibleError:
    """What was made, or why these weights get no engine; anything else ends the command."""
    try:
        return make(weights)
    except IncompatibleError as error:
        return error


def _faults(weights: Weights, release: Release, profiled: bool, libraries: Path | None,
            offline: bool) -> tuple[str, tuple[Fault, ...]]:
    """Who judged, and what was found."""
    from jetfleet_host.compress.loading import load_checked
    from jetfleet_host.engines.rtx_aot import RtxBuilder
    from jetfleet_host.engines.screening import screen

    model = load_checked(weights.path)
    free = frozenset(value.name for value in model.graph.input) if profiled or all(weights.size) else frozenset()
    faults = screen(model, release, profiled=free)
    if release.name != "tensorrt-rtx":
        return "table", faults
    try:
        place = _libraries(libraries, offline)
    except JetfleetError as error:
        print(f"jetfleet: {error.what}; the table answers instead of the parser", file=sys.stderr)
        return "table", faults
    told = RtxBuilder(place).faults(weights.path)
    return "parser", (*told, *(fault for fault in faults if fault.code in ("engine.profile", "engine.type")))


def _libraries(given: Path | None, offline: bool) -> Path:
    from jetfleet_host.engines import rtx_wheels

    cache = given or rtx_wheels.default_cache()
    if not offline and not rtx_wheels.folder_of(cache).is_dir():
        print(f"engines: fetching TensorRT for RTX {rtx_wheels.VERSION} ({rtx_wheels.MEGABYTES} MB)", file=sys.stderr)
    return rtx_wheels.libraries(cache, fetch=not offline)


def _numbers(text: str, mark: str, count: int, option: str) -> tuple[int, ...]:
    if not text:
        return ()
    parts = text.lower().split(mark)
    if len(parts) != count or not all(part.strip().isdecimal() and 0 < int(part) < 1 << 16 for part in parts):
        raise InputError("engine.option", f"{option} {text[:40]!r} is not {count} numbers with {mark!r} between", where=option,
                         remedy="for example --batch 1,4,8 --size 640x640")
    return tuple(int(part) for part in parts)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr; nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    with Progress(TextColumn("{task.description:<60}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console,
                  disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=100.0)
        yield lambda phase, percent: bars.update(bar, completed=percent, description=f"{title}: {phase.lower()}")


def _print_built(done: list[Built], failed: list[tuple[str, JetfleetError]]) -> None:
    for built in done:
        record = built.record
        print(f"{record.passport.variant:<12} {_target(built)}  {record.passport.recipe.precision:<5} "
              f"{record.size:>11} bytes  {'built' if built.fresh else 'unchanged':<9}  {built.path}")
    for name, error in failed:
        print(f"{name:<12} no engine: {error.what} [{error.code}]{', ' + error.where if error.where else ''}")


def _target(built: Built) -> str:
    footing = built.record.passport.footing
    return f"{f'sm_{footing.sm}' if footing.sm else footing.backend:<8}"


def _print_faults(name: str, title: str, judge: str, faults: tuple[Fault, ...]) -> None:
    by = "its own parser" if judge == "parser" else "the published table of operators"
    if not faults:
        print(f"{name}: nothing speaks against an engine of {title}, by {by}.")
        return
    print(f"{name}: {len(faults)} {'reason' if len(faults) == 1 else 'reasons'} against an engine of {title}, by {by}:")
    for fault in faults:
        at = f" at node {fault.node}" if fault.node else ""
        print(f"  {fault.what}{at} [{fault.code}]" + (f"\n    try: {fault.remedy}" if fault.remedy else ""))
