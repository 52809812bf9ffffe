"""What `jetfleet-agent doctor` says of one thing: how it is, what was seen, what to do."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["ok", "warning", "failed"]


class Check(msgspec.Struct, frozen=True):
    """One finding; `remedy` is empty when all is well."""

    name: str
    verdict: Verdict
    finding: str
    remedy: str = ""
