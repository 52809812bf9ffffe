"""A student learns from a teacher of any kind; what does not fit together is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from float_worlds import DigitNet, PlainNet, accuracy, digits, seeded, workshop
from torch import nn
from torch.nn import functional

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.floating.distil import Distillation
from jetfleet_host.compress.floating.epoch_state import weights_digest
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.floating.teachers import OnnxTeacher
from jetfleet_host.compress.recipe_file import Distil, Tune

STUDENT = "float_worlds:PlainNet"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    config = Tune(epochs=5)
    return stage_for(config)(seeded(DigitNet), config, workshop(tmp_path_factory.mktemp("teacher")))


def exported(model: nn.Module, path: Path, batch: int | None) -> Path:
    buffer = io.BytesIO()
    torch.onnx.export(model, (torch.zeros(batch or 1, 1, 8, 8),), buffer, dynamo=False, opset_version=17, input_names=["image"],
                      dynamic_axes=None if batch else {"image": {0: "n"}})
    path.write_bytes(buffer.getvalue())
    return path


def test_the_factory_s_student_agrees_with_the_teacher_more_than_one_trained_on_labels(teacher: nn.Module, tmp_path: Path) -> None:
    shop = workshop(tmp_path / "distil", teacher=lambda: teacher)
    config = Distil(epochs=4, student=STUDENT, alpha=1.0, temperature=3.0)
    student = stage_for(config)(teacher, config, shop)
    alone = stage_for(Tune())(seeded(PlainNet), Tune(epochs=4), workshop(tmp_path / "alone"))
    images = torch.as_tensor(digits()[1].images)
    with torch.no_grad():
        wanted = (teacher(images) / 3).softmax(1)
        far = [float(functional.kl_div((net(images) / 3).log_softmax(1), wanted, reduction="batchmean")) for net in (student, alone)]
    assert isinstance(student, PlainNet)
    assert far[0] < far[1]
    assert accuracy(student, shop.validation).mean() > 0.75


def test_without_a_student_the_present_model_learns_on(teacher: nn.Module, tmp_path: Path) -> None:
    before = weights_digest(teacher)
    config = Distil(epochs=1)
    student = stage_for(config)(teacher, config, workshop(tmp_path, teacher=lambda: seeded(DigitNet, 1)))
    assert isinstance(student, DigitNet)
    assert weights_digest(teacher) == before != weights_digest(student)


@pytest.mark.parametrize("batch", [None, 1, 50])
def test_an_onnx_teacher_answers_as_its_module_whatever_batch_it_takes(teacher: nn.Module, tmp_path: Path, batch: int | None) -> None:
    file = OnnxTeacher(exported(teacher, tmp_path / "teacher.onnx", batch), (1, 1, 8, 8))
    images = torch.as_tensor(digits()[1].images[:70])
    with torch.no_grad():
        torch.testing.assert_close(file(images), teacher(images), rtol=1e-4, atol=1e-4)


def test_a_student_learns_from_an_onnx_file(teacher: nn.Module, tmp_path: Path) -> None:
    path = exported(teacher, tmp_path / "teacher.onnx", None)
    config = Distil(epochs=4, student=STUDENT, teacher=str(path))
    shop = workshop(tmp_path / "distil")
    assert accuracy(stage_for(config)(teacher, config, shop), shop.validation).mean() > 0.75


def test_hints_pull_features_towards_the_teacher_s(teacher: nn.Module, tmp_path: Path) -> None:
    config = Distil(epochs=1, student="float_worlds:slim_digit_net", hints=1.0, pairs=("blocks.2=blocks.2",))
    student = stage_for(config)(teacher, config, workshop(tmp_path, teacher=lambda: teacher))
    assert student.head.in_features == 8, "the adapter stays behind"
    assert not [name for name, _ in student.named_modules() if "adapter" in name]


def test_the_loss_is_that_of_soft_answers() -> None:
    def fixed(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return torch.tensor([[1.0, 0.0]]), []

    teacher = nn.Linear(1, 2)
    with torch.no_grad():
        teacher.weight.zero_()
        teacher.bias.copy_(torch.tensor([2.0, 0.0]))
    objective = Distillation(functional.cross_entropy, teacher, 2.0, 0.5, 0.0, ())
    p, q = torch.tensor([1.0, 0.0]).softmax(0), torch.tensor([0.5, 0.0]).softmax(0)
    expected = 0.5 * 4.0 * float((p * (p / q).log()).sum()) + 0.5 * float(-torch.tensor([1.0, 0.0]).log_softmax(0)[1])
    assert float(objective(fixed, torch.zeros(1, 1), torch.tensor([1]))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("pairs", "what"), [
    (("block9=blocks.2",), "the student has no module 'block9'"), (("blocks.2=nothing",), "the teacher has no module 'nothing'"),
    (("blocks.2",), "is not student.module=teacher.module"), (("blocks.0=blocks.2",), "do not lie on one another"),
])
def test_hints_that_fit_nothing_are_named(teacher: nn.Module, tmp_path: Path, pairs: tuple[str, ...], what: str) -> None:
    config = Distil(epochs=1, hints=1.0, pairs=pairs)
    with pytest.raises(InputError, match=what) as caught:
        stage_for(config)(teacher, config, workshop(tmp_path, teacher=lambda: teacher))
    assert caught.value.code == "build.distil"


def test_a_teacher_of_other_classes_or_another_input_is_refused(teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the student answers") as caught:
        stage_for(Distil())(teacher, Distil(), workshop(tmp_path, teacher=lambda: DigitNet(classes=7)))
    assert caught.value.code == "build.distil"
    path = exported(teacher, tmp_path / "teacher.onnx", None)
    with pytest.raises(InputError) as caught:
        OnnxTeacher(path, (1, 3, 32, 32))
    assert caught.value.code == "build.teacher"
