"""Commands of the group engines about what boards of a class share: list, show, request, withdraw, attach, publish, try."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .database import transaction

if TYPE_CHECKING:
    from jetfleet_host.engine_catalogue import EngineView

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_CLASS = typer.Option("", "--class", help="Only of this device class.")
_KEY = typer.Argument(..., metavar="KEY", help="The engine's key, or its first digits (at least 6).")


def add_commands(engines: typer.Typer) -> None:
    """Add these to the group `engines`."""
    for name, command in (("list", list_engines), ("show", show), ("request", request), ("withdraw", withdraw), ("attach", attach),
                          ("publish", publish), ("try", try_engine)):
        engines.command(name)(command)


def list_engines(device_class: str = _CLASS, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List every engine that boards have asked for: its state, who built it, who tried it, and what it waits for.

    Example: jetfleet engines list --class orin-nano --dir fleet
    """
    from jetfleet_host import engine_catalogue

    with transaction(folder) as (project, session):
        found = engine_catalogue.catalogue(project, session, device_class)
    head = (f"{'key':<12} {'class':<16} {'runtime':<24} {'variant':<12} {'state':<12} {'built by':<14} {'tried by':<14} "
            f"{'MB':>7} {'asked':>5}")
    lines = [head, *(line for view in found for line in _row(view))]
    _print(as_json, [engine_catalogue.as_json(view) for view in found], lines if found else ["No board has asked for an engine yet."])


def show(key: str = _KEY, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Show one engine: what it is bound to, what the second board saw, and who could not build or try it.

    Example: jetfleet engines show 3fa9c07b21d4 --dir fleet
    """
    from jetfleet_host import engine_catalogue

    with transaction(folder) as (project, session):
        work = engine_catalogue.find(session, key)
        view = next(one for one in engine_catalogue.catalogue(project, session, work.device_class) if one.key == work.key)
    _print(as_json, engine_catalogue.as_json(view), _lines(view))


def request(key: str = _KEY, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Have an engine built by a board of the class now: earlier failures are forgotten, and `jetfleet serve` elects the builder.

    Example: jetfleet engines request 3fa9c07b21d4 --dir fleet
    """
    from jetfleet_host import engine_catalogue

    with transaction(folder) as (_project, session):
        work = engine_catalogue.request(session, key, time.time())
    _print(as_json, {"key": work.key, "device_class": work.device_class, "state": work.state},
           [f"Engine {work.key[:12]} of {work.device_class} is {work.state}; jetfleet serve takes it from here."])


def withdraw(key: str = _KEY, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Take an engine back: boards compile the model themselves from their next start on; its builder keeps its own. Needs the snapshot key.

    Example: jetfleet engines withdraw 3fa9c07b21d4 --dir fleet
    """
    from jetfleet_host import engine_catalogue

    with transaction(folder) as (project, session):
        work = engine_catalogue.withdraw(project, session, key, time.time())
    _print(as_json, {"key": work.key, "device_class": work.device_class, "state": work.state},
           [f"Engine {work.key[:12]} of {work.device_class} is withdrawn.",
            f"To have it built again: jetfleet engines request {work.key[:12]}"])


def attach(bundle: Path = typer.Argument(..., metavar="BUNDLE", help="The bundle's folder."),  # noqa: B008 - typer's way
           folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Add the certified engines of a bundle to its folder as OCI referrers, so that a registry carries them along with it.

    Example: jetfleet engines attach text.bundle --dir fleet
    """
    from jetfleet_host.bundles import open_bundle
    from jetfleet_host.engine_referrers import attach_engines, certified_engines
    from jetfleet_host.project import Project

    project, opened = Project.load(folder), open_bundle(bundle)
    engines = certified_engines(project, opened)
    digests = attach_engines(project, opened, engines)
    rows = [{"class": owner, "blob": target.blob, "size": target.info.size, "manifest": digest}
            for (owner, target), digest in zip(engines, digests, strict=True)]
    lines = [f"{row['class']:<16} engine {str(row['blob'])[:16]}, {row['size']} bytes: {row['manifest']}" for row in rows]
    _print(as_json, rows, lines or [f"No engine of this bundle is certified. See: jetfleet engines list --dir {folder}"])


def publish(engines: Path = typer.Argument(..., metavar="FOLDER", help="What `engines build` left there."),  # noqa: B008 - typer's way
            device_class: str = typer.Option(..., "--class", help="Device class whose boards may run them."),
            folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Publish engines that were built here for a class of boards, which has to delegate to this project (`keys delegate --host`).

    They are signed with the project's own builder key. Nobody has run them yet: a board of the class tries each before others run it.

    Example: jetfleet engines publish engines --class x86-gpu --dir fleet
    """
    from jetfleet_contract.messages import encode
    from jetfleet_host.engine_publishing import publish_engines

    with transaction(folder) as (project, session):
        done = publish_engines(project, session, device_class, engines, time.time())
    rows = [{"key": one.key, "passport": json.loads(encode(one.passport)), "blob": one.blob, "size": one.info.size, "fresh": one.fresh}
            for one in done]
    lines = [f"{one.key[:12]} {one.passport.footing.backend:<14} {f'sm_{one.passport.footing.sm}':<8} {one.passport.variant:<12} "
             f"{one.info.size / 1e6:>8.2f} MB  {'published' if one.fresh else 'was published'}" for one in done]
    _print(as_json, rows, lines)


def try_engine(key: str = _KEY, device: str = typer.Option(..., "--device", help="A connected board of the class."), folder: Path = _DIR,
               as_json: bool = _JSON) -> None:
    """Have one board fetch an engine, verify it, and try it with the bundle's probe set now. What comes out: `jetfleet engines show`.

    Example: jetfleet engines try 3fa9c07b21d4 --device dock-2 --dir fleet
    """
    from jetfleet_host import engine_catalogue

    with transaction(folder) as (_project, session):
        work = engine_catalogue.try_on(session, key, device, time.time())
    _print(as_json, {"key": work.key, "device_class": work.device_class, "state": work.state, "device": device},
           [f"{device} is to try engine {work.key[:12]}; jetfleet serve asks it. See: jetfleet engines show {work.key[:12]}"])


def _row(view: EngineView) -> Iterator[str]:
    from jetfleet_host.intake import clean

    state = f"{view.state} {view.percent:.0f}%" if view.state == "building" else view.state
    size = f"{view.size / 1e6:.2f}" if view.size else "-"
    yield clean(f"{view.key[:12]} {view.device_class:<16} {_runtime(view):<24.24} {view.variant:<12} {state:<12} "
                f"{view.built_by or '-':<14} {view.tried_by or '-':<14} {size:>7} {view.asked:>5}")
    if view.detail:
        yield clean(f"             {view.detail} [{view.code}]")


def _lines(view: EngineView) -> list[str]:
    from jetfleet_host.intake import clean

    footing, recipe = view.passport.footing, view.passport.recipe
    gpu = f", sm_{footing.sm} with {footing.sm_count} SMs" if footing.sm else ""
    bound = f"{footing.platform}, {footing.device}{gpu}{f', L4T {footing.system}' if footing.system else ''}"
    tried = f"{view.tried_by}: agreement {view.agreement:.4f}, p50 {view.p50_ms:.2f} ms" if view.state == "certified" else view.tried_by
    made = (f"{view.variant} {recipe.precision}, weights {recipe.weights[:12]}, input {'x'.join(map(str, recipe.shape))}, "
            f"bundle {view.passport.subject[:12]}")
    percent = f" {view.percent:.0f} %" if view.state == "building" else ""
    lines = [f"engine {view.key}", f"  class     {view.device_class}, {view.asked} boards asked, {view.boards} run its bundle",
             f"  state     {view.state}{percent}, {view.tries} builds were asked for",
             f"  made for  {_runtime(view)} on {bound}", f"  made from {made}",
             f"  built by  {view.built_by or 'nobody yet'}" + (f", p50 {view.built_ms:.2f} ms there" if view.built_ms else ""),
             f"  tried by  {tried or 'nobody yet'}",
             f"  blob      {f'{view.blob[:16]}, {view.size} bytes' if view.blob else '-'}"]
    lines += [f"  waits     {view.detail} [{view.code}]"] if view.detail else []
    lines += [f"  refused   {one.device}: {one.code}, not asked before {_when(one.until)}" for one in view.refusals]
    return [clean(line) for line in lines]


def _runtime(view: EngineView) -> str:
    return f"{view.backend} {view.version}"[:40]


def _when(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
