"""YOLO11's shape, weights random from a fixed seed: for latency, never for accuracy. No download, no torch.

Layer by layer the nano model of Ultralytics' ``yolo11.yaml`` (C3k2, SPPF, C2PSA, a decoupled head with distribution focal loss), batch
norms folded, written with `onnx.helper`. The output is the usual (1, 4 + classes, anchors): centre and size in input pixels, then scores.

    python benchmarks/yolo_shape.py yolo11n.onnx [--size 640] [--classes 80]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

REG = 16  # bins of the distribution focal loss
STRIDES = (8, 16, 32)
TINY_SIZE, TINY_WIDTH = 320, 0.125
NANO_WIDTH = 0.25


def write_yolo(path: Path, size: int = 640, classes: int = 80, *, batch: int | str = 1, width: float = NANO_WIDTH) -> Path:
    """YOLO11n: float32 "images" (batch, 3, size, size) -> "output0" (batch, 4 + classes, 8400 at 640); a str leaves the batch axis free."""
    import onnx

    onnx.save(_Yolo(size, classes, batch, width).model(), str(path))
    return path


def write_tiny(path: Path, *, batch: int | str = 1) -> Path:
    """The same at half the width and 320x320, a model of a few milliseconds: (1, 3, 320, 320) -> (1, 84, 2100)."""
    return write_yolo(path, TINY_SIZE, batch=batch, width=TINY_WIDTH)


class _Yolo:
    """Collects nodes and weights. A value is its name; `_channels` knows how wide it is."""

    def __init__(self, size: int, classes: int, batch: int | str, width: float) -> None:
        if size % 32:
            raise SystemExit(f"size {size} is no multiple of 32")
        self._rng = np.random.default_rng(11)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._channels = {"images": 3}
        self._size, self._classes, self._batch, self._width = size, classes, batch, width

    def model(self) -> Any:
        """Backbone, neck and head (``yolo11.yaml``, rows 0 to 23)."""
        from onnx import TensorProto, helper

        wide = self._wide
        p2 = self._c3k2(self._conv(self._conv("images", wide(64), 3, 2), wide(128), 3, 2), wide(256), False, 0.25)
        p3 = self._c3k2(self._conv(p2, wide(256), 3, 2), wide(512), False, 0.25)
        p4 = self._c3k2(self._conv(p3, wide(512), 3, 2), wide(512), True)
        p5 = self._c3k2(self._conv(p4, wide(1024), 3, 2), wide(1024), True)
        p5 = self._c2psa(self._sppf(p5))
        n4 = self._c3k2(self._concat(self._twice(p5), p4), wide(512), False)
        n3 = self._c3k2(self._concat(self._twice(n4), p3), wide(256), False)
        n4 = self._c3k2(self._concat(self._conv(n3, wide(256), 3, 2), n4), wide(512), False)
        n5 = self._c3k2(self._concat(self._conv(n4, wide(512), 3, 2), p5), wide(1024), True)
        self._head([n3, n4, n5])
        anchors = sum((self._size // stride) ** 2 for stride in STRIDES)
        graph = helper.make_graph(
            self._nodes, "yolo11", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [self._batch, 3, self._size, self._size])],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [self._batch, 4 + self._classes, anchors])], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _wide(self, channels: int) -> int:
        return int(np.ceil(channels * self._width / 8) * 8)

    # --- single nodes ------------------------------------------------------------------------------------------

    def _weight(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _node(self, kind: str, inputs: list[str], channels: int, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self._channels[name] = channels
        return name

    def _split(self, value: str, parts: list[int], axis: int) -> list[str]:
        from onnx import helper

        names = [f"split{len(self._nodes)}.{index}" for index in range(len(parts))]
        self._nodes.append(helper.make_node("Split", [value, self._weight(np.array(parts, np.int64))], names, name=names[0], axis=axis))
        self._channels.update(zip(names, parts, strict=True))
        return names

    def _conv(self, value: str, out: int, kernel: int = 1, stride: int = 1, *, group: int = 1, act: bool = True, bias: float = 0.0) -> str:
        """Convolution with folded batch norm, then SiLU."""
        inside = self._channels[value]
        spread = np.sqrt((2.0 if act else 1.0) / (inside // group * kernel * kernel))  # He et al. 2015: keeps activations in range
        weights = [self._weight(self._rng.normal(0, spread, (out, inside // group, kernel, kernel)).astype(np.float32)),
                   self._weight(np.full(out, bias, np.float32))]
        made = self._node("Conv", [value, *weights], out, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2,
                          group=group)
        if not act:
            return made
        return self._node("Mul", [made, self._node("Sigmoid", [made], out)], out)

    def _concat(self, *values: str) -> str:
        return self._node("Concat", list(values), sum(self._channels[value] for value in values), axis=1)

    def _twice(self, value: str) -> str:
        scales = self._weight(np.array([1, 1, 2, 2], np.float32))
        return self._node("Resize", [value, "", scales], self._channels[value], mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric")

    def _add(self, a: str, b: str) -> str:
        return self._node("Add", [a, b], self._channels[a])

    def _reshape(self, value: str, shape: list[int]) -> str:
        """0 in `shape` keeps an axis, the batch above all."""
        return self._node("Reshape", [value, self._weight(np.array(shape, np.int64))], shape[1])

    # --- blocks of ultralytics' modules/block.py ----------------------------------------------------------------

    def _bottleneck(self, value: str, hidden: int) -> str:
        return self._add(value, self._conv(self._conv(value, hidden, 3), self._channels[value], 3))

    def _c3k(self, value: str) -> str:
        channels = self._channels[value]
        left, right = self._conv(value, channels // 2), self._conv(value, channels // 2)
        for _ in range(2):
            left = self._bottleneck(left, channels // 2)
        return self._conv(self._concat(left, right), channels)

    def _c3k2(self, value: str, out: int, c3k: bool, share: float = 0.5) -> str:
        hidden = int(out * share)
        parts = self._split(self._conv(value, 2 * hidden), [hidden, hidden], 1)
        inner = self._c3k(parts[1]) if c3k else self._bottleneck(parts[1], hidden // 2)
        return self._conv(self._concat(*parts, inner), out)

    def _sppf(self, value: str) -> str:
        channels = self._channels[value]
        pooled = [self._conv(value, channels // 2)]
        for _ in range(3):
            pooled.append(self._node("MaxPool", [pooled[-1]], channels // 2, kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
        return self._conv(self._concat(*pooled), channels)

    def _c2psa(self, value: str) -> str:
        channels = self._channels[value]
        kept, seen = self._split(self._conv(value, channels), [channels // 2] * 2, 1)
        seen = self._add(seen, self._attention(seen))
        seen = self._add(seen, self._conv(self._conv(seen, channels), channels // 2, act=False))
        return self._conv(self._concat(kept, seen), channels)

    def _attention(self, value: str) -> str:
        channels = self._channels[value]
        heads = max(1, channels // 64)
        head, key = channels // heads, channels // heads // 2
        side = self._size // 32
        qkv = self._reshape(self._conv(value, channels + 2 * heads * key, act=False), [0, heads, 2 * key + head, side * side])
        q, k, v = self._split(qkv, [key, key, head], 2)
        scores = self._node("MatMul", [self._node("Transpose", [q], heads, perm=[0, 1, 3, 2]), k], heads)
        scores = self._node("Mul", [scores, self._weight(np.float32(key ** -0.5))], heads)
        scores = self._node("Transpose", [self._node("Softmax", [scores], heads, axis=-1)], heads, perm=[0, 1, 3, 2])
        mixed = self._reshape(self._node("MatMul", [v, scores], heads), [0, channels, side, side])
        place = self._conv(self._reshape(v, [0, channels, side, side]), channels, 3, group=channels, act=False)
        return self._conv(self._add(mixed, place), channels, act=False)

    # --- head --------------------------------------------------------------------------------------------------

    def _head(self, levels: list[str]) -> None:
        first = self._channels[levels[0]]
        box_width, score_width = max(16, first // 4, 4 * REG), max(first, min(self._classes, 100))
        boxes, scores = [], []
        for value, stride in zip(levels, STRIDES, strict=True):
            cells = (self._size // stride) ** 2
            box = self._conv(self._conv(self._conv(value, box_width, 3), box_width, 3), 4 * REG, act=False, bias=1.0)
            boxes.append(self._reshape(box, [0, 4 * REG, cells]))
            score = self._conv(self._depthwise(value), score_width)
            score = self._conv(self._depthwise(score), score_width)
            rare = float(np.log(5 / self._classes / (640 / stride) ** 2))  # as training begins: hardly a box over any threshold
            scores.append(self._reshape(self._conv(score, self._classes, act=False, bias=rare), [0, self._classes, cells]))
        box = self._boxes(self._node("Concat", boxes, 4 * REG, axis=2))
        score = self._node("Sigmoid", [self._node("Concat", scores, self._classes, axis=2)], self._classes)
        joined = self._node("Concat", [box, score], 4 + self._classes, axis=1)
        self._nodes[-1].output[0] = "output0"
        self._channels["output0"] = self._channels.pop(joined)

    def _depthwise(self, value: str) -> str:
        channels = self._channels[value]
        return self._conv(value, channels, 3, group=channels)

    def _boxes(self, value: str) -> str:
        """Distances to the four sides, as expected values over 16 bins, become centre and size in pixels."""
        cells = [((self._size // stride), stride) for stride in STRIDES]
        total = sum(side * side for side, _ in cells)
        bins = self._node("Transpose", [self._reshape(value, [0, 4, REG, total])], REG, perm=[0, 2, 1, 3])
        chances = self._node("Softmax", [bins], REG, axis=1)
        kernel = self._weight(np.arange(REG, dtype=np.float32).reshape(1, REG, 1, 1))
        sides = self._reshape(self._node("Conv", [chances, kernel], 1, kernel_shape=[1, 1]), [0, 4, total])
        low, high = self._split(sides, [2, 2], 1)
        grid = [np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), 0).reshape(2, -1) for side, _ in cells]
        anchors = self._weight(np.concatenate(grid, 1).astype(np.float32)[None])
        scale = self._weight(np.concatenate([np.full(side * side, stride) for side, stride in cells]).astype(np.float32)[None, None])
        start = self._node("Sub", [anchors, low], 2)
        end = self._node("Add", [anchors, high], 2)
        centre = self._node("Mul", [self._node("Add", [start, end], 2), self._weight(np.float32(0.5))], 2)
        joined = self._node("Concat", [centre, self._node("Sub", [end, start], 2)], 4, axis=1)
        return self._node("Mul", [joined, scale], 4)


def main() -> None:
    """Write a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--classes", type=int, default=80)
    arguments = parser.parse_args()
    print(write_yolo(arguments.path, arguments.size, arguments.classes))


if __name__ == "__main__":
    main()
