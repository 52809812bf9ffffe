"""One process of a search for tests: points of a plane whose answers are arithmetic. ``search_party.py URL TRIALS PAUSE_S``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from jetfleet_host.search.space import Parameter, Range, Value
from jetfleet_host.search.study import Judged, RefusedError, Search

PARAMETERS = (Parameter("x", Range(0.0, 1.0)), Parameter("y", Range(0.0, 1.0)))


def judged(values: Mapping[str, Value]) -> Judged:
    """Accuracy falls with x and y, latency with x alone: the front is y = 0. Beyond x = 0.9 the guard refuses."""
    x, y = float(values["x"]), float(values["y"])
    if x > 0.9:
        raise RefusedError("too much")
    return Judged(1.0 - 0.5 * x - 0.3 * y, 1.0 - x, {"drop": 0.0})


def main(url: str, trials: int, pause_s: float) -> None:
    def slowly(values: Mapping[str, Value]) -> Judged:
        time.sleep(pause_s)
        return judged(values)

    Search(url, "party", PARAMETERS, 3, "same").run(trials, slowly, lambda done, _of: print(done, flush=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
