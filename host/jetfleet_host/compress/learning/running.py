"""One learning: tune the published model on new and old images, ask the guard twice, and build the next version from what passed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.compress.building import BuildReport, Given, build
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.guard import Scores, Verdict, judge_paired
from jetfleet_host.compress.intake.exporting import export_module
from jetfleet_host.compress.intake.models import module_of
from jetfleet_host.compress.intake.splitting import joined, load_splits
from jetfleet_host.compress.recipe import Job, Recipe, Shape
from jetfleet_host.compress.recipe_file import Training, Tune
from jetfleet_host.compress.samples import ImageSamples, class_targets
from jetfleet_host.compress.stage_driver import StageDriver
from jetfleet_host.compress.stage_records import FloatRun
from jetfleet_host.durable import write_file

from .sets import LearningSets, learning_sets
from .versions import next_version

if TYPE_CHECKING:
    from torch.nn import Module

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wish:
    """What to learn. `bundle`: the published version; `model`: the factory that makes its module, with `weights` (a file of an earlier
    learning) where they are not the factory's own; `replay` and `hard`: labelled data folders.

    `max_drop`: points that the old validation set may lose, and each variant against the new fp32; `min_gain`: points that the new one must
    gain for certain; `replay_per_new`: old training images for each new one.
    """

    bundle: Path
    model: str
    replay: Path
    hard: Path
    out: Path
    cache: Path
    weights: Path | None = None
    version: str = ""
    max_drop: float = 0.5
    min_gain: float = 0.0
    replay_per_new: float = 2.0
    tune: Tune = field(default_factory=Tune)
    training: Training = field(default_factory=Training)
    seed: int = 0
    calibration_images: int = 32
    threads: int = 0
    latency_rounds: int = 0


@dataclass(frozen=True)
class Taught:
    """A module that both guards let pass: their verdicts, metrics 0..1 before and after on both sets, and how it was tuned."""

    module: Module
    sets: LearningSets
    old: Verdict
    new: Verdict
    old_metric: tuple[float, float]
    new_metric: tuple[float, float]
    run: FloatRun


@dataclass(frozen=True)
class Learned:
    """The next version of `name`, from version `before`: its bundle, the file of the weights behind it, and what taught it."""

    name: str
    before: str
    version: str
    taught: Taught
    built: BuildReport
    weights: Path


def learn(wish: Wish, progress: Progress) -> Learned:
    """Teach, then build.

    Raises:
        InputError: what the intake and the build raise; `learn.version`; those of `teach`.
        IncompatibleError: those of `teach`; nothing is built then.
    """
    learning = _Learning(wish, open_bundle(wish.bundle, verify=False), progress)
    spec = learning.bundle.spec
    version = wish.version or next_version(spec.version)
    taught = learning.taught()
    built = learning.built(taught, version)
    weights = wish.out.parent / f"{spec.name}-{version}.weights.pt"
    write_file(weights, _state_bytes(taught.module))
    return Learned(spec.name, spec.version, version, taught, built, weights)


def teach(wish: Wish, progress: Progress) -> Taught:
    """Tune on new and old images, and ask the guard on both sets.

    Raises:
        InputError: `learn.task` for another task than to classify, `learn.weights`, `learn.unlabelled`, what the intake raises.
        IncompatibleError: `learn.forgets` when no setting kept the old set within the limit, `learn.no-gain` when the new set did not
            gain, `learn.undecided` when there are too few new images to tell, with how many more it needs.
    """
    return _Learning(wish, open_bundle(wish.bundle, verify=False), progress).taught()


class _Learning:
    def __init__(self, wish: Wish, bundle: OpenBundle, progress: Progress) -> None:
        self.wish, self.bundle, self.progress = wish, bundle, progress
        self.task: TaskSpec = bundle.spec.task
        if self.task.kind != "classify":
            raise InputError("learn.task", f"{bundle.spec.name} is for the task {self.task.kind!r}: only classifiers are tuned on labels",
                             where=str(wish.bundle), remedy="train it in your own framework, and build from the harvested data folder")
        self.shape: Shape = (1, 3, self.task.input.height, self.task.input.width)
        self.checkpoints = Checkpoints(wish.cache)

    def taught(self) -> Taught:
        wish = self.wish
        old, new = (load_splits(folder, wish.seed, wish.calibration_images) for folder in (wish.replay, wish.hard))
        sets = learning_sets(old, new, replay_per_new=wish.replay_per_new, seed=wish.seed)
        before = self._module()
        after, run = self._tuned(before, sets)
        if run.stages[-1].ending == "left-out":
            raise IncompatibleError("learn.forgets", f"the tuned model forgets what it knew; {run.stages[-1].reason}",
                                    where=str(wish.replay),
                                    remedy="raise --replay-per-new, lower --learning-rate, give more old images, or raise --max-drop")
        old_before, old_after = (self._scores(module, sets, "old") for module in (before, after))
        new_before, new_after = (self._scores(module, sets, "new") for module in (before, after))
        gained = judge_paired(new_before, new_after, -wish.min_gain)
        _check_gain(gained, wish)
        return Taught(after, sets, judge_paired(old_before, old_after, wish.max_drop), gained, (_mean(old_before), _mean(old_after)),
                      (_mean(new_before), _mean(new_after)), run)

    def _module(self) -> Module:
        module = module_of(self.wish.model)
        if self.wish.weights is not None:
            _load_state(module, self.wish.weights)
        return module

    def _tuned(self, module: Module, sets: LearningSets) -> tuple[Module, FloatRun]:
        """Under the guard on the old set: gentler settings where it forgets too much."""
        driver = StageDriver(self.checkpoints, stage_for, lambda _index: self._workshop(sets, "old"), self.wish.max_drop,
                             lambda _index, _of, kind, strength: self.progress(f"{kind} at {strength:.2f}", 0, 1))
        return driver.run(module, [self.wish.tune])

    def _workshop(self, sets: LearningSets, which: str) -> Workshop:
        from jetfleet_host.compress.floating.judging import label_loss, right_answers

        train, validation = (ImageSamples(part, self.task.input, class_targets(part, self.task.labels))
                             for part in (sets.train, sets.old if which == "old" else sets.new))
        folder = self.checkpoints.folder / "learning" / self.checkpoints.key("learn", self.wish.model, train.digest, self.wish.tune)[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return Workshop(self.shape, train, validation, label_loss(self.wish.training), right_answers, self._module, self.wish.training,
                        self.wish.seed, folder, self.progress)

    def _scores(self, module: Module, sets: LearningSets, which: str) -> Scores:
        workshop = self._workshop(sets, which)
        return workshop.score(module, workshop.validation)

    def built(self, taught: Taught, version: str) -> BuildReport:
        """The next version: the old one's scales where they still serve and its lineage, scored on both validation sets together."""
        wish, spec, sets = self.wish, self.bundle.spec, taught.sets
        data = export_module(taught.module, self.shape)
        onnx = self.checkpoints.keep_model(self.checkpoints.key("learn-export", taught.run.stages[-1].digest, list(self.shape)), data)
        recipe = Recipe(spec.name, version, spec.targets, self.task, self.shape, max_drop=wish.max_drop,
                        calibration_images=wish.calibration_images, threads=wish.threads, latency_rounds=wish.latency_rounds)
        job = Job(onnx.path, wish.replay, wish.out, wish.cache, parent=wish.bundle,
                  hold=wish.bundle if any(variant.name == "int8" for variant in spec.variants) else None)
        given = Given(onnx.path, joined((sets.old, sets.new)), sets.calibration, taught.run, (len(sets.old.images), len(sets.new.images)))
        return build(job, recipe, self.progress, given)


def _check_gain(verdict: Verdict, wish: Wish) -> None:
    bounds = f"{-verdict.high:.2f} to {-verdict.low:.2f} at {100 * verdict.confidence:g} %"
    seen = f"a gain of {-verdict.drop:.2f} points on {verdict.samples} new images ({bounds})"
    if verdict.outcome == "fail":
        raise IncompatibleError("learn.no-gain", f"{seen} is not over {wish.min_gain:g}", where=str(wish.hard),
                                remedy="look at the labels of the new images; more epochs, or a higher --learning-rate")
    if verdict.outcome == "undecided":
        raise IncompatibleError("learn.undecided", f"{seen} may be chance: about {verdict.needed - verdict.samples} more would tell",
                                where=str(wish.hard), remedy="harvest more; nothing was built, and the published version stays")


def _mean(scores: Scores) -> float:
    return float(scores.mean())


def _state_bytes(module: Module) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


def _load_state(module: Module, path: Path) -> None:
    """Weights only, no code. InputError `learn.weights`."""
    import torch

    try:
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # noqa: BLE001 - unpickling raises what it likes
        raise InputError("learn.weights", f"the weights cannot be put into the factory's module: {str(error).splitlines()[0][:200]}",
                         where=str(path), remedy="give the .weights.pt file that the last `jetfleet learn` of this model wrote") from None
