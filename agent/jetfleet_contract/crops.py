"""Crops on their way to the host, and its answers: what travels, and its bounds. Pure.

    crop      board -> host   d/{device}/crop     signed by the board; what it shows and where is inside a box sealed to the host's key
    answer    host -> board   d/{device}/answer   signed by a command key: the host's detections, or that it has the crop

A crop's number is the board's own and is never used twice, so an old crop or an old answer is known as one. A box is bound (HPKE's info) to
its board, its app and its number.
"""

from __future__ import annotations

import msgspec

from .bundle import TaskSpec
from .errors import MalformedError
from .messages import Message, decode, encode
from .predictions import Detection, is_bounded
from .sealing import KEY_BYTES, TAG_BYTES
from .topics import check_blob, check_name

PURPOSE = "crop"
MAX_NUMBER = 1 << 53
NUMBERS_PER_SESSION = 1_000_000
MAX_JPEG_BYTES = 48 * 1024
CROP_BYTES = 32 * 1024
"""What a board makes its pictures fit into: a message of them passes where 64 KB are the limit."""
MAX_NOTE_BYTES = 16 * 1024
MAX_CROP_BYTES = 112 * 1024
"""Of the whole message: box and note in base64, with its signature; less than the 128 KB that the narrowest brokers take."""
MAX_SIDE = 8192
MAX_PIXELS = 1 << 24
MAX_EDGE = 64


class Crop(Message, frozen=True):
    """One sealed crop. `id` grows with every crop of the board, `at` is the board's wall clock. `answer`: the board waits for an answer;
    `keep`: the host may keep the picture."""

    device: str
    id: int
    app: str
    at: float
    answer: bool
    keep: bool
    enc: bytes
    box: bytes


class Note(Message, frozen=True):
    """What a box says before its JPEG. `canvas` is the size (width, height) of the picture that the board's model was shown, `window` the
    piece of it that the JPEG shows (x0, y0, x1, y1), maybe in fewer pixels. `edge` is what the board said there in the canvas's pixels, the
    uncertain one first. `frame` is the source's frame number."""

    app: str
    source: str
    frame: int
    bundle: str
    version: str
    candidate: str
    canvas: tuple[int, int]
    window: tuple[int, int, int, int]
    edge: tuple[Detection, ...]


class Answer(Message, frozen=True):
    """The host's word on crop `id` of `device`: `detections` in the canvas's pixels, by `model`. `code` is empty, or says why there are
    none: `crop.kept` (nobody asked), `crop.model`, `crop.busy`, `crop.refused`."""

    device: str
    id: int
    model: str = ""
    detections: tuple[Detection, ...] = ()
    code: str = ""


def pack(note: Note, jpeg: bytes) -> bytes:
    """What is sealed: the note's length in two bytes, the note's JSON, the JPEG. MalformedError `crop.large`."""
    head = encode(note)
    if len(head) > MAX_NOTE_BYTES or not 0 < len(jpeg) <= MAX_JPEG_BYTES:
        raise MalformedError("crop.large", f"a note of {len(head)} and a picture of {len(jpeg)} bytes are no crop")
    return len(head).to_bytes(2, "big") + head + jpeg


def unpack(data: bytes) -> tuple[Note, bytes]:
    """Note and JPEG, within bounds; the JPEG's own header was read, nothing was decoded.

    Raises:
        MalformedError: `crop.bad`, `crop.large`, `crop.picture`, `name.bad`, `blob.bad`, `message.*`.
    """
    length = int.from_bytes(data[:2], "big")
    if len(data) < 2 or not 0 < length <= MAX_NOTE_BYTES or len(data) <= 2 + length:
        raise MalformedError("crop.bad", f"{len(data)} bytes are no note and picture")
    note, jpeg = check_note(decode(data[2:2 + length], Note, limit=MAX_NOTE_BYTES)), data[2 + length:]
    if len(jpeg) > MAX_JPEG_BYTES:
        raise MalformedError("crop.large", f"a picture of {len(jpeg)} bytes is over the limit of {MAX_JPEG_BYTES}")
    width, height = jpeg_size(jpeg)
    if width > note.window[2] - note.window[0] or height > note.window[3] - note.window[1]:
        raise MalformedError("crop.picture", f"a picture of {width}x{height} shows more than its window {note.window}")
    return note, jpeg


def check_note(note: Note) -> Note:
    """Names, sizes and numbers within bounds. Raises as `unpack`."""
    check_name("app", note.app)
    check_name("source", note.source)
    check_blob(note.bundle)
    width, height = note.canvas
    x0, y0, x1, y1 = note.window
    sizes = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS
    if not sizes or not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise MalformedError("crop.bad", f"window {note.window} does not fit a picture of {note.canvas}")
    words = (note.version, note.candidate)
    if not 0 <= note.frame <= MAX_NUMBER or len(note.edge) > MAX_EDGE or any(len(w) > 200 or not w.isprintable() for w in words):
        raise MalformedError("crop.bad", "a number or a word of the note is out of bounds")
    check_detections(note.edge)
    return note


def check_crop(crop: Crop, device: str) -> Crop:
    """A crop of `device` whose numbers fit; the box is still closed.

    Raises:
        MalformedError: `crop.device`, `crop.bad`, `crop.large`, `name.bad`.
    """
    if crop.device != device:
        raise MalformedError("crop.device", f"a crop of {crop.device[:80]!r} came from board {device}")
    check_name("app", crop.app)
    if not 0 < crop.id < MAX_NUMBER or not 0.0 <= crop.at < 1e11 or len(crop.enc) != KEY_BYTES or not (crop.answer or crop.keep):
        raise MalformedError("crop.bad", f"crop {crop.id} has a field out of bounds")
    if not TAG_BYTES < len(crop.box) <= MAX_JPEG_BYTES + MAX_NOTE_BYTES + TAG_BYTES + 2:
        raise MalformedError("crop.large", f"a box of {len(crop.box)} bytes is out of bounds")
    return crop


def check_detections(detections: tuple[Detection, ...]) -> None:
    """Finite numbers within bounds, short labels, whole quads. MalformedError `crop.bad`."""
    if not is_bounded(detections):
        raise MalformedError("crop.bad", f"{len(detections)} detections are over a limit, or one has a number that is not finite")
    for found in detections:
        if len(found.label) > 200 or not found.label.isprintable() or len(found.quad) not in (0, 8):
            raise MalformedError("crop.bad", "a detection is out of bounds")


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height as a baseline, extended or progressive JPEG (ITU T.81) says them, before anybody decodes it.

    Raises:
        MalformedError: `crop.picture` for anything else, or more than `MAX_SIDE` a side or `MAX_PIXELS` in all.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2) and at + 9 <= len(data):
            height, width = int.from_bytes(data[at + 5:at + 7], "big"), int.from_bytes(data[at + 7:at + 9], "big")
            if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS:
                return width, height
            break
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if length < 2 or 0xD0 <= marker <= 0xDA:
            break
        at += 2 + length
    raise MalformedError("crop.picture", f"{len(data)} bytes are no JPEG of a size that is taken")


class CropJob(msgspec.Struct, frozen=True):
    """One line to the program that answers (`python -m jetfleet_agent.pipeline.answer_crops`): crops of one picture, `pieces` of window and
    JPEG, answered in one run of the model. `model` is a path of its machine."""

    id: int
    model: str
    task: TaskSpec
    canvas: tuple[int, int]
    pieces: tuple[tuple[tuple[int, int, int, int], bytes], ...]
    threads: int = 0


class CropAnswer(msgspec.Struct, frozen=True):
    """One line back. `code` and `detail` say why there are no detections; the model's own time is `ms`."""

    id: int
    detections: tuple[Detection, ...] = ()
    code: str = ""
    detail: str = ""
    ms: float = 0.0
