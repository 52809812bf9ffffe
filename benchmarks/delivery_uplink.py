"""The host behind a 100 Mbit/s uplink, broker and boards on one site: how long 16 boards wait, against one copy over that uplink.

    python benchmarks/delivery_uplink.py [--quick] [--mb 50] [--receivers 16] [--runs 3]

Two network namespaces and a veth pair; what leaves the host is held to 100 Mbit/s by tc's token bucket. Needs root. Beside jetfleet: nginx
at the host for every board, and nginx at the host with a caching nginx on the site (proxy_cache with its lock, cold in each run).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from delivery import arguments
from delivery_site import HEADER, Place, Site, free_port, keep, one_run, row, say, site_with, start_nginx, stop, summary
from network_namespaces import narrow_wire

RATE_MBIT_S = 100


def by_proxy(site: Site, count: int) -> dict[str, float]:
    """A run with a fresh caching proxy on the site."""
    cache = site.root / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    site.proxy_port = free_port()
    proxy = start_nginx(
        site, site.boards, site.proxy_port,
        f"location / {{ proxy_pass http://{site.host.address}:{site.nginx_port}; proxy_cache site; proxy_cache_lock on; "
        "proxy_cache_lock_timeout 300s; proxy_cache_lock_age 300s; proxy_cache_valid 200 1h; }",
        f"proxy_cache_path {cache} keys_zone=site:1m max_size=2g;\n")
    try:
        return one_run(site, "nginx+curl by proxy", count)
    finally:
        stop(proxy)


def measure(site: Site, count: int, runs: int) -> dict[str, tuple[int, dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(runs):
        turns = {("nginx+curl, one copy", 1): one_run(site, "nginx+curl", 1), ("jetfleet", count): one_run(site, "jetfleet", count),
                 ("nginx+curl by proxy", count): by_proxy(site, count)}
        for key, run in turns.items():
            found.setdefault(key, []).append(run)
            say(f"run {turn + 1}/{runs}, {key[0]}: {run['seconds']:.2f} s")
    found["nginx+curl", count] = [one_run(site, "nginx+curl", count)]  # once: it takes as many copies as there are boards
    say(f"nginx+curl, {count} copies: {found['nginx+curl', count][0]['seconds']:.2f} s")
    return {name: (receivers, summary(measured)) for (name, receivers), measured in found.items()}


def main() -> None:
    """Measure and print the table."""
    given = arguments(__doc__ or "", "16")
    count = given.counts[-1]
    with (narrow_wire(RATE_MBIT_S) as (host, boards),
          site_with(given.size, host=Place(host.prefix, host.address), boards=Place(boards.prefix, boards.address)) as site):
        rows = measure(site, count, given.runs)
    keep("delivery_uplink", {"bytes": given.size, "runs": given.runs, "mbit_s": RATE_MBIT_S},
         {name: found for name, (_, found) in rows.items()})
    one = rows["nginx+curl, one copy"][1]["seconds"]
    print(f"{given.size / 1e6:.0f} MB over an uplink of {RATE_MBIT_S} Mbit/s; {given.runs} interleaved runs (nginx+curl to all: one).\n")
    print(HEADER)
    print("\n".join(row(receivers, name, found) for name, (receivers, found) in rows.items()))
    others = (f"{name} {rows[name][1]['seconds'] / one:.2f}x" for name in ("jetfleet", "nginx+curl by proxy", "nginx+curl"))
    print(f"\nAgainst one copy: {', '.join(others)}.")


if __name__ == "__main__":
    main()
