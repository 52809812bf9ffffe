"""The decoding kernels on a real GPU, through the agent's own port and launch: the twin to the last bit. Run by `make test-board`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from decode_heads import KINDS, head_of, random_rules

from jetfleet_agent.pipeline.cuda import open_cuda
from jetfleet_agent.pipeline.cuda.decode_launch import DecodeLaunch
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_agent.pipeline.decode_twin import decode
from jetfleet_agent.pipeline.decoded import record_type
from jetfleet_contract.decode_arguments import HeadRules, head_rules
from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.kernels import HEAD_TYPES, HEADS, HeadLayout, HeadType
from jetfleet_host.kernels.building import UNIT, open_compiler, source
from jetfleet_host.kernels.targets import chosen
from jetfleet_host.kernels.toolchains import default_cache

pytestmark = pytest.mark.gpu
LAUNCHES = 200


@pytest.fixture(scope="module")
def cuda() -> Iterator[Cuda]:
    opened = open_cuda()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def module(cuda: Cuda) -> Iterator[Any]:
    target = max((one for one in chosen((cuda.sm,)) if one.cuda <= cuda.cuda), key=lambda one: one.cuda)
    loaded = cuda.load(open_compiler(target.cuda, default_cache(), True, print).compile(source(), UNIT, cuda.sm))
    yield loaded
    cuda.unload(loaded)


class Lane:
    """Memory, a stream and a launch of one decode."""

    def __init__(self, cuda: Cuda, module: Any, rules: HeadRules) -> None:
        self.cuda = cuda
        self.rules = rules
        self.stream = cuda.stream()
        self.head, self.workspace, self.output = (cuda.allocate(size) for size in (
            rules.head_bytes, rules.workspace_bytes, rules.output_bytes))
        self.given = page_aligned(rules.shape, np.float32 if rules.type == "f32" else np.float16)
        self.records = page_aligned((rules.images,), record_type(rules))
        self.launch = DecodeLaunch(cuda, module, rules)

    def give(self, head: npt.NDArray[Any]) -> None:
        self.given[...] = head
        self.cuda.upload(self.head, self.given, self.stream)

    def enqueue(self) -> None:
        self.launch.enqueue(self.head, self.workspace, self.output, self.stream)

    def check(self) -> None:
        """What the GPU has left is what the twin leaves of the same head."""
        self.cuda.download(self.records, self.output, self.stream)
        self.cuda.wait(self.stream)
        for mine, theirs in zip(self.records, decode(self.given, self.rules), strict=True):
            for field in ("kept", "considered", "passed"):
                assert mine[field] == theirs[field]
            kept = int(theirs["kept"])
            assert mine["slots"][:kept].tobytes() == theirs["slots"][:kept].tobytes()
            assert np.array_equal(mine["rest"][:kept], theirs["rest"][:kept], equal_nan=True)

    def free(self) -> None:
        for address in (self.head, self.workspace, self.output):
            self.cuda.free(address)
        self.cuda.end_stream(self.stream)


@pytest.mark.parametrize("kind", HEAD_TYPES)
@pytest.mark.parametrize("layout", HEADS)
@pytest.mark.parametrize("scene", KINDS)
def test_the_gpu_and_the_twin_are_one(cuda: Cuda, module: Any, scene: str, layout: HeadLayout, kind: HeadType) -> None:
    rng = np.random.default_rng()
    for anchors in (1, 63, 64, 65, int(rng.integers(2, 3000)), 8400):
        lane = Lane(cuda, module, random_rules(rng, layout, kind, images=int(rng.integers(1, 5)), anchors=anchors))
        lane.give(head_of(rng, lane.rules, scene))
        lane.enqueue()
        lane.check()
        lane.free()


def test_a_captured_decode_serves_frame_after_frame(cuda: Cuda, module: Any, record_property: Any) -> None:
    """The graph that a lane launches, with other heads each time; its duration at YOLO11's size goes into the report."""
    lane = Lane(cuda, module, head_rules("v8", "f16", (1, 84, 8400), classes=80))
    rng = np.random.default_rng()
    lane.enqueue()
    lane.cuda.wait(lane.stream)
    try:
        cuda.begin_capture(lane.stream)
    except RuntimeFailure as error:
        pytest.skip(error.what)
    lane.enqueue()
    graph = cuda.end_capture(lane.stream)
    for scene in ("scene", "sure", "empty", "odd", "scene"):
        lane.give(head_of(rng, lane.rules, scene))
        cuda.launch_graph(graph, lane.stream)
        lane.check()
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        cuda.launch_graph(graph, lane.stream)
    cuda.wait(lane.stream)
    record_property("decode_us", round((time.perf_counter() - began) / LAUNCHES * 1e6, 1))
    cuda.end_graph(graph)
    lane.free()
