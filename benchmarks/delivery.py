"""One blob to 1, 4, 16 and 32 receivers over loopback: jetfleet beside what a user would otherwise do with a broker or a web server.

    python benchmarks/delivery.py [--quick] [--mb 50] [--receivers 1,4,16,32] [--runs 3]

Every party is a process of its own, every run starts fresh ones, methods are interleaved. What each method does until it counts as done
stands in delivery_parties.py; how a run is measured, in delivery_site.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from delivery_site import HEADER, keep, one_run, row, say, site_with, summary

METHODS = ("jetfleet", "naive", "naive+store", "one message", "nginx+curl")


def compare(name: str, title: str, methods: Sequence[str], counts: list[int], size: int, runs: int, *, peers: bool = False) -> None:
    """Measure every method at every count, interleaved; keep the figures and print the table."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {(count, method): [] for count in counts for method in methods}
    with site_with(size, peers=peers) as site:
        for turn in range(runs):
            for (count, method), measured in found.items():
                run = one_run(site, method, count)
                measured.append(run)
                say(f"run {turn + 1}/{runs}, {count} receivers, {method}: {run['seconds']:.2f} s, host sends {run['sent']:.3f}")
    rows = {key: summary(measured) for key, measured in found.items()}
    keep(name, {"bytes": size, "runs": runs}, {f"{count} {method}": value for (count, method), value in rows.items()})
    print(f"{size / 1e6:.0f} MB {title}; {runs} interleaved runs.\n\n{HEADER}")
    print("\n".join(row(count, method, value) for (count, method), value in rows.items()))


def arguments(description: str, receivers: str) -> argparse.Namespace:
    """Options that the delivery benchmarks share."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 MB, few receivers, one run")
    parser.add_argument("--mb", type=float, default=50.0)
    parser.add_argument("--receivers", default=receivers, help="counts, with commas")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    if given.quick:
        given.mb, given.receivers, given.runs = 10.0, "1,3", 1
    given.counts = [int(count) for count in given.receivers.split(",")]
    given.size = int(given.mb * 1_000_000)
    return given


if __name__ == "__main__":
    options = arguments(__doc__ or "", "1,4,16,32")
    compare("delivery", "through mosquitto or nginx on loopback, to N receivers", METHODS, options.counts, options.size, options.runs)
