"""The same blob by casync and by zchunk over nginx, the usual ways to send parts of files: beside jetfleet and curl, all cold.

    python benchmarks/delivery_peers.py [--quick] [--mb 50] [--receivers 1,16] [--runs 3]
"""

from __future__ import annotations

from delivery import arguments, compare

METHODS = ("jetfleet", "nginx+curl", "casync", "zchunk")

if __name__ == "__main__":
    options = arguments(__doc__ or "", "1,16")
    compare("delivery_peers", "on loopback, to N receivers that have no older version", METHODS, options.counts, options.size, options.runs,
            peers=True)
