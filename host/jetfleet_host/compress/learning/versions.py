"""The version after a version. Pure."""

from __future__ import annotations

import re

from jetfleet_contract.errors import InputError

_LAST = re.compile(r"(.*?)(\d+)$", re.DOTALL)


def next_version(version: str) -> str:
    """The version with its last number one higher: ``1.0.9`` becomes ``1.0.10``, ``7`` becomes ``8``.

    Raises:
        InputError: `learn.version` when it does not end in a number.
    """
    found = _LAST.fullmatch(version)
    if found is None:
        raise InputError("learn.version", f"the version {version[:60]!r} does not end in a number, so no version comes after it",
                         remedy="say the new one with --version")
    return f"{found[1]}{int(found[2]) + 1:0{len(found[2])}d}"
