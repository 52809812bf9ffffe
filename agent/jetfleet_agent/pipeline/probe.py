"""Opens one source and reads one frame: ``python -m jetfleet_agent.pipeline.probe``, a `Source` as JSON on standard input.

The answer is one JSON line: `Seen`. A process of its own, so that a driver that hangs or crashes harms nobody. The address comes by
standard input because it may hold a password, which a command line would show to everybody.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Source


class Seen(msgspec.Struct, frozen=True):
    """A frame's size and how long it took to come, or `code`, `what` and `remedy` of the error; none of them holds a credential."""

    width: int = 0
    height: int = 0
    seconds: float = 0.0
    code: str = ""
    what: str = ""
    remedy: str = ""


def look(source: Source) -> Seen:
    """One frame."""
    from jetfleet_agent.pipeline.sources import FreshBuffers, open_source

    began = time.monotonic()
    try:
        reader = open_source(source)
        reader.open()
        try:
            shot = reader.read(FreshBuffers())
        finally:
            reader.close()
    except JetfleetError as error:
        return Seen(code=error.code, what=error.what, remedy=error.remedy)
    except Exception as error:  # noqa: BLE001  its type only: a vendor's message may hold the address, password included
        return Seen(code="source.crash", what=f"{type(error).__name__} while reading {source.name}")
    if shot is None:
        return Seen(code="source.empty", what=f"{source.name} has no frame")
    return Seen(shot.image.shape[1], shot.image.shape[0], time.monotonic() - began)


def main() -> None:
    """Read, look, answer."""
    os.environ.update(OPENCV_LOG_LEVEL="SILENT", OPENCV_FFMPEG_LOGLEVEL="-8")  # both print addresses; set before cv2 is imported
    source = msgspec.json.decode(sys.stdin.buffer.read(64 * 1024), type=Source)
    sys.stdout.write(msgspec.json.encode(look(source)).decode() + "\n")
    sys.stdout.flush()
    os._exit(0)  # a reader's thread may still hang


if __name__ == "__main__":
    main()
