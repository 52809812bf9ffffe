"""What a decode on the GPU leaves for the host: one record an image, of fixed size, and how it is read.

`kept` slots hold the survivors, best first, in tensor pixels; what lies behind them is of earlier frames and means nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from jetfleet_contract.decode_arguments import HEADER_BYTES, SLOT_BYTES, HeadRules
from jetfleet_contract.kernels import HeadType

Records = npt.NDArray[np.void]
SLOT = np.dtype([("box", "<f4", 4), ("score", "<f4"), ("class", "<i4"), ("anchor", "<i4"), ("spare", "<i4")])
HEAD_TYPE_OF: dict[str, HeadType] = {"float32": "f32", "float16": "f16"}
_FIELDS = ("kept", "considered", "passed", "slots", "rest")


class OutputPort(Protocol):
    """One of a model's outputs; `dtype` as numpy names it."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


class HeadDecode(NamedTuple):
    """That the output of this name can be decoded on the GPU, and how. Whoever does so gives the task records of `record_type` in the place
    of that output, and the other outputs as they are."""

    output: str
    rules: HeadRules


def record_type(rules: HeadRules) -> np.dtype[Any]:
    """One image's output as the kernels write it: `kept` survivors, candidates that were `considered` by suppression, those that `passed`
    the threshold (more than considered: some were cut), `slots` (most,) of `SLOT`, `rest` (most, extra) float32."""
    return np.dtype({"names": _FIELDS, "offsets": (0, 4, 8, HEADER_BYTES, HEADER_BYTES + rules.most * SLOT_BYTES),
                     "formats": ("<i4", "<i4", "<i4", (SLOT, (rules.most,)), ("<f4", (rules.most, rules.extra))),
                     "itemsize": rules.image_output})


def is_decoded(output: npt.NDArray[Any]) -> bool:
    """Whether an output holds records of a decode, not a model's numbers."""
    return output.dtype.names == _FIELDS
