"""The engines that would serve this board's models, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from jetfleet_contract.delegations import EngineTarget
from jetfleet_contract.engine_use import Judged, Verdict, judge_other, judged
from jetfleet_contract.engines import Footing, Passport

MAX_ROWS = 64
"""What travels in one answer to `explain`."""


class Need:
    """An engine that would serve a model here."""

    __slots__ = ("app", "asked_at", "attempt", "look_at", "passport", "since", "verdict", "wanted_at")

    def __init__(self, app: str, passport: Passport, now: float) -> None:
        self.app = app
        self.passport = passport
        self.since = now
        self.asked_at = self.wanted_at = self.look_at = 0.0
        self.attempt = 0
        self.verdict = Verdict("ask")


def in_words(verdict: Verdict) -> str:
    """How an app gets its engine, or why it has none."""
    texts = {"run": "runs with engine", "fetch": "fetches engine", "ask": "asks for an engine", "compile": "compiles"}
    return " ".join(part for part in (texts[verdict.act], verdict.blob[:16], verdict.detail, f"[{verdict.code}]" if verdict.code else "")
                    if part)


def rows_of(needs: Iterable[Need], signed: Iterable[EngineTarget], footing: Callable[[str], Footing | None], lacks: Callable[[str], str],
            tried: Mapping[str, Verdict]) -> tuple[Judged, ...]:
    """A row for each need, and below it one for each other engine of its bundle that builders signed; at most `MAX_ROWS`.

    Args:
        footing: of a runtime here, None where it has none; `lacks` says why. tried: blobs that this board tried for the host.
    """
    others, rows = [one for one in signed if one.passport is not None], []
    for need in needs:
        rows.append(judged(need.app, need.passport, need.verdict))
        for one in others:
            row = _other(need, one, footing, lacks)
            if row is not None:
                outcome = tried.get(one.blob)
                rows.append(row if outcome is None else msgspec.structs.replace(row, code=outcome.code, detail=outcome.detail))
    return tuple(rows[:MAX_ROWS])


def _other(need: Need, signed: EngineTarget, footing: Callable[[str], Footing | None], lacks: Callable[[str], str]) -> Judged | None:
    backend = signed.passport.footing.backend if signed.passport is not None else ""
    return judge_other(need.app, need.passport, signed, footing(backend), lacks(backend))
