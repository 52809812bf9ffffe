"""TensorRT for RTX: engines of Turing and newer desktop GPUs, built ahead without a GPU and finished on the machine that runs them.

The kernels that the machine finishes are kept for the life of the process in one runtime cache, so that the second lane's context needs no
compiling. Whether an engine fits is asked of `get_engine_validity` before it is loaded.
"""

from __future__ import annotations

from typing import Any

from jetfleet_agent.pipeline.backends.tensorrt import TensorRt


class TensorRtRtx(TensorRt):
    """As TensorRT, over the module `tensorrt_rtx`."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    timed = False
    remedy = "pip install tensorrt-rtx-cu12 or tensorrt-rtx-cu13, as the driver's CUDA is, on an x86 machine with an RTX GPU"

    _settings: Any = None

    def _context(self) -> Any:
        if self._settings is None:
            self._settings = self._engine.create_runtime_config()
            self._settings.set_runtime_cache(self._settings.create_runtime_cache())
        return self._engine.create_execution_context(self._settings)

    def _unload(self) -> None:
        self._settings = None
        super()._unload()
