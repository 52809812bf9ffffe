"""One peer quantizes one model after training, alone in its process and its own environment; imports nothing of ours.

    python benchmarks/ptq_peer.py PEER MODEL.onnx CALIBRATION.npy OUT.onnx

PEER is ort-uint8, ort-int8, ort-entropy, nncf, aimet or olive. CALIBRATION.npy is (N, C, H, W) float32, pre-processed. Prints one JSON
object: seconds, and the peer's version. Each is used as its own documentation advises for a CNN on an x86 CPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(peer: str, model: str, calibration: str, out: str) -> None:
    import numpy as np

    images = np.load(calibration)
    began = time.perf_counter()
    PEERS[peer](model, images, out)
    packages = {"nncf": "nncf", "aimet": "aimet-onnx", "olive": "olive-ai"}
    print(json.dumps({"peer": peer, "version": version(packages.get(peer, "onnxruntime")), "seconds": time.perf_counter() - began,
                      "bytes": Path(out).stat().st_size}))


def ort_uint8(model: str, images: Any, out: str) -> None:
    """What the tool's own docstring advises for x86: uint8 activations, int8 weights a channel."""
    _ort(model, images, out, "QUInt8", "MinMax")


def ort_int8(model: str, images: Any, out: str) -> None:
    """Symmetric int8 on both sides, as TensorRT wants it."""
    _ort(model, images, out, "QInt8", "MinMax", ActivationSymmetric=True)


def ort_entropy(model: str, images: Any, out: str) -> None:
    _ort(model, images, out, "QUInt8", "Entropy")


def _ort(model: str, images: Any, out: str, activations: str, method: str, **extra: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows: Iterator[Any] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self._rows, None)
            return None if row is None else {name: row[None]}

    name = _input_of(model)
    ready = f"{out}.pre.onnx"
    quant_pre_process(model, ready, skip_symbolic_shape=True)
    quantize_static(ready, out, Reader(), quant_format=QuantFormat.QDQ, activation_type=getattr(QuantType, activations),
                    weight_type=QuantType.QInt8, per_channel=True, calibrate_method=getattr(CalibrationMethod, method), extra_options=extra)
    Path(ready).unlink()


def nncf(model: str, images: Any, out: str) -> None:
    """`nncf.quantize` with the mixed preset, which its guide advises for networks with other activations than ReLU; the default elsewhere
    is the same for ReLU."""
    import nncf as library
    import onnx

    name = _input_of(model)
    data = library.Dataset(list(images), lambda row: {name: row[None]})
    quantized = library.quantize(onnx.load(model), data, preset=library.QuantizationPreset.MIXED, subset_size=len(images))
    onnx.save(quantized, out)


def aimet(model: str, images: Any, out: str) -> None:
    """Cross-layer equalization, quantization simulation, Q/DQ export."""
    import onnx
    from aimet_onnx.cross_layer_equalization import equalize_model
    from aimet_onnx.quantsim import QuantizationSimModel

    name = _input_of(model)
    loaded = onnx.load(model)
    equalize_model(loaded)
    sim = QuantizationSimModel(loaded, param_type="int8", activation_type="int8")
    sim.compute_encodings([{name: row[None]} for row in images])
    onnx.save(sim.to_onnx_qdq(), out)


def olive(model: str, images: Any, out: str) -> None:
    """The pass OnnxStaticQuantization with uint8 activations, which its table names for x86."""
    import tempfile

    import numpy as np
    from olive.workflows import run

    name = _input_of(model)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npy"
        np.save(rows, images)
        script = Path(folder) / "script.py"
        script.write_text(_OLIVE_SCRIPT.format(rows=str(rows), name=name))
        run({
            "input_model": {"type": "ONNXModel", "model_path": model},
            "data_configs": [{"name": "rows", "user_script": str(script), "load_dataset_config": {"type": "rows_of_file"},
                              "dataloader_config": {"batch_size": 1}, "post_process_data_config": {"type": "skip_post_process"},
                              "pre_process_data_config": {"type": "skip_pre_process"}}],
            "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "rows", "activation_type": "uint8",
                                    "precision": "int8", "per_channel": True, "quant_format": "QDQ"}},
            "output_dir": f"{folder}/out", "cache_dir": f"{folder}/cache", "log_severity_level": 3,
        })
        found = sorted(Path(folder, "out").rglob("*.onnx"))
        Path(out).write_bytes(found[0].read_bytes())


_OLIVE_SCRIPT = '''
import numpy as np
from olive.data.registry import Registry


class Rows:
    def __init__(self):
        self.rows = np.load({rows!r})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {{{name!r}: self.rows[index]}}, 0


@Registry.register_dataset()
def rows_of_file(**_):
    return Rows()
'''


def _input_of(model: str) -> str:
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    weights = {item.name for item in loaded.graph.initializer}
    return str(next(value.name for value in loaded.graph.input if value.name not in weights))


PEERS: dict[str, Callable[[str, Any, str], None]] = {
    "ort-uint8": ort_uint8, "ort-int8": ort_int8, "ort-entropy": ort_entropy, "nncf": nncf, "aimet": aimet, "olive": olive,
}

if __name__ == "__main__":
    main(*sys.argv[1:5])
