"""Command: learn."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_host.commands.bars import stage_bars

if TYPE_CHECKING:
    from jetfleet_host.compress.learning.running import Learned
    from jetfleet_host.publish import Published

_BUNDLE = typer.Argument(..., metavar="BUNDLE", help="Bundle folder of the version that boards run.")
_MODEL = typer.Option(..., "--model", metavar="package.module:function", help="Factory that makes its torch module with its weights.")
_WEIGHTS = typer.Option(None, "--weights", metavar="FILE.pt", help="Weights of the last `jetfleet learn`, for the factory's.")
_REPLAY = typer.Option(..., "--replay", help="Labelled images of what the model knew: its own training data, or a part of it.")
_HARD = typer.Option(None, "--hard", help="Labelled new images: what `jetfleet harvest export` wrote, looked through.")
_OUT = typer.Option(..., "--out", help="Bundle folder to write; the weights come beside it.")
_CACHE = typer.Option(None, "--cache", help="Folder for checkpoints of finished stages (default: the user's cache folder).")
_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, for --app and --publish.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("learn")(learn)


def learn(
    bundle: Path = _BUNDLE,
    model: str = _MODEL,
    replay: Path = _REPLAY,
    out: Path = _OUT,
    hard: Path | None = _HARD,
    weights: Path | None = _WEIGHTS,
    folder: Path = _DIR,
    app: str = typer.Option("", "--app", "-a", help="Without --hard: take this app's harvested examples from the project."),
    least: float = typer.Option(0.5, "--least-score", min=0.0, max=1.0, help="Of harvested examples: what the host's model said with less "
                                                                             "is no label."),
    version: str = typer.Option("", help="The new version (default: the last number of the old one, one higher)."),
    epochs: int = typer.Option(3, min=1, max=10_000, help="Epochs over new and replayed images."),
    learning_rate: float = typer.Option(5e-4, min=0.0, help="Peak learning rate; the guard takes less where the model forgets."),
    batch: int = typer.Option(64, min=1, help="Images a step."),
    replay_per_new: float = typer.Option(2.0, min=0.0, help="Old training images for each new one."),
    max_drop: float = typer.Option(0.5, min=0.0, help="Points that the old set may lose, for certain, and each variant against fp32."),
    min_gain: float = typer.Option(0.0, min=0.0, help="Points that the new set must gain, for certain."),
    seed: int = typer.Option(0, min=0, help="Of splits and training."),
    threads: int = typer.Option(0, min=0, max=1024, help="CPU threads for scoring and timing; 0 lets the runtime decide."),
    latency_rounds: int = typer.Option(0, min=0, max=100, help="Rounds of timing over all candidates; 0 skips timing."),
    cache: Path | None = _CACHE,
    publish: bool = typer.Option(False, "--publish", help="Publish the new version in the project, with deltas from the versions before."),
    as_json: bool = _JSON,
) -> None:
    """Tune a published model on harvested hard examples and a replay of old ones; build the next version if the guard lets both sets pass.

    The old set must lose no more than --max-drop and the new one must gain, each for certain; else nothing is built, and the error says how
    many more images would tell.

    Examples:

        jetfleet learn reader-1.0.0.bundle --model models.reader:make --replay train --hard hard --out reader-1.0.1.bundle

        jetfleet learn reader-1.0.0.bundle --model models.reader:make --replay train --dir fleet --app reader --out next.bundle --publish
    """
    from jetfleet_contract.errors import InputError
    from jetfleet_host.commands.build import default_cache
    from jetfleet_host.compress.learning.running import Wish
    from jetfleet_host.compress.learning.running import learn as run
    from jetfleet_host.compress.recipe_file import Training, Tune

    if (hard is None) == (not app):
        raise InputError("learn.new-set", "the new images are given neither or twice", remedy="give --hard FOLDER, or --dir and --app")
    place = cache or default_cache()
    new = hard if hard is not None else _harvested(folder, app, least, place)
    wish = Wish(bundle, model, replay, new, out, place, weights, version, max_drop, min_gain, replay_per_new, Tune(epochs, learning_rate),
                Training(batch=batch), seed, threads=threads, latency_rounds=latency_rounds)
    with stage_bars() as step:
        learned = run(wish, step)
    published = _publish(folder, learned) if publish else None
    _show(learned, published, as_json)


def _harvested(folder: Path, app: str, least: float, cache: Path) -> Path:
    """The project's examples of an app as a data folder in the cache; made anew, for more may have come."""
    import tempfile

    from jetfleet_host.commands.database import open_database
    from jetfleet_host.harvest import HarvestFiles, export
    from jetfleet_host.project import Project
    from jetfleet_host.store import harvest

    project = Project.load(folder)
    cache.mkdir(parents=True, exist_ok=True)
    out = Path(tempfile.mkdtemp(prefix=f"harvest-{app}-", dir=cache))
    with closing(open_database(project)) as database, database.reading() as session:
        rows = harvest.find(session, app=app)
        export(HarvestFiles(project.dir / "harvest"), rows, out, least)
    return out


def _publish(folder: Path, learned: Learned) -> Published:
    from jetfleet_host.commands.delta_table import bars
    from jetfleet_host.project import Project
    from jetfleet_host.publish import publish

    with bars() as step:
        return publish(Project.load(folder), learned.built.bundle, step=step)


def _show(learned: Learned, published: Published | None, as_json: bool) -> None:
    taught = learned.taught
    if as_json:
        print(json.dumps(_as_json(learned, published), indent=2))
        return
    from jetfleet_host.commands.delta_table import delta_lines

    for name, metric, verdict in (("old", taught.old_metric, taught.old), ("new", taught.new_metric, taught.new)):
        print(f"{name} set  {100 * metric[0]:.2f} -> {100 * metric[1]:.2f} %  on {verdict.samples} images")
    print(f"guard    {taught.run.stages[-1].reason}")
    print(f"Wrote {learned.built.bundle} ({learned.name}:{learned.version}, from {learned.before}) and {learned.weights}.")
    for line in delta_lines(published.deltas) if published is not None else ():
        print(line)
    print(f"Published {learned.name}:{learned.version}. Next: jetfleet rollout start --app APP --model {learned.name}:{learned.version}"
          if published
          else f"Next: jetfleet publish {learned.built.bundle} --dir PROJECT")


def _as_json(learned: Learned, published: Published | None) -> dict[str, Any]:
    import msgspec

    taught = learned.taught
    return {
        "name": learned.name, "from": learned.before, "version": learned.version, "bundle": str(learned.built.bundle),
        "digest": learned.built.manifest_digest, "weights": str(learned.weights),
        "old": {"before": taught.old_metric[0], "after": taught.old_metric[1], "verdict": msgspec.to_builtins(taught.old)},
        "new": {"before": taught.new_metric[0], "after": taught.new_metric[1], "verdict": msgspec.to_builtins(taught.new)},
        "stages": msgspec.to_builtins(taught.run),
        "published": None if published is None else {
            "manifest": published.manifest, "deltas": [{"variant": row.variant, "base": row.base} for row in published.deltas]},
    }
