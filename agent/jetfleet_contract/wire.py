"""The base of everything that travels or is stored: frozen, no unknown fields."""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what travels: frozen, no unknown fields."""

    def to_tree(self) -> Any:
        """As dicts, lists and plain values, as they are encoded."""
        return msgspec.to_builtins(self, str_keys=True)  # a sketch's buckets have int keys, JSON has none
