"""The base of everything that travels or is stored: frozen, no unknown fields."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what travels: frozen, no unknown fields."""
