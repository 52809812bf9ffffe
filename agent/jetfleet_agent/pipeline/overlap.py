"""Whether the next frame's decoding and pre-processing, and the last one's post-processing, run beside the session or after it.

Beside is faster where cores are free. Where the session's own threads want every core the two only fight, and a session that waits
for one of its threads loses more than the overlap gains. Which it is depends on the board, the runtime, the model and the video, so it is
measured on the first frames: blocks of both ways in turn, medians of the time between answers. A tie goes to one after the other, which
costs less power. A new model or other sources are measured again.
"""

from __future__ import annotations

import statistics

BLOCK = 12
SETTLE = 3  # frames of a block that still belong to the way before
BLOCKS = 6
MARGIN = 0.95  # beside must be this much faster


class Overlap:
    """The choice. `on` may be read from any thread; `answered` is for the one that runs the sessions.

    Args:
        cores: that this process may use.
        threads: of the session; 0: as many as there are cores.
        fixed: for measurements: no choice, this way.
    """

    def __init__(self, cores: int, threads: int, fixed: bool | None = None) -> None:
        self._first = cores > (threads or cores)
        self._fixed = fixed
        self.on = self._first if fixed is None else fixed
        self._again = False
        self._forget()

    def _forget(self) -> None:
        self._samples: dict[bool, list[float]] = {True: [], False: []}
        self._block = self._frame = 0
        self._last = 0.0

    def begin_again(self) -> None:
        """Measure anew from the next frame on. From any thread."""
        self._again = True

    @property
    def is_decided(self) -> bool:
        return self._fixed is not None or (self._block >= BLOCKS and not self._again)

    def answered(self, now: float) -> None:
        """One more frame's (or batch's) turn is over at `now`, monotonic seconds."""
        if self._again:
            self._again = False
            self._forget()
        if self.is_decided:
            return
        if self._frame >= SETTLE:
            self._samples[self.on].append(now - self._last)
        self._last = now
        self._frame += 1
        if self._frame < BLOCK:
            return
        self._frame = 0
        self._block += 1
        self.on = not self.on if self._block < BLOCKS else self._is_faster_beside()

    def _is_faster_beside(self) -> bool:
        return statistics.median(self._samples[True]) < MARGIN * statistics.median(self._samples[False])
