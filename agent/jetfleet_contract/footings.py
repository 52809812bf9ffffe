"""What an engine would be bound to on a machine: the runtime's full version and the processor that it compiles for. Pure."""

from __future__ import annotations

from .engines import ENGINE_BACKENDS, Footing
from .messages import Capability

_ISA_MATTERS = ("openvino",)


def footing_of(capability: Capability, backend: str) -> Footing | None:
    """The footing of engines of `backend` here; None when it has none, is not usable there, or does not tell its full version.

    OpenVINO compiles for the instruction sets and the number of cores that it sees. What GPUs are bound to besides, a runtime for them
    must tell; as long as it does not, no engine is shared for it.
    """
    info = next((one for one in capability.backends if one.name == backend), None)
    if backend not in ENGINE_BACKENDS or info is None or info.missing or not info.build or backend not in _ISA_MATTERS:
        return None
    return Footing(backend, info.build, capability.arch, capability.cpu, tuple(sorted(capability.isa)), cores=capability.cores)
