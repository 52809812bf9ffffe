"""What the host asks of the process that holds TensorRT for RTX, and what it says."""

from __future__ import annotations

from jetfleet_contract.messages import Message

MAX_RESULT_BYTES = 1 << 20
MAX_LINE_BYTES = 4096
MAGIC = b"vtrt"
"""The first bytes of an engine of TensorRT for RTX 1.7."""


class Span(Message, frozen=True):
    """The smallest, usual and largest size of one input that has free axes."""

    name: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


class RtxJob(Message, frozen=True):
    """Parse `model`; with an `engine` path also build it for `sm` and write it there. `libraries` is the folder of the wheels, `memory_mb`
    the limit of the process's address space."""

    model: str
    libraries: str
    engine: str = ""
    sm: int = 0
    spans: tuple[Span, ...] = ()
    memory_mb: int = 0


class Fault(Message, frozen=True):
    """One reason why an engine cannot be built. `node` is the node's name, or ``#7`` for the eighth of the graph that has none."""

    code: str
    what: str
    node: str = ""
    operator: str = ""
    remedy: str = ""


class RtxResult(Message, frozen=True):
    """What came out. With faults or a `code` there is no engine; `digest` is ``sha256:`` and hex."""

    version: str = ""
    faults: tuple[Fault, ...] = ()
    code: str = ""
    detail: str = ""
    size: int = 0
    digest: str = ""


class Progress(Message, frozen=True):
    """A line that the process prints while it builds; `percent` 0..100 never falls."""

    phase: str
    percent: float
