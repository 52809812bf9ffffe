"""From torch to ONNX with pinned options: static shape, weights inside, nothing of this machine in the file, same model -> same bytes.

Modules and exported programs go through torch.export, which traces the whole graph or says what stopped it. TorchScript has no such road
and goes through the older exporter.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError
from jetfleet_host.compress.equality import TOLERANCE, check_equal, outputs_of
from jetfleet_host.compress.handles import serialized
from jetfleet_host.compress.recipe import Shape

from .factories import said

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

# The first that torch.export's translator writes by itself; parsers of TensorRT 10.3 read up to 21.
OPSET = 18
# The older exporter's own common ground, as `preparing.OPSET`.
SCRIPT_OPSET = 17
INPUT = "image"
# A value in the middle between two steps may fall to either side in another runtime, and the next layer passes that on.
QUANTIZED_TOLERANCE = 0.1
_OP = re.compile(r"op='([\w.:]+)'|[Oo]perator '?((?:aten|prims|torchvision|[a-z_]+)::[\w.]+)|(\baten\.[\w.]+)")
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def export_module(model: Module, shape: Shape) -> bytes:
    """The module, in evaluation mode on the CPU, as an ONNX file for one batch of `shape` (1, C, H, W).

    Raises:
        InputError: `build.trace` when its graph cannot be captured, with the line that stopped it; `build.run` when it does not run.
        RuntimeFailure: `build.not-equal` when the file answers otherwise than the module.
        IncompatibleError: `model.operator`, naming the operation that ONNX has no counterpart for.
    """

    model = model.cpu().eval()
    return _translated(model, model, shape)


def export_program(program: ExportedProgram, shape: Shape) -> bytes:
    """A program of torch.export as an ONNX file. Raises as `export_module`."""
    return _translated(program, program.module(), shape)


def _translated(subject: Module | ExportedProgram, runs: Module, shape: Shape) -> bytes:
    import torch

    sample, answers = _run(runs, shape)
    with _quiet():
        try:
            program = torch.onnx.export(subject, (sample,), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                                        input_names=[INPUT])
        except Exception as error:
            raise _refused(error) from error
        if program is None:
            raise InputError("build.trace", "the exporter gave no model", remedy="export it to ONNX yourself and give the file")
        proto = program.model_proto
    return _checked(proto, sample, answers)


def export_script(model: Any, shape: Shape) -> bytes:
    """A TorchScript module as an ONNX file. Raises as `export_module`."""
    import onnx
    import torch

    model = model.cpu().eval()
    sample, answers = _run(model, shape)
    written = io.BytesIO()
    with _quiet():
        try:
            torch.onnx.export(model, (sample,), written, dynamo=False, opset_version=SCRIPT_OPSET, input_names=[INPUT])
        except Exception as error:
            raise _refused(error) from error
    return _checked(onnx.load_model_from_string(written.getvalue()), sample, answers)


def _run(model: Any, shape: Shape) -> tuple[Tensor, list[NDArray[Any]]]:
    """A sample of noise and what the model answers to it: all zeros would hide a path that was left out."""
    import torch

    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            answers = model(sample.clone())
    except Exception as error:
        raise InputError("build.run", f"the model does not run on an input of {'x'.join(map(str, shape))}: {said(error)}",
                         remedy="give the model's own shape with --shape") from error
    return sample, [value.numpy() for value in _leaves(answers)]


def _leaves(answers: Any) -> list[Tensor]:
    """The tensors of what a module gives, in order, which is the order of the file's outputs."""
    import torch

    if isinstance(answers, torch.Tensor):
        return [answers]
    parts = answers.values() if isinstance(answers, dict) else answers if isinstance(answers, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _leaves(part)]


def _checked(proto: ModelProto, sample: Tensor, answers: list[NDArray[Any]]) -> bytes:
    """The file's bytes, when it answers as the module did. RuntimeFailure `build.not-equal`."""
    data = _stripped(proto)
    found = outputs_of(proto, [sample.numpy()])
    quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    check_equal("export", [answers], found, QUANTIZED_TOLERANCE if quantized else TOLERANCE)
    return data


def _refused(error: BaseException) -> JetfleetError:
    """What stopped the exporter: the innermost cause knows, its wrappers only advise."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 20:
        causes.append(cause)
    texts = [re.sub(r"\x1b\[[0-9;]*m", "", str(entry)) for entry in causes]
    place = next((found for text in reversed(texts) if (found := _PLACE.findall(text))), [])
    where = f"{place[-1][0]}:{place[-1][1]} in {place[-1][2]}" if place else ""
    op = next((next(filter(None, match.groups())) for text in reversed(texts) if (match := _OP.search(text))), "")
    known = " ".join(texts[-1].split())[:240]
    if op and any(word in text for text in texts for word in ("No ONNX function", "No decompositions", "ONNX export", "onnx opset")):
        return IncompatibleError("model.operator", f"the operation {op} has no counterpart in ONNX: {known}", where=where,
                                 remedy="replace it in the model by operations that ONNX has")
    named = f" at the operation {op}" if op else ""
    return InputError("build.trace", f"the model's graph cannot be traced{named}: {known}", where=where,
                      remedy="write forward() without branches on tensor values and without calls that leave torch, or give an ONNX file")


def _stripped(model: ModelProto) -> bytes:
    """Without stack traces, which hold this machine's paths, and other notes of the exporter."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    graph.name = "jetfleet"
    return serialized(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of packages that are not there, of its own future, and its prints of whole graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
