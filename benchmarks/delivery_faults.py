"""What faults cost: chunks that are lost at the receivers' door, and one reader that is slow.

    python benchmarks/delivery_faults.py [--quick] [--mb 50] [--receivers 4,16] [--runs 3]

Losses are independent, a tenth of the chunks of each receiver. No scheme that sends each lost chunk again for all who lack it, and whose
receivers keep what they have, can send less than sum over k >= 0 of 1 - (1 - p^k)^N copies: that is the expected number of times until all
N of them have a chunk (Nonnenmacher, Biersack and Towsley, 1998, without parity).
"""

from __future__ import annotations

import statistics
from typing import Any

from delivery import arguments
from delivery_site import Site, keep, one_run, say, site_with, summary

LOSS = 0.1
SLOW_S = 0.05  # a message; 64 KiB in 50 ms is 1.3 MB/s


def bound(receivers: int, loss: float) -> float:
    """Expected copies of a chunk until every receiver has one."""
    return sum(1 - (1 - loss**k) ** receivers for k in range(60))


def lossy(site: Site, counts: list[int], runs: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for count in counts:
        measured = []
        for turn in range(runs):
            measured.append(one_run(site, "jetfleet", count, [{"loss": LOSS, "seed": f"{turn}-{number}"} for number in range(count)]))
            say(f"{count} receivers that lose {LOSS:.0%}: host sends {measured[-1]['sent']:.3f}, bound {bound(count, LOSS):.3f}")
        mean = statistics.mean(run["sent"] for run in measured)
        rows[f"{count} lossy"] = {**summary(measured), "sent_mean": mean, "bound": bound(count, LOSS)}
    return rows


def one_slow(site: Site, count: int, runs: int) -> dict[str, Any]:
    """The time of `count` receivers alone and beside a slow one, interleaved."""
    found: dict[str, list[dict[str, float]]] = {"alone": [], "beside a slow one": []}
    for _ in range(runs):
        found["alone"].append(one_run(site, "jetfleet", count))
        found["beside a slow one"].append(one_run(site, "jetfleet", count + 1, [{}] * count + [{"slow_s": SLOW_S}]))
        say(f"{count} receivers: " + ", ".join(f"{name} {measured[-1]['seconds']:.2f} s" for name, measured in found.items()))
    return {f"{count} {name}": summary(measured) for name, measured in found.items()}


def main() -> None:
    """Measure both and print both tables."""
    given = arguments(__doc__ or "", "4,16")
    with site_with(given.size) as site:
        losses = lossy(site, given.counts, given.runs)
        slow = one_slow(site, given.counts[0], given.runs)
    keep("delivery_faults", {"bytes": given.size, "runs": given.runs, "loss": LOSS, "slow_s": SLOW_S}, {**losses, **slow})
    print(f"{given.size / 1e6:.0f} MB through mosquitto on loopback; each receiver loses {LOSS:.0%} of its chunks at its door; "
          f"{given.runs} runs.\n")
    print("| receivers | host sends, x blob, mean (most) | bound of shared resend | mean over the bound | seconds, median |")
    print("|---|---|---|---|---|")
    for count in given.counts:
        found = losses[f"{count} lossy"]
        print(f"| {count} | {found['sent_mean']:.3f} ({found['sent']:.3f}) | {found['bound']:.3f} "
              f"| {found['sent_mean'] / found['bound']:.3f} | {found['seconds']:.2f} |")
    print(f"\nOne reader takes {SLOW_S * 1000:.0f} ms a message; the time is that of the others; {given.runs} interleaved runs.\n")
    print("| receivers | seconds, median (least - most) | host sends, x blob | MB, broker |\n|---|---|---|---|")
    for name, found in slow.items():
        print(f"| {name} | {found['seconds']:.2f} ({found['least']:.2f} - {found['most']:.2f}) | {found['sent']:.3f} "
              f"| {found['broker_rss_mb']:.0f} |")


if __name__ == "__main__":
    main()
