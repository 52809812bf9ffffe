"""When a network camera took a frame: its RTP clock laid onto ours.

RTP stamps tell how far frames are apart, not when the first one was taken. So the smallest (arrival - stamp) seen stands for "no delay",
and a frame that comes later than that is as old as the difference: buffers that fill, in the camera, on the way or here, show as age. What
every frame is late by (exposure, encoding, the wire) stays unknown, because the libraries do not hand out RTCP sender reports:
an age of 0 means "as fresh as this camera ever was".
"""

from __future__ import annotations

# A camera's crystal is off by far less than this; the smallest delay may rise as fast, so that its drift does not read as age.
# Lag that grows by a second a second ("latency creep") still shows to 99.95 %.
DRIFT = 500e-6
JUMP_S = 0.5  # B-frames and jitter move stamps back by less
GAP_S = 1.0
SETTLE_S = 5.0


class CameraClock:
    """Maps stamps of one stream (seconds, any origin) to our monotonic seconds. Not thread-safe."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._stamp: float | None = None
        self._arrival = 0.0
        self._settle_until = 0.0
        self._least_late = 0.0

    def arrived(self, stamp: float, now: float) -> float:
        """A packet with `stamp` came in at `now`; how late it is in seconds, >= 0.

        A stamp that goes back starts a new reckoning. After a gap, frames that were held back come in a burst until none is late; where
        every one stays as late for `SETTLE_S`, the camera's clock stood still meanwhile, and the reckoning moves.
        """
        late = now - stamp
        if self._stamp is None or stamp < self._stamp - JUMP_S:
            self._offset = late
            self._settle_until = 0.0
        elif now - self._arrival - (stamp - self._stamp) > GAP_S:
            self._settle_until, self._least_late = now + SETTLE_S, late
        else:
            self._offset = min(late, self._offset + DRIFT * max(0.0, now - self._arrival))
        self._settle(late, now)
        self._stamp, self._arrival = stamp, now
        return max(0.0, late - self._offset)

    def _settle(self, late: float, now: float) -> None:
        if not self._settle_until:
            return
        self._least_late = min(self._least_late, late)
        if now >= self._settle_until:
            self._settle_until = 0.0
            if self._least_late > self._offset + JUMP_S:
                self._offset = self._least_late

    def taken_at(self, stamp: float, now: float) -> float:
        """Our monotonic seconds at which the frame with `stamp` was taken; never after `now`."""
        return min(now, stamp + self._offset)
