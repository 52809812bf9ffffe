"""An ONNX file becomes a plan, with the TensorRT that is here: 10 or 11, or TensorRT for RTX.

The network is strongly typed: the file decides the precision (fp16 weights, or Q/DQ pairs for int8), so what was scored is what runs.
TensorRT 10 is told so by a flag; 11 knows nothing else, and where it has the flag no more none is set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jetfleet_agent.durable import write_file
from jetfleet_agent.pipeline.backends import check_input_shape
from jetfleet_agent.pipeline.backends.tensorrt_plan import as_declared
from jetfleet_contract.delegations import MAX_TIMING_BYTES
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure, StorageError

log = logging.getLogger(__name__)

MAX_NAMED = 3


def build_plan(trt: Any, logger: Any, path: Path, shape: tuple[int, ...], *, exact: bool, dla_core: int | None = None,
               timing: Path | None = None) -> bytes:
    """The serialized plan of `path` for inputs of `shape`.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`. logger: of that module; its `reason` is what it heard last.
        exact: float32 is computed in float32 (TF32 keeps 10 bits of mantissa).
        dla_core: build for that DLA core, with the GPU for what it cannot run.
        timing: the timing cache of this class of boards; read when it is there, written when the build is done. TensorRT only: TensorRT
            for RTX has none, and asking it for one needs a GPU.

    Raises:
        IncompatibleError: `backend.input`, `backend.dla`, and `backend.operator` naming the node that TensorRT does not know.
        RuntimeFailure: `backend.load`.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise _unparsed(trt, parser, path)
    if network.num_inputs != 1:
        names = ", ".join(network.get_input(index).name for index in range(network.num_inputs))
        raise IncompatibleError("backend.input", f"{path.name} has {network.num_inputs} inputs ({names}), it needs one image")
    source = network.get_input(0)
    shape = as_declared(list(source.shape), shape)
    check_input_shape(f"{path.name}'s input {source.name!r}", list(source.shape), shape)
    config = builder.create_builder_config()
    if exact:
        config.clear_flag(trt.BuilderFlag.TF32)
    if dla_core is not None:
        source.shape = shape  # a DLA takes fixed shapes only
        _use_dla(trt, builder, config, dla_core, path)
        _check_dla(config, network, path)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    cache = _attach(trt, config, timing) if timing is not None else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = logger.reason or "it gives no reason"
        raise RuntimeFailure("backend.load", f"TensorRT {trt.__version__} cannot build {path.name}: {reason}", where=str(path))
    if cache is not None and timing is not None:
        _keep(timing, bytes(cache.serialize()))
    return bytes(plan)


def _flags(trt: Any) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _unparsed(trt: Any, parser: Any, path: Path) -> RuntimeFailure | IncompatibleError:
    """The parser's errors with their nodes, the first few of them."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    named = [f"node {error.node_name() or error.node()} ({error.node_operator()})" for error in errors if error.node_operator()]
    reasons = "; ".join(" ".join(error.desc().split())[:150] for error in errors[:MAX_NAMED])
    if named:
        listed = ", ".join(list(dict.fromkeys(named))[:MAX_NAMED])
        return IncompatibleError("backend.operator", f"TensorRT {trt.__version__} cannot take {listed} of {path.name}: {reasons[:300]}",
                                 where=str(path), remedy="export the model without this operator, or let another backend run it")
    return RuntimeFailure("backend.load", f"TensorRT {trt.__version__} cannot parse {path.name}: {reasons[:300] or 'it gives no reason'}",
                          where=str(path))


def _use_dla(trt: Any, builder: Any, config: Any, core: int, path: Path) -> None:
    if core >= builder.num_DLA_cores:
        raise IncompatibleError("backend.dla", f"TensorRT {trt.__version__} sees {builder.num_DLA_cores} DLA cores here: {path.name} "
                                               f"cannot run on core {core}",
                                remedy="run it on the GPU; TensorRT 11.0 to 11.4.0 has no DLA, nor has Orin Nano")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _check_dla(config: Any, network: Any, path: Path) -> None:
    """Tell which layers are left to the GPU; a model whose every layer is, is none for a DLA."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    on_gpu = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    named = ", ".join(on_gpu[:MAX_NAMED]) + (f" and {len(on_gpu) - MAX_NAMED} more" if len(on_gpu) > MAX_NAMED else "")
    if layers and len(on_gpu) == len(layers):
        raise IncompatibleError("backend.dla", f"no layer of {path.name} runs on a DLA core: {named}", where=str(path),
                                remedy="run it on the GPU; a DLA takes convolutions, pooling and activations in fp16 or int8")
    log.info("%s: %d of %d layers run on the DLA, the GPU runs %s", path.name, len(layers) - len(on_gpu), len(layers), named or "none")


def _attach(trt: Any, config: Any, path: Path) -> Any:
    """The timing cache of `path`, or a fresh one: where TensorRT refuses it (another version, another GPU), and where it grew out of
    bounds, by kernels that no model has any more."""
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    try:
        with path.open("rb") as file:
            kept = file.read(MAX_TIMING_BYTES + 1)
    except FileNotFoundError:
        kept = b""
    cache = config.create_timing_cache(kept if len(kept) <= MAX_TIMING_BYTES else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _keep(timing: Path, data: bytes) -> None:
    """A full disk costs the next build some minutes, and this one nothing."""
    try:
        write_file(timing, data)
    except StorageError as error:
        log.warning("the timing cache is not kept: %s", error.what)
