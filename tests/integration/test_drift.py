"""Drift on a real pipeline process: a video that gets dark raises the alarm, light ends it, and telemetry carries what was seen."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from pipelines import PipelineProcess, bar_image, detector_task, model_of, save_map_model

from jetfleet_agent.ipc import Configure, Raised, Run, Window
from jetfleet_agent.pipeline.image_stats import luma_and_blur
from jetfleet_contract.app_config import Drift
from jetfleet_contract.drift import reference_of
from jetfleet_contract.messages import AppConfig, Source


def images(folder: Path, gain: float) -> Path:
    folder.mkdir()
    for index in range(40):
        cv2.imwrite(str(folder / f"{index:03}.png"), (bar_image(index) * gain).astype(np.uint8))
    return folder


@pytest.mark.slow
def test_a_camera_that_gets_dark_raises_the_alarm_until_it_is_light_again(tmp_path: Path) -> None:
    light, dark = images(tmp_path / "light", 1.0), images(tmp_path / "dark", 0.3)
    model = model_of(save_map_model(tmp_path / "model.onnx"), detector_task())
    reference = reference_of([luma_and_blur(bar_image(i)) for i in range(40)], [()] * 40)
    assert reference is not None
    kept = {name: one for name, one in reference.values.items() if name in ("luma", "blur")}  # the model's answers are not the point
    reference = msgspec.structs.replace(reference, values=kept)
    model = msgspec.structs.replace(model, spec=msgspec.structs.replace(model.spec, reference=reference))
    config = AppConfig(drift=Drift(windows=2, window_s=5.0))
    process = PipelineProcess(tmp_path / "run")
    try:
        process.send(Run(model, config, (Source("front", str(light), fps=10, loop=True),), window_s=1.0))
        process.until(lambda: any("drift.front" in window.gauges for window in process.of(Window)))
        assert not process.of(Raised)
        process.send(Configure(config, (Source("front", str(dark), fps=10, loop=True),)))
        raised = process.wait(Raised)
        assert (raised.source, raised.up, raised.code) == ("front", True, "drift")
        process.send(Configure(config, (Source("front", str(light), fps=10, loop=True),)))
        assert not process.wait(Raised).up
        values = {name for window in process.of(Window) for series in window.series for name in series.values}
        assert {"luma", "blur", "answers"} <= values
        assert process.stop() == 0
    finally:
        process.close()
