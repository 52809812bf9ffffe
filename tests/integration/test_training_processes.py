"""Training in two processes: started by the trainer, and started by torchrun; gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import detection_worlds
import numpy as np
import pytest
import torch
from detection_worlds import SIDE, Boxes
from float_worlds import ArraySplit, PlainNet, accuracy, seeded, workshop
from torch import nn

from jetfleet_contract.errors import InputError, RuntimeFailure
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.floating.user_task import UserTask
from jetfleet_host.compress.recipe_file import Qat, Tune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TESTS = Path(__file__).parent.parent


def tuned(folder: Path, epochs: int = 1, **training: Any) -> nn.Module:
    config = Tune(epochs=epochs)
    return stage_for(config)(seeded(PlainNet), config, workshop(folder, optimizer="sgd", **training))


def test_two_processes_end_near_the_weights_of_one(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    config = Tune(epochs=2)
    shop = workshop(tmp_path / "two", optimizer="sgd", devices=2, progress=lambda *said: seen.append(said))
    two = stage_for(config)(seeded(PlainNet), config, shop)
    one = tuned(tmp_path / "one", 2)
    for left, right in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert seen[-1] == ("tune: epoch 2 of 2", 42, 42), "progress crosses to the process that asked"


@pytest.mark.parametrize("how", ["fp16", "powersgd"])
def test_compressed_gradients_still_train(tmp_path: Path, how: str) -> None:
    model = tuned(tmp_path, 3, devices=2, gradient_compression=how, learning_rate=0.05)
    assert accuracy(model, workshop(tmp_path).validation).mean() > 0.85


def test_quantized_training_runs_in_two_processes(tmp_path: Path) -> None:
    start = tuned(tmp_path / "start", 3, learning_rate=0.05)
    shop = workshop(tmp_path / "qat", devices=2)
    model = stage_for(Qat(epochs=1))(start, Qat(epochs=1), shop)
    assert accuracy(model, shop.validation).mean() > 0.97 * accuracy(start, shop.validation).mean()


def diverging(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.sum() * float("nan")


def test_all_processes_stop_when_one_diverges(tmp_path: Path) -> None:
    config = Tune(epochs=1)
    with pytest.raises(RuntimeFailure, match="epoch 1, step 1") as caught:
        stage_for(config)(seeded(PlainNet), config, replace(workshop(tmp_path, devices=2), loss=diverging))
    assert caught.value.code == "build.diverged"


def test_what_is_wrong_with_the_data_comes_back_from_the_processes(tmp_path: Path) -> None:
    shop = workshop(tmp_path, devices=2)
    images = shop.train[0][0][None].repeat(64, 0) * np.nan
    with pytest.raises(InputError, match="sample 0"):
        stage_for(Tune())(seeded(PlainNet), Tune(), replace(shop, train=ArraySplit(images, np.zeros(64, np.int64))))


def own_task(folder: Path, name: str) -> Workshop:
    task = UserTask(name)
    return replace(workshop(folder, devices=2, batch=8), shape=(1, 3, SIDE, SIDE), train=Boxes(16, 1), validation=Boxes(8, 2),
                   loss=task.loss, score=task.score, collate=task.collate, distance=task.distance, task=task.digest)


def test_targets_of_differing_length_are_shared_out(tmp_path: Path) -> None:
    shop = own_task(tmp_path, "detection_worlds:task")
    before = detection_worlds.net()
    after = stage_for(Tune(epochs=3))(before, Tune(epochs=3), shop)
    pairs = [shop.train[index] for index in range(16)]
    targets = UserTask("detection_worlds:task").collate([torch.as_tensor(boxes) for _, boxes in pairs])
    images = torch.stack([torch.as_tensor(image) for image, _ in pairs])
    with torch.no_grad():  # in training mode: six steps are few for the running statistics
        assert shop.loss(after.train()(images), targets) < 0.8 * shop.loss(before.train()(images), targets)


def test_an_error_in_one_process_ends_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="anchors") as caught:
        stage_for(Tune())(detection_worlds.net(), Tune(epochs=1), own_task(tmp_path, "odd_tasks:refused_by_one"))
    assert caught.value.code == "build.loss"


def test_torchrun_s_processes_train_one_model(tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS), *sys.path])
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(TESTS / "torchrun_stage.py"), str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": path}, timeout=240)
    first, second = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert first == second
