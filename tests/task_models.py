"""Tiny ONNX graphs with the outputs of each task's models: they really see dark things in bright frames, a cell of 8 x 8 pixels at a time.

Darkness is 1 - mean of the channels, averaged over a cell. A cell is a candidate: its middle, 16 x 16 pixels, class 0 with its darkness as
score, class 1 with none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save
from onnx.shape_inference import infer_shapes

CELL = 8
SIZE = 16.0
POINTS = 2
PROTOTYPES = 4
LAYOUTS = ("v5", "v8", "v8-rows", "end2end", "nms", "onnx-nms", "seg", "pose", "regions", "raw")


class _Graph:
    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.columns, self.rows = width // CELL, height // CELL
        self.count = self.columns * self.rows
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def darkness(self) -> str:
        """(1, 1, H, W), 0..1."""
        weight = self.constant("dark.w", np.full((1, 3, 1, 1), -1.0 / 3.0, np.float32))
        return self.node("Conv", ["x", weight, self.constant("dark.b", np.ones(1, np.float32))], "dark")

    def pooled(self, name: str, cell: int) -> str:
        return self.node("AveragePool", ["dark"], name, kernel_shape=[cell, cell], strides=[cell, cell])

    def scores(self) -> str:
        """(1, 1, N)"""
        return self.node("Reshape", [self.pooled("cells", CELL), self.constant("flat", np.array([1, 1, self.count], np.int64))], "score")

    def middles(self) -> np.ndarray:
        """(1, 4, N) cx, cy, w, h."""
        ys, xs = np.mgrid[0:self.rows, 0:self.columns]
        wide = np.full(self.count, SIZE)
        rows = [xs.reshape(-1) * CELL + CELL / 2, ys.reshape(-1) * CELL + CELL / 2, wide, wide]
        return np.stack(rows)[None].astype(np.float32)

    def filled(self, name: str, rows: int, value: float) -> str:
        return self.constant(name, np.full((1, rows, self.count), value, np.float32))

    def v8(self, *further: str) -> str:
        return self.node("Concat", [self.constant("boxes", self.middles()), self.scores(), self.filled("none", 1, 0.0), *further],
                         "raw", axis=1)

    def rows_of(self, source: str, output: str) -> str:
        return self.node("Transpose", [source], output, perm=[0, 2, 1])

    def best(self, count: int) -> tuple[str, str]:
        """The best cells' boxes (1, K, 4) x0, y0, x1, y1, and scores (1, K, 1): what built-in suppression gives."""
        column = self.rows_of(self.scores(), "column")
        self.nodes.append(helper.make_node("TopK", [column, self.constant("k", np.array([count], np.int64))], ["best", "index"], axis=1))
        places = self.node("Reshape", ["index", self.constant("line", np.array([count], np.int64))], "places")
        corners = self.middles()[0].T
        corners = np.concatenate([corners[:, :2] - SIZE / 2, corners[:, :2] + SIZE / 2], axis=1)[None]
        boxes = self.node("Gather", [self.constant("corners", corners.astype(np.float32)), places], "picked", axis=1)
        return boxes, "best"


def save_task_model(path: Path, layout: str, *, width: int, height: int) -> Path:
    """A model of that layout, input ``x`` (1, 3, height, width)."""
    graph = _Graph(width, height)
    graph.darkness()
    outputs = _outputs(graph, layout)
    made = helper.make_graph(graph.nodes, layout, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, height, width])],
                             [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs], graph.weights)
    model = infer_shapes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), strict_mode=True)
    checker.check_model(model)
    save(model, str(path))
    return path


def _outputs(graph: _Graph, layout: str) -> list[tuple[str, int]]:
    floats = TensorProto.FLOAT
    if layout == "v8":
        return [(graph.v8(), floats)]
    if layout == "v8-rows":
        return [(graph.rows_of(graph.v8(), "rows"), floats)]
    if layout == "v5":
        objectness = graph.filled("sure", 1, 1.0)
        rows = graph.node("Concat", [graph.constant("boxes", graph.middles()), objectness, graph.scores(), graph.filled("none", 1, 0.0)],
                          "raw", axis=1)
        return [(graph.rows_of(rows, "rows"), floats)]
    if layout == "end2end":
        classes = graph.constant("classes", np.zeros((1, 8, 1), np.float32))
        return [(graph.node("Concat", [*graph.best(8), classes], "answer", axis=2), floats)]
    if layout == "nms":
        boxes, scores = graph.best(8)
        count = graph.constant("count", np.array([[8]], np.int32))
        numbers = graph.constant("numbers", np.zeros((1, 8), np.int32))
        flat = graph.node("Reshape", [scores, graph.constant("two", np.array([1, 8], np.int64))], "scores")
        return [(graph.node("Identity", [count], "num_dets"), TensorProto.INT32), (boxes, floats), (flat, floats),
                (graph.node("Identity", [numbers], "det_classes"), TensorProto.INT32)]
    if layout == "onnx-nms":
        places = graph.constant("boxes", graph.middles().transpose(0, 2, 1))
        scores = graph.node("Identity", [graph.scores()], "told")
        most, iou, least = (graph.constant(name, np.array([value], kind)) for name, value, kind in
                            (("most", 50, np.int64), ("iou", 0.5, np.float32), ("least", 0.6, np.float32)))
        picked = graph.node("NonMaxSuppression", [places, scores, most, iou, least], "picked", center_point_box=1)
        return [(picked, TensorProto.INT64), (graph.node("Identity", [places], "places"), floats), (scores, floats)]
    if layout == "seg":
        coefficients = np.zeros((1, PROTOTYPES, graph.count), np.float32)
        coefficients[:, 0] = 1.0
        raw = graph.v8(graph.constant("coefficients", coefficients))
        quarter = graph.node("Sub", [graph.pooled("quarter", 4), graph.constant("half", np.float32(0.5))], "signed")
        spread = graph.node("Expand", [quarter, graph.constant("many", np.array([1, PROTOTYPES, 1, 1], np.int64))], "prototypes")
        return [(raw, floats), (spread, floats)]
    if layout == "pose":
        middles = graph.middles()
        points = np.concatenate([middles[:, :2], np.full((1, 1, graph.count), 0.75)] * POINTS, axis=1).astype(np.float32)
        return [(graph.v8(graph.constant("points", points)), floats)]
    if layout == "regions":
        bright = graph.node("Sub", [graph.constant("one", np.float32(1.0)), "dark"], "bright")
        return [(graph.node("Concat", [bright, "dark"], "map", axis=1), floats)]
    if layout == "raw":
        return [(graph.node("GlobalAveragePool", ["dark"], "mean"), floats)]
    raise ValueError(layout)
