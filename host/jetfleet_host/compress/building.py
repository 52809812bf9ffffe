"""One build from end to end: prepare, calibrate, write variants, score, refuse or accept, choose probes, write the bundle.

Everything in the bundle follows from the inputs and the libraries' versions. Timings do not, so they are attached beside
it. Each stage asks the checkpoints first; a killed build goes on where it was.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.bundle import Evaluation, EvaluationRow, ModelSpec, ProbeItem, ProbeSet, TaskSpec, Variant, digest_of
from jetfleet_contract.drift import MIN_FRAMES, DriftReference, reference_of
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_contract.predictions import agreement
from jetfleet_contract.topics import check_name
from jetfleet_host.boards import load_board
from jetfleet_host.build_record import BuildRecord, LayerLine, StageSize, attach_record
from jetfleet_host.bundles import open_bundle, write_bundle
from jetfleet_host.compress.stage_records import FloatRun
from jetfleet_host.lineage import told_by
from jetfleet_host.measurements import MeasuredRow, Measurements, attach_measurements

from .board_files import dynamic_int8, layouts_for
from .calibration import ScaleTable
from .calibration_cache import cached_scales, check_names
from .checkpoints import Checkpoints, library_versions
from .dataset import DataSet, load_data, read_image, to_tensor
from .fused import NamedCount, count_graph
from .graphs import GraphView
from .halving import halve
from .handles import ModelHandle, serialized
from .holding import Held, held_scales, learned_scales
from .jobs import JobRunner
from .quantizing import Quantize, Twins, search_twins, written
from .recipe import Job, Recipe
from .rounding import simulate_bf16
from .scale_making import ScaleSettings, corrected, equalized, scales_of
from .scoring import REFERENCE, Answer, Built, Scorer, ways_to_run
from .sensitivity import LayerNoise, measure_noise
from .stages import import_model, prepare
from .timing import Timed, Timing, time_interleaved
from .worth import ModelVerdict, judge_worth

Tensor = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

_EQUALITY_IMAGES = 2
_NOISE_IMAGES = 2
# A probe's answers must be safe against rounding, but a healthy variant must never miss by one box among few.
_PROBE_SLACK = 0.1
_PROBE_FLOOR = 0.5


@dataclass(frozen=True)
class Given:
    """What a build works on when its inputs were made ready before: an ONNX file, labelled images to score and to probe with, and images
    to calibrate with. `floats`: what became of the stages that the file went through. `worlds`: how many images each set has that
    `scoring` was joined from, in its order: each becomes a reference for drift of its own."""

    model: Path
    scoring: DataSet
    calibration: DataSet
    floats: FloatRun | None = None
    worlds: tuple[int, ...] = ()


@dataclass(frozen=True)
class BuildReport:
    """What a build made. `refused` are variants whose weights were left out."""

    bundle: Path
    manifest_digest: str
    spec: ModelSpec
    evaluation: Evaluation
    measurements: Measurements | None
    refused: tuple[str, ...]


def build(job: Job, recipe: Recipe, progress: Progress, given: Given | None = None) -> BuildReport:
    """Build a bundle.

    Args:
        given: in place of the model and the data that `job` names.

    Raises:
        InputError: anything wrong with the model, the data, the options or `job.out`.
        IncompatibleError: `model.operator`; `build.task` when the task cannot decode the model's output.
        StorageError: `build.cache`, `store.write`.
    """
    check_name("model", recipe.name)
    check_name("version", recipe.version)
    for target in recipe.targets:
        load_board(target)
    _check_free(job.out)
    _parent(job.parent)  # minutes of work should not end at a mistyped path
    return _Build(job, recipe, progress, given).run()


def _check_free(out: Path) -> None:
    """Refuse minutes of work whose result could not be written; a bundle there already may turn out to be the same."""
    if out.exists() and not (out / "oci-layout").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("bundle.exists", f"{out} already holds something that is no bundle", where=str(out), remedy="give another --out")


class _Build:
    def __init__(self, job: Job, recipe: Recipe, progress: Progress, given: Given | None) -> None:
        self.job, self.recipe, self.progress, self.given = job, recipe, progress, given
        self.source = job.model if given is None else given.model
        self.checkpoints = Checkpoints(job.cache)
        self.runner = JobRunner()
        self.task = recipe.task
        self.held = _held(job, recipe)
        self.answers: dict[tuple[str, str, str], Answer] = {}
        self.sizes: list[StageSize] = []
        self.layers: tuple[LayerLine, ...] = ()
        self.graphs: tuple[NamedCount, ...] = ()
        self.worth: ModelVerdict | None = None

    def run(self) -> BuildReport:
        self.progress("read", 0, 1)
        imported = import_model(self.source, self.recipe.shape, self.checkpoints)
        if self.held is None and imported.learned is not None:
            self.held = learned_scales(imported.learned)
        data = load_data(self.job.data) if self.given is None else self.given.scoring
        self.task = _named_task(self.recipe, imported.input, data)
        self.progress("read", 1, 1)
        tensors = self._tensors(data if self.given is None else self.given.calibration)
        float_model = prepare(imported.model, self.recipe.shape, tensors[:_EQUALITY_IMAGES], self.checkpoints,
                              lambda _name, done, of: self.progress("prepare", done, of))
        self.sizes = [StageSize("as given", imported.model.size), StageSize("prepared", float_model.size)]
        self.graphs = (NamedCount("as given", count_graph(imported.model)), NamedCount("prepared", count_graph(float_model)))
        self.worth = judge_worth(GraphView(float_model.load()))
        if self.recipe.equalize:
            float_model = equalized(float_model, tensors, self.checkpoints)
        scorer = Scorer(self.runner, self.checkpoints, data, self.task, self.recipe.threads)
        reference = self._reference(scorer, float_model)
        variants = self._variants(scorer, reference, float_model, data, tensors)
        rows = self._score(scorer, reference, variants)
        shipped, refused = _shipped(variants, rows)
        return self._write(data, rows, shipped, refused)

    def _tensors(self, data: DataSet) -> list[Tensor]:
        """Calibration inputs: evenly spaced over the data, at most `calibration_images`."""
        count = min(self.recipe.calibration_images, len(data.images))
        if count < 2 and "int8" in self.recipe.methods:
            raise InputError("data.calibration", f"a calibration set of {count} image gives no ranges", where=str(data.folder),
                             remedy="give at least 2 images; 32 or more that look like the camera's are good")
        picked = [data.images[i * len(data.images) // count] for i in range(count)]
        return [to_tensor(read_image(path), self.task.input) for path in picked]

    def _reference(self, scorer: Scorer, model: ModelHandle) -> Answer:
        self.progress("reference", 0, 1)
        answer = scorer.answer(model, *REFERENCE[1:])
        if answer.error:
            raise IncompatibleError("build.task", f"task {self.task.kind!r} cannot use this model: {answer.error}",
                                    where=str(self.source), remedy="check --task, --labels, --shape and --task-option")
        if not any(answer.predictions):
            raise InputError("build.blind", "the fp32 model finds nothing on any image, so nothing can be compared with it",
                             where=str(self.job.data),
                             remedy="check the pre-processing (--mean, --std, --color) or give images with content")
        self.progress("reference", 1, 1)
        return answer

    def _variants(self, scorer: Scorer, reference: Answer, model: ModelHandle, data: DataSet, tensors: Sequence[Tensor]) -> list[Built]:
        built = [Built(_variant("fp32", "fp32", model, "prepared: opset, shapes, folding"), model)]
        if not self.recipe.methods:
            return built
        table = self._scales(model, data, tensors)
        if "fp16" in self.recipe.methods:
            built.append(self._half(model, table))
        if "int8" in self.recipe.methods:
            built += self._twins(scorer, reference, model, table, tensors)
            built += self._dynamic(model) if self.recipe.dynamic else []
        return built

    def _half(self, model: ModelHandle, table: ScaleTable) -> Built:
        key = self.checkpoints.key("fp16", model.digest, table)
        half = self.checkpoints.model(key) or self.checkpoints.keep_model(key, serialized(halve(model.load(), table)))
        return Built(_variant("fp16", "fp16", half, "float32 inputs and outputs"), half)

    def _twins(self, scorer: Scorer, reference: Answer, model: ModelHandle, table: ScaleTable, tensors: Sequence[Tensor]) -> list[Built]:
        noise = self._noise(model, table, tensors)

        def passes(int8: ModelHandle, uint8: ModelHandle) -> bool:
            # The symmetric file on ONNX Runtime stands in for TensorRT; the twin runs on both CPU runtimes.
            ways = ((int8, "onnxruntime"), (uint8, "onnxruntime"), (uint8, "openvino"))
            return all(self._within(scorer, reference, scorer.answer(handle, backend, "int8")) for handle, backend in ways)

        def search(scales: ScaleTable) -> Twins | None:
            def table_for(layers: tuple[str, ...]) -> ScaleTable:
                return corrected(model, layers, scales, tensors, self.checkpoints) if self.recipe.correct_bias else scales

            return search_twins(model, table_for, noise, self.checkpoints, passes, lambda done, of: self.progress("int8", done, of))

        origin = ""
        twins = None
        if self.held is not None:
            if self.recipe.scales:
                check_names(self.held, table, self.recipe.scales)
            twins, origin = search(self.held.over(table)), f", scales of {self.held.origin}"
        if twins is None or not twins.passed:
            twins, origin = search(table), f", scales of {self.held.origin} lose too much" if self.held else ""
        self.progress("int8", 1, 1)
        kept = frozenset(twins.names if twins else ())
        self.layers = tuple(LayerLine(layer.node, layer.error, layer.node in kept) for layer in noise)
        return [*_int8_variants(twins, origin), *self._for_boards(model, twins)] if twins else []

    def _for_boards(self, model: ModelHandle, twins: Twins) -> list[Built]:
        """The int8 files that only some of the targets want, from the twins' table."""
        found = []
        for layout in layouts_for([load_board(target) for target in self.recipe.targets]):
            handle = written(model, twins.table, Quantize(layout, twins.names), self.checkpoints)
            found.append(Built(_variant(layout.removeprefix("qdq-"), "uint8", handle,
                                        f"{twins.kept} of {twins.layers} layers, same activation scales as int8", layout), handle))
        return found

    def _dynamic(self, model: ModelHandle) -> list[Built]:
        key = self.checkpoints.key("dynamic", model.digest)
        handle = self.checkpoints.model(key)
        if handle is None:
            data = dynamic_int8(model)
            if data is None:
                return []
            handle = self.checkpoints.keep_model(key, data)
        return [Built(_variant("dynamic", "uint8", handle, "int8 products, scales found at run time", "dynamic"), handle)]

    def _scales(self, model: ModelHandle, data: DataSet, tensors: Sequence[Tensor]) -> ScaleTable:
        settings = ScaleSettings(self.recipe.calibrator, self.recipe.percentile, self.recipe.per_channel)
        key = self.checkpoints.key("scales", model.digest, data.digest, self.task.input, len(tensors), settings)
        self.progress("calibrate", 0, len(tensors))
        table = self.checkpoints.value(key, ScaleTable)
        if table is None:
            table = scales_of(model, self._announced(tensors), settings)
            self.checkpoints.keep_value(key, table)
        self.progress("calibrate", len(tensors), len(tensors))
        return table

    def _announced(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        for index, tensor in enumerate(tensors):
            self.progress("calibrate", index, len(tensors))
            yield tensor

    def _noise(self, model: ModelHandle, table: ScaleTable, tensors: Sequence[Tensor]) -> tuple[LayerNoise, ...]:
        key = self.checkpoints.key("noise", model.digest, table)
        noise = self.checkpoints.value(key, tuple[LayerNoise, ...])
        if noise is None:
            noise = measure_noise(model, table, tensors[:_NOISE_IMAGES], lambda done, of: self.progress("sensitivity", done, of))
            self.checkpoints.keep_value(key, noise)
        self.progress("sensitivity", 1, 1)
        return noise

    def _within(self, scorer: Scorer, reference: Answer, answer: Answer) -> bool:
        if answer.error:
            return False
        return 100.0 * (scorer.accuracy(reference, reference) - scorer.accuracy(answer, reference)) <= self.recipe.max_drop

    def _score(self, scorer: Scorer, reference: Answer, variants: Sequence[Built]) -> tuple[EvaluationRow, ...]:
        ways = [(built, backend, precision) for built in variants for backend, precision in ways_to_run(built.variant)]
        rows = []
        for index, (built, backend, precision) in enumerate(ways):
            answer = scorer.answer(built.handle, backend, precision)
            row = scorer.row(built, backend, precision, answer, reference, self.recipe.max_drop)
            if precision == "bf16" and not answer.error and answer.ran_in != "bf16":
                row = self._simulated(scorer, reference, built, row)
            self.answers[built.variant.name, backend, precision] = answer
            rows.append(row)
            self.progress("score", index + 1, len(ways))
        return tuple(rows)

    def _simulated(self, scorer: Scorer, reference: Answer, built: Built, measured: EvaluationRow) -> EvaluationRow:
        key = self.checkpoints.key("bf16", built.handle.digest)
        rounded = self.checkpoints.model(key) or self.checkpoints.keep_model(key, serialized(simulate_bf16(built.handle.load())))
        answer = msgspec.structs.replace(scorer.answer(rounded, "onnxruntime", "fp32"), ran_in="bf16")
        row = scorer.row(built, measured.backend, measured.precision, answer, reference, self.recipe.max_drop)
        reason = f"{row.reason}; this machine has no bf16, its rounding was simulated"
        return msgspec.structs.replace(row, origin="simulated", reason=reason)

    def _worlds(self, reference: Answer) -> tuple[DriftReference, ...]:
        """A set of few images is left out: it would be like anything."""
        sizes = self.given.worlds if self.given else ()
        ends = list(accumulate(sizes))
        parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True) if size >= MIN_FRAMES]
        found = (reference_of(reference.frames[part], reference.predictions[part]) for part in parts)
        return tuple(one for one in found if one is not None)

    def _write(self, data: DataSet, rows: tuple[EvaluationRow, ...], shipped: Sequence[Built], refused: tuple[str, ...]) -> BuildReport:
        recipe = self.recipe
        self.progress("write", 0, 1)
        reference = self.answers[REFERENCE]
        spec = ModelSpec(recipe.name, recipe.version, self.task, tuple(built.variant for built in shipped), recipe.targets,
                         reference_of(reference.frames, reference.predictions), self._worlds(reference))
        evaluation = Evaluation(rows[0].metric, "@".join(REFERENCE[:2]), recipe.max_drop, machine_name(), rows, library_versions())
        probe, files = self._probes(data, rows)
        decisive = msgspec.structs.replace(recipe, threads=0, latency_rounds=0, latency_runs=0,  # how it was timed changes no byte
                                         scales=Path(recipe.scales).name)
        digest = write_bundle(self.job.out, spec=spec, evaluation=evaluation, probe=probe, files=files,
                              weights=[(built.variant, built.handle.path) for built in shipped],
                              annotations=told_by(self.source, data.digest, decisive, _parent(self.job.parent)))
        sizes = (*self.sizes, *(StageSize(built.variant.name, built.variant.size) for built in shipped))
        attach_record(open_bundle(self.job.out, verify=False), self._record(sizes))
        self.progress("write", 1, 1)
        measurements = self._time(data, rows, shipped) if recipe.latency_rounds else None
        if measurements:
            attach_measurements(open_bundle(self.job.out, verify=False), measurements)
        return BuildReport(self.job.out, digest, spec, evaluation, measurements, refused)

    def _record(self, sizes: tuple[StageSize, ...]) -> BuildRecord:
        return BuildRecord(sizes, self.layers, self.given.floats if self.given else None, self.graphs, self.worth)

    def _probes(self, data: DataSet, rows: Sequence[EvaluationRow]) -> tuple[ProbeSet, dict[str, bytes | Path]]:
        """Golden inputs: images on which fp32 finds most and every accepted candidate agrees best; ties by name."""
        reference = self.answers[REFERENCE]
        accepted = [self.answers[row.variant, row.backend, row.precision] for row in rows if row.verdict == "accepted"]
        ranked = sorted(
            (i for i, answer in enumerate(reference.predictions) if answer),
            key=lambda i: (-min(agreement([reference.predictions[i]], [a.predictions[i]]) for a in accepted),
                           -len(reference.predictions[i]), data.images[i].name))
        picked = sorted(ranked[:self.recipe.probe_images])
        worst = min(agreement([reference.predictions[i] for i in picked], [a.predictions[i] for i in picked]) for a in accepted)
        files: dict[str, bytes | Path] = {}
        items = []
        for index in picked:
            png = _png(data.images[index])
            files[digest_of(png)] = png
            items.append(ProbeItem(digest_of(png), reference.predictions[index]))
        return ProbeSet(tuple(items), round(max(_PROBE_FLOOR, min(worst, 1.0) - _PROBE_SLACK), 3)), files

    def _time(self, data: DataSet, rows: Sequence[EvaluationRow], shipped: Sequence[Built]) -> Measurements:
        recipe = self.recipe
        files = {built.variant.name: built.handle.path for built in shipped}
        keys = {f"{row.variant}@{row.backend}:{row.precision}": row for row in rows if row.variant in files}
        timings = time_interleaved(
            [Timed(name, files[row.variant], row.backend, row.precision) for name, row in keys.items()], self.task, data.images[0],
            self.runner, rounds=recipe.latency_rounds, runs=recipe.latency_runs, threads=recipe.threads,
            step=lambda done, of: self.progress("latency", done, of))
        return Measurements(machine_name(), time.time(), recipe.threads,
                            tuple(_measured(keys[name], timing) for name, timing in timings.items()), library_versions())


def machine_name() -> str:
    """The CPU's model and the vector extensions that decide int8 and bf16 speed, as Linux names them."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
                               "asimddp", "i8mm", "bf16") if flag in flags]
    return f"{fields.get('model name', platform.machine())} ({' '.join(known)})"


def _held(job: Job, recipe: Recipe) -> Held | None:
    """Scales to keep: of an earlier bundle, or of a calibration cache.

    Raises:
        InputError: `build.scales-file` for a bad cache; `build.hold` for both at once, or as `held_scales`.
    """
    if job.hold is not None and recipe.scales:
        raise InputError("build.hold", "scales are to come from an earlier bundle and from a calibration cache", where=str(job.hold),
                         remedy="leave out --hold-scales-from, or `scales` in the recipe")
    if recipe.scales:
        return cached_scales(Path(recipe.scales))
    return held_scales(job.hold) if job.hold is not None else None


def _parent(bundle: Path | None) -> tuple[str, str]:
    """NAME:VERSION and manifest digest of the bundle that the model was made from."""
    if bundle is None:
        return "", ""
    opened = open_bundle(bundle, verify=False)
    return f"{opened.spec.name}:{opened.spec.version}", opened.manifest_digest


def _named_task(recipe: Recipe, source: str, data: DataSet) -> TaskSpec:
    """The task with the model's input name and, for a classifier without --labels, the class folders' names in sorted order
    (the order that torchvision's ImageFolder trains with), unless those are plain numbers: then they are indices already."""
    task = recipe.task
    labels = task.labels
    if not labels and task.kind == "classify" and not all(label.isdigit() for label in data.labels()):
        labels = data.labels()
    return msgspec.structs.replace(task, labels=labels, input=msgspec.structs.replace(task.input, name=source))


def _variant(name: str, precision: str, handle: ModelHandle, detail: str, layout: str = "plain") -> Variant:
    return Variant(name, handle.digest, handle.size, precision, layout, detail)  # type: ignore[arg-type]


def _int8_variants(twins: Twins, origin: str) -> list[Built]:
    detail = f"{twins.kept} of {twins.layers} layers"
    return [Built(_variant("int8", "int8", twins.int8, f"{detail}, symmetric{origin}", "qdq-int8"), twins.int8),
            Built(_variant("uint8", "uint8", twins.uint8, f"{detail}, same scales as int8", "qdq-uint8"), twins.uint8)]


def _shipped(variants: Sequence[Built], rows: Sequence[EvaluationRow]) -> tuple[list[Built], tuple[str, ...]]:
    """Variants that some runtime may run, and the names of the others, whose weights stay out of the bundle.

    Raises:
        InputError: `build.none` when nothing is left: the limit refuses even the reference.
    """
    good = {row.variant for row in rows if row.verdict == "accepted"}
    shipped = [built for built in variants if built.variant.name in good]
    if not shipped:
        raise InputError("build.none", "every variant loses more than the limit, fp32 included: " + rows[0].reason,
                         remedy="raise --max-drop; it is in points and 0 accepts an equal result")
    return shipped, tuple(built.variant.name for built in variants if built.variant.name not in good)


def _measured(row: EvaluationRow, timing: Timing) -> MeasuredRow:
    return MeasuredRow(row.variant, row.backend, row.precision, round(timing.quantile(0.5), 3), round(timing.quantile(0.99), 3),
                       len(timing.samples), timing.ran_in, round(timing.peak_rss_mb, 1), round(timing.activate_ms, 1), timing.error)


def _png(path: Path) -> bytes:
    """The image's pixels as PNG, with the same bytes for the same pixels."""
    import cv2

    ok, data = cv2.imencode(".png", read_image(path), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not ok:
        raise InputError("data.unreadable", f"the image {path.name} cannot be written as PNG", where=str(path))
    return bytes(data.tobytes())
