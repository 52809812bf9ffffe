"""A recipe file as this build runs it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.building import BuildReport, build
from jetfleet_host.compress.recipe import Job, Recipe
from jetfleet_host.compress.recipe_file import Quantize, RecipeFile


def build_recipe(job: Job, recipe: Recipe, file: RecipeFile, progress: Callable[[str, int, int], None]) -> BuildReport:
    """Build with the recipe file's stages.

    Raises:
        InputError: `search.stage` for a stage or a setting that an ONNX file cannot go through; what `build` raises.
    """
    for stage in file.stage:
        if not isinstance(stage, Quantize):
            raise InputError("search.stage", f"a {type(stage).__name__.lower()} stage needs a model that can be trained",
                             remedy="keep to [[stage]] kind = \"quantize\"")
        if stage != Quantize(calibrator=stage.calibrator, percentile=stage.percentile, images=stage.images):
            raise InputError("search.stage", "of a quantize stage only calibrator, percentile and images may vary here",
                             remedy="leave the others at their defaults")
        recipe = msgspec.structs.replace(recipe, methods=("int8",), calibrator=stage.calibrator, percentile=stage.percentile,
                                         calibration_images=stage.images)
    return build(job, recipe, progress)
