"""One peer over one video, alone in its process and its own environment: run by pipeline_peers.py, imports nothing of ours.

    python benchmarks/peer_runner.py PEER MODEL.onnx VIDEO THREADS SIZE

Prints one JSON object: when each frame's answer was ready (seconds), and what decoding and the session took within (seconds a frame). The
session is timed at the runtime's own call, inside the peer, so that "beyond decode and session" is all that the peer adds.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SCORE, IOU = 0.25, 0.45


class Spent:
    """Seconds in one kind of work, by frame."""

    def __init__(self) -> None:
        self.frames: list[float] = []
        self._now = 0.0

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self._now += time.perf_counter() - began
        return call

    def next_frame(self) -> None:
        self.frames.append(self._now)
        self._now = 0.0


def frames_of(video: str, decode: Spent) -> Iterator[Any]:
    """Every frame, through OpenCV."""
    import cv2

    capture = cv2.VideoCapture(video)
    read = decode.timed(capture.read)
    while True:
        good, image = read()
        if not good:
            return
        yield image


def letterbox(image: Any, size: int) -> Any:
    """What every tutorial does: resize, pad with 114, one blob."""
    import cv2

    height, width = image.shape[:2]
    ratio = min(size / width, size / height)
    inner = cv2.resize(image, (round(width * ratio), round(height * ratio)))
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    padded = cv2.copyMakeBorder(inner, top, size - inner.shape[0] - top, left, size - inner.shape[1] - left, cv2.BORDER_CONSTANT,
                                value=(114, 114, 114))
    return cv2.dnn.blobFromImage(padded, 1 / 255.0, swapRB=True)


def boxes_of(output: Any) -> Any:
    """(1, 4 + C, N) to what survives score and NMS, with numpy and OpenCV."""
    import cv2
    import numpy as np

    rows = output[0].T
    scores = rows[:, 4:]
    labels = scores.argmax(axis=1)
    best = scores[np.arange(len(rows)), labels]
    kept = best > SCORE
    rows, best, labels = rows[kept], best[kept], labels[kept]
    if not len(rows):
        return []
    boxes = rows[:, :4].copy()
    boxes[:, :2] -= boxes[:, 2:] / 2
    return cv2.dnn.NMSBoxesBatched(boxes.tolist(), best.tolist(), labels.tolist(), SCORE, IOU)


def onnxruntime_alone(model: str, threads: int, size: int, session_time: Spent) -> Callable[[Any], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    run = session_time.timed(lambda blob: session.run(None, {name: blob})[0])
    return lambda image: boxes_of(run(letterbox(image, size)))


def openvino_runtime(model: str, threads: int, size: int, session_time: Spent) -> Callable[[Any], Any]:
    """As its guide says: uint8 NHWC in, colour, scale and layout folded into the graph."""
    import cv2
    import numpy as np
    import openvino as ov
    from openvino.preprocess import ColorFormat, PrePostProcessor

    core = ov.Core()
    steps = PrePostProcessor(core.read_model(model))
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(ColorFormat.BGR)
    steps.input().preprocess().convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
    steps.input().model().set_layout(ov.Layout("NCHW"))
    compiled = core.compile_model(steps.build(), "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
                                                         "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    run = session_time.timed(lambda tensor: request.infer([tensor], share_inputs=True))

    def answer(image: Any) -> Any:
        height, width = image.shape[:2]
        ratio = min(size / width, size / height)
        inner = cv2.resize(image, (round(width * ratio), round(height * ratio)))
        top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
        padded = cv2.copyMakeBorder(inner, top, size - inner.shape[0] - top, left, size - inner.shape[1] - left, cv2.BORDER_CONSTANT,
                                    value=(114, 114, 114))
        return boxes_of(next(iter(run(padded[np.newaxis]).values())))

    return answer


def bare_onnxruntime(model: str, threads: int, size: int, session_time: Spent) -> Callable[[Any], Any]:
    """The floor: decode, then the session on a tensor that is always the same."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tensor = {session.get_inputs()[0].name: np.zeros((1, 3, size, size), np.float32)}
    run = session_time.timed(lambda: session.run(None, tensor))
    return lambda _image: run()


def bare_openvino(model: str, threads: int, size: int, session_time: Spent) -> Callable[[Any], Any]:
    """The floor, on OpenVINO."""
    import numpy as np
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
                                                      "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(np.zeros((1, 3, size, size), np.float32), shared_memory=True))
    run = session_time.timed(request.infer)
    return lambda _image: run()


def ultralytics_yolo(model: str, threads: int, size: int, session_time: Spent) -> Callable[[Any], Any]:
    import onnxruntime as ort
    import torch

    torch.set_num_threads(threads)
    _time_sessions(ort, threads, session_time)
    from ultralytics import YOLO

    yolo = YOLO(model, task="detect")
    return lambda image: yolo.predict(image, imgsz=size, rect=False, conf=SCORE, iou=IOU, verbose=False)


def inference_models(model: str, threads: int, size: int, session_time: Spent) -> Callable[[Any], Any]:
    import onnxruntime as ort
    import torch

    torch.set_num_threads(threads)
    _time_sessions(ort, threads, session_time)
    from inference_models.models.yolov8.yolov8_object_detection_onnx import YOLOv8ForObjectDetectionOnnx

    folder = Path(tempfile.mkdtemp(prefix="jetfleet-peer-"))
    (folder / "weights.onnx").symlink_to(Path(model).resolve())
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(80)))
    (folder / "inference_config.json").write_text(json.dumps({
        "network_input": {"training_input_size": {"height": size, "width": size}, "dynamic_spatial_size_supported": False,
                          "color_mode": "rgb", "resize_mode": "letterbox", "padding_value": 114, "input_channels": 3,
                          "scaling_factor": 255, "normalization": None},
        "forward_pass": {"static_batch_size": 1},
        "post_processing": {"type": "nms", "fused": False}}))
    loaded = YOLOv8ForObjectDetectionOnnx.from_pretrained(str(folder), onnx_execution_providers=["CPUExecutionProvider"],
                                                          device=torch.device("cpu"))
    return lambda image: loaded(image, confidence=SCORE, iou_threshold=IOU)


def _time_sessions(ort: Any, threads: int, session_time: Spent) -> None:
    """Every session made from now on has `threads` threads, and its runs are timed."""
    made: Any = ort.InferenceSession

    class Timed(made):  # type: ignore[misc]
        def __init__(self, path_or_bytes: Any, sess_options: Any = None, **kwargs: Any) -> None:
            options = sess_options or ort.SessionOptions()
            options.intra_op_num_threads = threads
            super().__init__(path_or_bytes, options, **kwargs)

        def run(self, *args: Any, **kwargs: Any) -> Any:
            return session_time.timed(super().run)(*args, **kwargs)

        def run_with_iobinding(self, *args: Any, **kwargs: Any) -> Any:
            return session_time.timed(super().run_with_iobinding)(*args, **kwargs)

    ort.InferenceSession = Timed


PEERS = {
    "bare-onnxruntime": bare_onnxruntime, "bare-openvino": bare_openvino, "onnxruntime": onnxruntime_alone, "openvino": openvino_runtime,
    "ultralytics": ultralytics_yolo, "inference-models": inference_models,
}


def main() -> None:
    peer, model, video, threads, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    shown, sys.stdout = sys.stdout, sys.stderr  # peers print on their own
    decode, session = Spent(), Spent()
    answer = PEERS[peer](model, threads, size, session)
    done: list[float] = []
    cpu: list[float] = []
    for image in frames_of(video, decode):
        answer(image)
        done.append(time.perf_counter())
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu.append(usage.ru_utime + usage.ru_stime)
        decode.next_frame()
        session.next_frame()
    print(json.dumps({"done": done, "cpu": cpu, "decode": decode.frames, "session": session.frames}), file=shown, flush=True)
    os._exit(0)  # some peers leave threads behind


if __name__ == "__main__":
    main()
