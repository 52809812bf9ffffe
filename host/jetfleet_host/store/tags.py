"""What operators say about boards. Inside a transaction."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jetfleet_contract.rollout_plan import Selector

from .models import Device, DeviceTag


def of(session: Session, device: str) -> dict[str, str]:
    """One board's tags."""
    rows = session.scalars(select(DeviceTag).where(DeviceTag.device == device).order_by(DeviceTag.key))
    return {row.key: row.value for row in rows}


def every(session: Session) -> dict[str, dict[str, str]]:
    """All tags, by board; boards without any are absent, but read as empty."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in session.scalars(select(DeviceTag).order_by(DeviceTag.device, DeviceTag.key)):
        found[row.device][row.key] = row.value
    return found


def put(session: Session, device: str, tags: dict[str, str]) -> None:
    """Set these, keep the others."""
    for key, value in tags.items():
        session.merge(DeviceTag(device=device, key=key, value=value))


def drop(session: Session, device: str, keys: tuple[str, ...]) -> None:
    session.execute(delete(DeviceTag).where(DeviceTag.device == device, DeviceTag.key.in_(keys)))


def selected(session: Session, selector: Selector) -> list[Device]:
    """The boards that a selector means, by name."""
    known = every(session)
    return [device for device in session.scalars(select(Device).order_by(Device.device))
            if selector.matches(device.device, device.device_class, known.get(device.device, {}))]
