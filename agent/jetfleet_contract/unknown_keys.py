"""A key that a file may not have is an error that names the one that was meant: msgspec would name only the wrong one."""

from __future__ import annotations

import difflib
from typing import Any, get_origin, get_type_hints

import msgspec

from .errors import InputError


def refuse_unknown(table: dict[str, Any], kind: type[msgspec.Struct], code: str, file: str, where: str, prefix: str = "") -> None:
    """Check the keys of a TOML table, and of the tables in it, against the fields of `kind`.

    Args:
        file: what the sentence calls the file. where: its path.

    Raises:
        InputError: `code`, with the nearest key or all that are valid there.
    """
    types = get_type_hints(kind)
    hints = {field.encode_name: types[field.name] for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            raise InputError(code, f"unknown key {prefix}{key!s:.60} in {file}", where=where,
                             remedy=f"did you mean {prefix}{near[0]}?" if near else f"valid keys here: {', '.join(sorted(hints))}")
        inner = next((part for part in _parts(hints[key]) if isinstance(part, type) and issubclass(part, msgspec.Struct)), None)
        for name, item in _items(hints[key], key, value):
            if inner is not None and isinstance(item, dict):
                refuse_unknown(item, inner, code, file, where, f"{prefix}{name}.")


def _items(hint: Any, key: str, value: Any) -> list[tuple[str, Any]]:
    """The tables in a value with what they are called: itself, those of a list, or those that a dict holds under names of the user's."""
    if get_origin(hint) is dict and isinstance(value, dict):
        return [(f"{key}.{name}", item) for name, item in value.items()]
    return [(key, item) for item in (value if isinstance(value, list) else [value])]


def _parts(hint: Any) -> tuple[Any, ...]:
    return (hint, *getattr(hint, "__args__", ()))
