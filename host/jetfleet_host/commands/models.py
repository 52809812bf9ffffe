"""Commands `models list/show/tag/untag/promote/retire/diff/gc`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from .database import transaction

if TYPE_CHECKING:

    from jetfleet_host.registry import Found

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_MODEL = typer.Argument(..., metavar="MODEL", help="NAME:VERSION, or NAME@TAG.")

_HELP = """What is published, where it comes from, what it is called, who runs it.

Without a command: the list.

Examples:

    jetfleet models --dir fleet

    jetfleet models show detector@production --dir fleet
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="models", help=_HELP, invoke_without_command=True)
    group.callback()(models)
    for name, command in (("list", list_models), ("show", show), ("tag", tag), ("untag", untag), ("promote", promote), ("retire", retire),
                          ("diff", diff), ("gc", collect)):
        group.command(name)(command)
    app.add_typer(group)


def models(context: typer.Context, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    if context.invoked_subcommand is None:
        list_models(folder, as_json)


def list_models(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List every published version with its size, variants, tags and the boards that run it.

    Example: jetfleet models list --dir fleet
    """
    from jetfleet_host import registry
    from jetfleet_host.publish import models as every_model

    with transaction(folder) as (project, session):
        tags = registry.tags_of(session)
        rows = [{**asdict(model), "tags": list(tags[model.name, model.version]),
                 "boards": sum(use.runs for use in registry.uses_of(session, model.manifest))} for model in every_model(project)]
    lines = [f"{'model':<28} {'MB':>8}  {'boards':>6}  {'task':<11} {'variants':<24} {'tags':<20} targets"]
    lines += [f"{row['name'] + ':' + row['version']:<28} {row['size'] / 1e6:>8.1f}  {row['boards']:>6}  {row['task']:<11} "
              f"{' '.join(row['variants']):<24} {' '.join(row['tags']) or '-':<20} {' '.join(row['targets'])}" for row in rows]
    _print(as_json, rows, lines if rows else [f"Nothing is published. Publish with: jetfleet publish BUNDLE --dir {folder}"])


def show(model: str = _MODEL, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Show one version: lineage, variants and what they scored, tags, boards, history.

    Example: jetfleet models show detector:2 --dir fleet
    """
    from jetfleet_host import registry

    with transaction(folder) as (project, session):
        target = registry.resolve(project, session, model, where="MODEL")
        found = registry.show(project, session, target)
        parents = registry.descent(project, target)
    _print(as_json, {**msgspec.to_builtins(found), "descent": parents}, _lines(found, parents))


def _lines(found: Found, parents: list[str]) -> list[str]:
    line = found.lineage
    lines = [f"{found.name}:{found.version}  release {found.release}, {found.size / 1e6:.2f} MB, bundle {found.bundle}",
             f"  tags      {' '.join(found.tags) or '-'}",
             f"  lineage   {' <- '.join([f'{found.name}:{found.version}', *parents])}",
             f"  made from model {line.source or 'not told'}, data {line.data or 'not told'}, recipe {line.recipe or 'not told'}",
             f"  task      {found.spec.task.kind}, targets {' '.join(found.spec.targets)}"]
    lines += [f"  variant   {v.name:<8} {v.size / 1e6:>8.2f} MB  {v.layout:<10} {v.detail}" for v in found.spec.variants]
    lines += [f"  scored    {row.variant}@{row.backend}:{row.precision:<6} {row.metric} {row.accuracy:.4f}, drop {row.drop:+.2f}, "
              f"{row.verdict}" for row in found.evaluation.rows]
    lines += [f"  board     {use.device} app {use.app}{'' if use.runs else ' (not yet)'}" for use in found.uses]
    return lines + [f"  history   {_when(event['at'])} {event['what']} {event['detail']}".rstrip() for event in found.history]


def tag(model: str = _MODEL, name: str = typer.Argument(..., metavar="TAG", help="a-z 0-9 . _ -"), folder: Path = _DIR,
        as_json: bool = _JSON) -> None:
    """Point a tag to a version. NAME@TAG then means that version wherever a model is asked for.

    Example: jetfleet models tag detector:2 candidate --dir fleet
    """
    from jetfleet_host import registry

    with transaction(folder) as (project, session):
        target = registry.resolve(project, session, model, where="MODEL")
        before = registry.tag(session, target, name, time.time())
    was = f", was {target.name}:{before}" if before and before != target.version else ""
    _print(as_json, {"model": target.name, "version": target.version, "tag": name, "before": before},
           [f"{target.name}@{name} is now {target.name}:{target.version}{was}."])


def untag(model: str = typer.Argument(..., metavar="NAME@TAG", help="The tag to forget."), folder: Path = _DIR,
          as_json: bool = _JSON) -> None:
    """Forget a tag.

    Example: jetfleet models untag detector@candidate --dir fleet
    """
    from jetfleet_host import registry

    name, _, old = model.partition("@")
    with transaction(folder) as (_project, session):
        registry.untag(session, name, old, time.time())
    _print(as_json, {"model": name, "tag": old}, [f"{name}@{old} is no more."])


def promote(model: str = _MODEL, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Make a version the production one: the tag `production` moves to it, and the history keeps when. Boards change by a rollout only.

    Example: jetfleet models promote detector:2 --dir fleet && jetfleet rollout start --app reader --model detector@production --all
    """
    from jetfleet_host import registry

    with transaction(folder) as (project, session):
        target = registry.resolve(project, session, model, where="MODEL")
        before = registry.promote(project, session, target, time.time())
    _print(as_json, {"model": target.name, "version": target.version, "before": before},
           [f"{target.name}:{target.version} is in production{f', after {before}' if before else ''}.",
            f"Bring it to boards: jetfleet rollout start --model {target.name}@production --app APP --all --dir {folder}"])


def retire(model: str = _MODEL, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Take a version out of the signed metadata: no board accepts it from then on. Refused while one runs it.

    Example: jetfleet models retire detector:1 --dir fleet
    """
    from jetfleet_host import registry

    with transaction(folder) as (project, session):
        target = registry.resolve(project, session, model, where="MODEL")
        registry.retire(project, session, target, time.time())
    _print(as_json, {"model": target.name, "version": target.version},
           [f"{target.name}:{target.version} is retired. Free its space with: jetfleet models gc --dir {folder}"])


def diff(first: str = typer.Argument(..., metavar="A", help="NAME:VERSION or NAME@TAG."),
         second: str = typer.Argument(..., metavar="B", help="NAME:VERSION or NAME@TAG."), folder: Path = _DIR,
         as_json: bool = _JSON) -> None:
    """Compare two versions: input, variants, accuracy, lineage. Lines that differ are marked.

    Example: jetfleet models diff detector:1 detector:2 --dir fleet
    """
    from jetfleet_host import registry

    with transaction(folder) as (project, session):
        found = [registry.show(project, session, registry.resolve(project, session, text, where=where))
                 for text, where in ((first, "A"), (second, "B"))]
    rows = registry.diff(found[0], found[1])
    names = [f"{one.name}:{one.version}" for one in found]
    lines = [f"  {'':<28} {names[0]:<38} {names[1]}"]
    lines += [f"{' ' if row.same else '*'} {row.what:<28} {row.a:<38} {row.b}" for row in rows]
    _print(as_json, {"a": names[0], "b": names[1], "rows": [{**msgspec.to_builtins(row), "same": row.same} for row in rows]}, lines)


def collect(folder: Path = _DIR, dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go."),
            as_json: bool = _JSON) -> None:
    """Remove files that no published version leads to. Those of the last hour stay: somebody may be publishing.

    Example: jetfleet models gc --dry-run --dir fleet
    """
    from jetfleet_host import registry
    from jetfleet_host.durable import locked
    from jetfleet_host.project import Project

    project = Project.load(folder)
    with locked(project.blobs.folder):
        found = registry.unused_blobs(project)
        for path in () if dry_run else found:
            path.unlink(missing_ok=True)
    size = sum(found.values())
    verb = "would be" if dry_run else "were"
    _print(as_json, {"blobs": [path.name for path in found], "bytes": size, "dry_run": dry_run},
           [f"{len(found)} blobs, {size / 1e6:.1f} MB, {verb} removed."])


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
