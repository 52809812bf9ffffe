"""What the launches of the decoding kernels are told: the head's shape, the limits, and where everything lies.

A head is what a YOLO export gives for an image before suppression, in one of three layouts (`yolo_outputs` of the agent's tasks has them);
heads of a batch lie one after the other. `HeadRules` (48 bytes) is laid out as `Rules` in `jetfleet_host/kernels/decode.cu`, one image's
output as `HEADER_BYTES` of counts, `most` slots of `SLOT_BYTES`, then `most` rows of `extra` float32, filled up to 16 bytes.
"""

from __future__ import annotations

import struct

import msgspec

from .errors import InputError
from .kernel_arguments import single
from .kernels import DECODE_STEPS, HeadLayout, HeadStep, HeadType, HeadVariant

# What goes into suppression at most: the best scores, of equal ones those of the lower anchors. A broken model that is sure of everything
# costs no more than this.
MAX_CANDIDATES = 2000
MAX_IMAGES = 64
MAX_ANCHORS = 1 << 20
MAX_ROW = 1 << 16
MAX_HEAD_NUMBERS = 1 << 31
HEADER_BYTES = 16
SLOT_BYTES = 32
RULES_BYTES = 48
WORD = 64  # candidates a word of the table of overlaps has
SCAN_THREADS = 128
COMPARE_THREADS = 128
KEEP_THREADS = 64
_KEY_BYTES = 8
_RULES = struct.Struct("<8i2f2i")
_FIXED = {"v5": 5, "v8": 4, "v8-rows": 4}  # the box, and v5's objectness

Grid = tuple[int, int, int]


class HeadRules(msgspec.Struct, frozen=True):
    """One decode of `images` heads of `anchors` candidates each; made by `head_rules`, which checks it.

    `threshold` and `iou` are float32 already. `extra` numbers a candidate (mask coefficients, key points) go along with the survivors.
    """

    layout: HeadLayout
    type: HeadType
    images: int
    anchors: int
    classes: int
    extra: int
    threshold: float
    iou: float
    most: int
    agnostic: bool

    @property
    def row(self) -> int:
        """Numbers a candidate."""
        return _FIXED[self.layout] + self.classes + self.extra

    @property
    def shape(self) -> tuple[int, int, int]:
        """The head's, of all images."""
        return (self.images, self.row, self.anchors) if self.layout == "v8" else (self.images, self.anchors, self.row)

    @property
    def kernels(self) -> frozenset[str]:
        """What a cubin must have for this decode."""
        steps: tuple[HeadStep, ...] = ("scan", "gather") if self.extra else ("scan",)
        return frozenset((*DECODE_STEPS, *(HeadVariant(step, self.layout, self.type).name for step in steps)))

    @property
    def head_bytes(self) -> int:
        """What the kernels read at most."""
        return self.images * self.row * self.anchors * (4 if self.type == "f32" else 2)

    @property
    def slots(self) -> int:
        """Candidates that can go into suppression."""
        return min(self.anchors, MAX_CANDIDATES)

    @property
    def words(self) -> int:
        """Words of a candidate's row in the table of overlaps."""
        return -(-self.slots // WORD)

    @property
    def image_workspace(self) -> int:
        """Bytes of scratch memory an image: the count, keys and candidates as they are found, candidates in order, their overlaps."""
        found = 16 + _aligned(self.anchors * _KEY_BYTES) + self.anchors * SLOT_BYTES
        return _aligned(found + self.slots * SLOT_BYTES + self.slots * self.words * WORD // 8)

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one decode, on the GPU; nothing of it needs to be set or kept."""
        return self.images * self.image_workspace

    @property
    def image_output(self) -> int:
        """Bytes of one image's output."""
        return _aligned(HEADER_BYTES + self.most * (SLOT_BYTES + 4 * self.extra))

    @property
    def output_bytes(self) -> int:
        """What is copied to the host."""
        return self.images * self.image_output

    def pack(self) -> bytes:
        """The kernels' `Rules`."""
        return _RULES.pack(self.anchors, self.classes, self.extra, self.slots, self.words, self.most, int(self.agnostic), 0,
                           self.threshold, self.iou, self.image_workspace, self.image_output)

    @property
    def scan_grid(self) -> Grid:
        """A thread an anchor, in blocks of `SCAN_THREADS`; ranking takes the same."""
        return -(-self.anchors // SCAN_THREADS), self.images, 1

    @property
    def compare_grid(self) -> Grid:
        """A thread a word of the table, in blocks of `COMPARE_THREADS` rows."""
        return self.words, -(-self.slots // COMPARE_THREADS), self.images

    @property
    def image_grid(self) -> Grid:
        """A block an image: clearing with 1 thread, keeping with `KEEP_THREADS`."""
        return 1, self.images, 1

    @property
    def gather_grid(self) -> Grid:
        """A thread a number that goes along, in blocks of `SCAN_THREADS`."""
        return -(-self.most * self.extra // SCAN_THREADS), self.images, 1


def head_rules(layout: HeadLayout, kind: HeadType, shape: tuple[int, ...], *, classes: int, extra: int = 0, threshold: float = 0.25,
               iou: float = 0.45, most: int = 300, agnostic: bool = False) -> HeadRules:
    """The decode of heads of that shape, (images, row, anchors) for ``v8`` and (images, anchors, row) for the others.

    Args:
        threshold: 0 ... 1; a candidate scores over it.
        iou: 0 ... 1; over it, the lesser of two boxes goes.
        most: survivors an image, at least 1; more than can be candidates are not made room for.
        agnostic: suppress across classes.

    Raises:
        InputError: `decode.shape` when the shape is not one of that layout, or too large; `decode.limit` for a limit out of range.
    """
    if len(shape) != 3 or min(shape) < 1 or classes < 1 or extra < 0:
        raise InputError("decode.shape", f"a head of shape {list(shape)} with {classes} classes is none of layout {layout}")
    images, anchors, row = (shape[0], shape[2], shape[1]) if layout == "v8" else shape
    if row != _FIXED[layout] + classes + extra:
        raise InputError("decode.shape", f"a candidate of {row} numbers is none of layout {layout} with {classes} classes and {extra} more")
    if images > MAX_IMAGES or anchors > MAX_ANCHORS or row > MAX_ROW or images * anchors * row > MAX_HEAD_NUMBERS:
        raise InputError("decode.shape", f"a head of shape {list(shape)} is too large to be decoded on the GPU",
                         remedy=f"at most {MAX_IMAGES} images, {MAX_ANCHORS} anchors and {MAX_ROW} numbers each")
    if not 0.0 <= threshold <= 1.0 or not 0.0 <= iou <= 1.0 or most < 1:
        raise InputError("decode.limit", f"threshold {threshold} and iou {iou} must be 0 to 1, the most detections {most} at least 1")
    return HeadRules(layout, kind, images, anchors, classes, extra, single(threshold), single(iou),
                     min(most, anchors, MAX_CANDIDATES), agnostic)


def _aligned(size: int) -> int:
    return -(-size // 16) * 16
