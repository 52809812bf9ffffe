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
    from jetfleet_host.engines.jobs import Fault
    from jetfleet_host.engines.operator_table import Release
    from jetfleet_host.engines.rtx_aot import Built, RtxBuilder
    from jetfleet_host.engines.sources import Weights, Wish

_SOURCE = typer.Argument(..., metavar="BUNDLE_OR_ONNX", help="A bundle folder, or one .onnx file.")
_VARIANTS = typer.Option([], "--variant", help="Only this variant of the bundle; may be given again. All by default.")
_SMS = typer.Option([], "--sm", min=1,
                    help="Only this compute capability, as 89; may be given again (default: 80, 86, 89, 120, 121).")
_BATCH = typer.Option("", "--batch", metavar="MIN,USUAL,MAX", help="Batch sizes for a model whose batch axis is free.")
_SIZE = typer.Option("", "--size", metavar="HxW", help="Input size where height and width are free (default: the bundle's).")
_LIBRARIES = typer.Option(None, "--libraries", help="Where TensorRT for RTX is kept (default: the user's cache).")
_OFFLINE = typer.Option(False, "--offline", help="Fetch nothing: TensorRT for RTX must be there.")
_JSON = typer.Option(False, "--json", help="Print JSON.")

_BUILD = """Build engines from a bundle or an ONNX file, on this machine, without a GPU.

`--with rtx-aot` builds with TensorRT for RTX ahead of time: engines for GeForce and RTX PRO GPUs (sm_75 to sm_121), which their driver
finishes on the board. It comes from PyPI (91 MB) and is kept in a cache. Jetson boards build their own engines: no host can.
An engine that is there already, of the same inputs, is not built again.

Examples:

    jetfleet engines build text.bundle --with rtx-aot --sm 89 --out engines

    jetfleet engines build yolo.onnx --with rtx-aot --sm 86 --sm 89 --batch 1,4,8 --out engines --json
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
          backend: str = typer.Option(..., "--with", help="What builds: rtx-aot."),
          out: Path = typer.Option(..., "--out", "-o", help="Folder of the engines; made when it is missing."),  # noqa: B008 - typer's way
          variant: list[str] = _VARIANTS, sm: list[int] = _SMS, batch: str = _BATCH, size: str = _SIZE,
          memory_mb: int = typer.Option(16384, "--memory-mb", min=512, help="Address space that a build may take."),
          libraries: Path | None = _LIBRARIES, offline: bool = _OFFLINE, as_json: bool = _JSON) -> None:
    """See `_BUILD`."""
    from jetfleet_contract.messages import encode
    from jetfleet_host.engines import rtx_aot
    from jetfleet_host.engines.sources import Wish, weights_of

    if backend != "rtx-aot":
        raise InputError("engine.backend", f"nothing here builds with {backend[:40]!r}", where="--with", remedy="use rtx-aot")
    sms, batches, pixels = rtx_aot.checked_sms(tuple(sm)), _numbers(batch, ",", 3, "--batch"), _numbers(size, "x", 2, "--size")
    chosen = weights_of(source, tuple(variant))
    builder = rtx_aot.RtxBuilder(_libraries(libraries, offline), memory_mb=memory_mb)
    done: list[Built] = []
    failed: list[tuple[str, JetfleetError]] = []
    for weights in chosen:
        made = _each(builder, weights, out, sms, Wish(batches, (pixels[0], pixels[1]) if pixels else (0, 0)))
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


def _each(builder: RtxBuilder, weights: Weights, out: Path, sms: tuple[int, ...], wish: Wish) -> list[Built] | IncompatibleError:
    """An engine for each SM, or why these weights get none."""
    done = []
    for sm in sms:
        try:
            with _progress(f"{weights.name} for sm_{sm}") as told:
                done.append(builder.build(weights, out, sm, wish, told=told))
        except IncompatibleError as error:  # noqa: PERF203  a build takes seconds
            return error
    return done


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
        print(f"{record.passport.variant:<12} sm_{record.passport.footing.sm:<4} {record.passport.recipe.precision:<5} "
              f"{record.size:>11} bytes  {'built' if built.fresh else 'unchanged':<9}  {built.path}")
    for name, error in failed:
        print(f"{name:<12} no engine: {error.what} [{error.code}]{', ' + error.where if error.where else ''}")


def _print_faults(name: str, title: str, judge: str, faults: tuple[Fault, ...]) -> None:
    by = "its own parser" if judge == "parser" else "the published table of operators"
    if not faults:
        print(f"{name}: nothing speaks against an engine of {title}, by {by}.")
        return
    print(f"{name}: {len(faults)} {'reason' if len(faults) == 1 else 'reasons'} against an engine of {title}, by {by}:")
    for fault in faults:
        at = f" at node {fault.node}" if fault.node else ""
        print(f"  {fault.what}{at} [{fault.code}]" + (f"\n    try: {fault.remedy}" if fault.remedy else ""))
