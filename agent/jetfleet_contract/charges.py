"""What each device was sent of one blob, so that nobody can make the sender publish it again and again.

A device may have 1.5 blobs and 8 chunks at once; what it was charged decays by one blob in ten minutes, so that a board whose disk keeps
losing bytes is served on, slowly. Progress is given back: for each chunk less than it ever lacked, one that it was charged. A board behind
a link that loses half of everything gets on by that, and one that lies about its progress can do it for one blob in all, until it has
asked for nothing for as long as a full charge takes to decay.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

BUDGET_BLOBS = 1.5
BUDGET_SLACK = 8
BUDGET_RENEW_S = 600.0
FORGET_S = BUDGET_RENEW_S * BUDGET_BLOBS


class Charge(msgspec.Struct, frozen=True):
    """Chunks that were sent for a device, and when that was reckoned; `least` is the least that it ever lacked since it was charged."""

    chunks: float
    at: float
    least: int = 0


Charges = dict[str, Charge]


def allowance(charges: Mapping[str, Charge], count: int, device: str, now: float) -> int:
    """Chunks of a blob of `count` that may still be sent for `device`; may be negative."""
    charge = charges.get(device)
    spent = 0.0 if charge is None else max(0.0, charge.chunks - (now - charge.at) * count / BUDGET_RENEW_S)
    return int(count * BUDGET_BLOBS + BUDGET_SLACK - spent)


def charged(charges: Mapping[str, Charge], count: int, device: str, chunks: int, now: float, lacks: int = 0) -> Charges:
    """`charges` after `chunks` more were promised to `device`, which `lacks` so many now."""
    spent = count * BUDGET_BLOBS + BUDGET_SLACK - allowance(charges, count, device, now) + chunks
    known = charges.get(device)
    return {**charges, device: Charge(spent, now, lacks if known is None or now - known.at >= FORGET_S else min(lacks, known.least))}


def credited(charges: Charges, device: str, lacks: int) -> Charges:
    """`charges` after `device` said that it `lacks` so many chunks: what it got on by is given back."""
    known = charges.get(device)
    if known is None or lacks >= known.least:
        return charges
    return {**charges, device: Charge(max(0.0, known.chunks - (known.least - lacks)), known.at, lacks)}


def refunded(charges: Mapping[str, Charge], unsent: Mapping[str, int]) -> Charges:
    """`charges` after these chunks, by device, turned out not to be sent."""
    back = {device: charges[device] for device, chunks in unsent.items() if chunks and device in charges}
    less = {device: max(0.0, charge.chunks - unsent[device]) for device, charge in back.items()}
    return {**charges, **{device: msgspec.structs.replace(charge, chunks=less[device]) for device, charge in back.items()}}
