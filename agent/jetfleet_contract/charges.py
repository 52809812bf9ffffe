"""What each device was sent of one blob, so that nobody can make the sender publish it again and again.

A device may have 1.5 blobs and 8 chunks at once; what it was charged decays by one blob in ten minutes, so that a board whose disk keeps
losing bytes is served on, slowly.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

BUDGET_BLOBS = 1.5
BUDGET_SLACK = 8
BUDGET_RENEW_S = 600.0


class Charge(msgspec.Struct, frozen=True):
    """Chunks that were sent for a device, and when that was reckoned."""

    chunks: float
    at: float


Charges = dict[str, Charge]


def allowance(charges: Mapping[str, Charge], count: int, device: str, now: float) -> int:
    """Chunks of a blob of `count` that may still be sent for `device`; may be negative."""
    charge = charges.get(device)
    spent = 0.0 if charge is None else max(0.0, charge.chunks - (now - charge.at) * count / BUDGET_RENEW_S)
    return int(count * BUDGET_BLOBS + BUDGET_SLACK - spent)


def charged(charges: Mapping[str, Charge], count: int, device: str, chunks: int, now: float) -> Charges:
    """`charges` after `chunks` more were promised to `device`."""
    spent = count * BUDGET_BLOBS + BUDGET_SLACK - allowance(charges, count, device, now) + chunks
    return {**charges, device: Charge(spent, now)}


def refunded(charges: Mapping[str, Charge], unsent: Mapping[str, int]) -> Charges:
    """`charges` after these chunks, by device, turned out not to be sent."""
    back = {device: charges[device] for device, chunks in unsent.items() if chunks and device in charges}
    return {**charges, **{device: Charge(max(0.0, charge.chunks - unsent[device]), charge.at) for device, charge in back.items()}}
