"""What engines of each runtime are bound to on a machine, as a table, and how they are made there."""

from __future__ import annotations

import msgspec
import pytest

from jetfleet_agent.boards import load_board
from jetfleet_contract.boards import bounded_dla
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.engines import ENGINE_TITLES, Footing, engine_key, why_foreign
from jetfleet_contract.footings import KINDS, footing_of, recipe_of, runs_on_dla, tuning_of, why_no_footing
from jetfleet_contract.messages import BackendInfo, Capability, GpuInfo
from jetfleet_contract.tuning import Tuning

ORIN_GPU = GpuInfo("Orin", 87, 8, integrated=True, driver="12.6")
ORIN = Capability("orin-nano", "orin-nano", "aarch64", "Arm Cortex-A78AE", ("asimd",), 6, 7619,
                  (BackendInfo("tensorrt", "10.3.0", precisions=("fp16",), build="10.3.0.30"), BackendInfo("onnxruntime", "1.23")),
                  gpu=ORIN_GPU, module="p3767-0005", system="36.4.3")
PC = Capability("x86-gpu", "x86-gpu", "x86_64", "Some CPU", ("fma", "avx2"), 4, 16000,
                (BackendInfo("openvino", "2026.4.1", build="2026.4.1-22982-abc"), BackendInfo("tensorrt", "10.16", build="10.16.1.11"),
                 BackendInfo("tensorrt-rtx", "1.7.1.116", build="1.7.1.116")), gpu=GpuInfo("RTX 4090", 89, 128, driver="13.0"))
ENTRY = InputSpec("x", 640, 480)
WEIGHTS = "a" * 64


@pytest.mark.parametrize(("here", "backend", "footing"), [
    (ORIN, "tensorrt", Footing("tensorrt", "10.3.0.30", "aarch64", "p3767-0005", sm=87, sm_count=8, system="36.4.3")),
    (PC, "tensorrt", Footing("tensorrt", "10.16.1.11", "x86_64", "RTX 4090", sm=89, sm_count=128)),
    (PC, "tensorrt-rtx", Footing("tensorrt-rtx", "1.7.1.116", "x86_64", "", sm=89)),
    (PC, "openvino", Footing("openvino", "2026.4.1-22982-abc", "x86_64", "Some CPU", ("avx2", "fma"), cores=4)),
    (ORIN, "onnxruntime", None),
    (ORIN, "openvino", None),
    (ORIN, "nonsense", None),
    (msgspec.structs.replace(ORIN, module=""), "tensorrt", None),
    (msgspec.structs.replace(ORIN, gpu=None), "tensorrt", None),
    (msgspec.structs.replace(PC, gpu=None), "tensorrt-rtx", None),
])
def test_what_an_engine_is_bound_to(here: Capability, backend: str, footing: Footing | None) -> None:
    assert footing_of(here, backend) == footing
    assert bool(why_no_footing(here, backend)) == (footing is None)


@pytest.mark.parametrize(("changed", "code"), [
    ({"backends": (BackendInfo("tensorrt", "10.3.0", build="10.3.0.31"),)}, "engine.version"),
    ({"gpu": msgspec.structs.replace(ORIN_GPU, sm=72)}, "engine.sm"),
    ({"gpu": msgspec.structs.replace(ORIN_GPU, sm_count=4)}, "engine.device"),
    ({"module": "p3767-0004"}, "engine.device"),
    ({"system": "36.4.4"}, "engine.system"),
    ({"gpu": msgspec.structs.replace(ORIN_GPU, driver="12.9")}, ""),
    ({"cores": 2, "isa": ()}, ""),
])
def test_another_board_of_a_plan_is_foreign_by_name_and_another_driver_is_not(changed: dict[str, object], code: str) -> None:
    made, here = footing_of(ORIN, "tensorrt"), footing_of(msgspec.structs.replace(ORIN, **changed), "tensorrt")
    assert made is not None
    assert here is not None
    assert why_foreign(made, here)[0] == code
    recipe = recipe_of("tensorrt", WEIGHTS, "fp16", ENTRY, Tuning(), 2)
    assert recipe is not None
    assert (engine_key(made, recipe) == engine_key(here, recipe)) == (not code)


def test_a_runtime_that_is_missing_or_hides_its_build_shares_nothing_and_says_why() -> None:
    away = msgspec.structs.replace(ORIN, backends=(BackendInfo("tensorrt", missing="the NVIDIA driver is not installed"),), gpu=None)
    assert why_no_footing(away, "tensorrt") == "the NVIDIA driver is not installed"
    hidden = msgspec.structs.replace(ORIN, backends=(BackendInfo("tensorrt", "10.3.0"),))
    assert "full version" in why_no_footing(hidden, "tensorrt")
    assert why_no_footing(ORIN, "openvino") == "orin-nano does not use openvino"


def test_threads_and_folded_frames_are_part_of_what_is_compiled_for_a_cpu_only() -> None:
    folded = recipe_of("openvino", WEIGHTS, "bf16", ENTRY, Tuning(folded=True), 2)
    assert folded is not None
    assert (folded.threads, folded.folded, len(folded.input), folded.shape) == (2, True, 64, (1, 3, 480, 640))
    for backend in ("tensorrt", "tensorrt-rtx"):
        recipe = recipe_of(backend, WEIGHTS, "fp16", ENTRY, Tuning(threads=3), 2)
        assert recipe is not None
        assert (recipe.threads, recipe.input) == (0, "")
        assert recipe_of(backend, WEIGHTS, "fp16", ENTRY, Tuning(folded=True), 2) is None


def test_a_dla_engine_serves_either_core_and_no_other_runtime_has_one() -> None:
    zero, one = (recipe_of("tensorrt", WEIGHTS, "int8", ENTRY, Tuning(provider=core), 0) for core in ("DLA0", "DLA1"))
    gpu = recipe_of("tensorrt", WEIGHTS, "int8", ENTRY, Tuning(), 0)
    assert zero == one != gpu
    assert zero is not None
    assert tuning_of(zero).provider == "DLA0"
    for backend, provider in (("openvino", "DLA0"), ("openvino", "GPU"), ("tensorrt-rtx", "DLA0"), ("onnxruntime", "")):
        assert recipe_of(backend, WEIGHTS, "fp16", ENTRY, Tuning(provider=provider), 0) is None


@pytest.mark.parametrize(("board", "l4t", "seen", "cores"), [
    ("agx-orin-64", "36.4.3", 2, 2), ("agx-orin-64", "36.4.3", 0, 0), ("agx-orin-64", "39.2.0", 2, 0), ("orin-nano", "36.4.3", 2, 0),
    ("orin-nx-8", "36.4.3", 2, 1), ("thor-t5000", "39.2.0", 1, 0), ("agx-orin-64", "41.0.0", 2, 2)])
def test_dla_cores_are_those_that_tensorrt_sees_and_the_board_file_allows(board: str, l4t: str, seen: int, cores: int) -> None:
    file = load_board(board)
    gpu = bounded_dla(file, l4t, GpuInfo("Orin", 87, 16, integrated=True, dla_cores=seen))
    here = Capability(board, board, "aarch64", gpu=gpu)
    assert (gpu.dla_cores, bool(gpu.dla_precisions)) == (cores, cores > 0)
    assert [runs_on_dla(here, "tensorrt", precision) for precision in ("fp16", "int8", "fp32")] == [cores > 0, cores > 0, False]
    assert not runs_on_dla(here, "tensorrt-rtx", "fp16")


def test_every_runtime_that_has_a_title_has_its_row() -> None:
    assert set(KINDS) == set(ENGINE_TITLES)
