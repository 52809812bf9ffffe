"""What a board does about the engine that would serve a model here: run one, fetch it, ask for one, or compile. Pure.

    run       it is here, and nothing speaks against it
    fetch     a builder of the class signed it, and it was certified
    ask       nobody has signed one yet: the host is told, and the model is compiled meanwhile
    compile   one was signed, but not for this board, or not yet: `code` says why; the model is compiled
    leave     another engine of the same bundle, which this app does not run: `code` says why
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from .delegations import EngineTarget
from .engines import Footing, Passport, key_of, made_for, why_foreign
from .messages import Message


class Verdict(msgspec.Struct, frozen=True):
    """`blob` is the engine to run or to fetch; `code` and `detail` say why there is none to run now."""

    act: Literal["run", "fetch", "ask", "compile"]
    blob: str = ""
    code: str = ""
    detail: str = ""


class Judged(Message, frozen=True):
    """What a board does about one engine for one of its apps. `made_for` says in words what it is bound to, `blob` is empty where there is
    none; `code` and `detail` say why it is not run, empty where it is."""

    app: str
    backend: str
    variant: str
    precision: str
    key: str
    made_for: str
    act: Literal["run", "fetch", "ask", "compile", "leave"]
    blob: str = ""
    code: str = ""
    detail: str = ""


def judged(app: str, wanted: Passport, verdict: Verdict) -> Judged:
    """The row of the engine that would serve the app as it runs."""
    return _row(app, wanted, verdict.act, verdict.blob, verdict.code, verdict.detail)


def judge_other(app: str, wanted: Passport, other: EngineTarget, here: Footing | None, lacks: str) -> Judged | None:
    """The row of another engine of the app's bundle that a builder signed: left alone, and why. None for one that is no other, or of
    another bundle.

    Args:
        wanted: the engine that would serve the app as it runs. here: the footing of the other engine's runtime on this board, None where it
            has none, and `lacks` says why.
    """
    made = other.passport
    if made is None or made.subject != wanted.subject or key_of(made) == key_of(wanted):
        return None
    if here is None:
        return _row(app, made, "leave", other.blob, "engine.backend", lacks)
    code, detail = why_foreign(made.footing, here)
    if code:
        return _row(app, made, "leave", other.blob, code, f"the engine {detail}")
    as_it_runs = f"{wanted.variant}@{wanted.footing.backend}:{wanted.recipe.precision}"
    return _row(app, made, "leave", other.blob, "engine.other", f"the app runs as {as_it_runs}, with settings of its own")


def _row(app: str, passport: Passport, act: Literal["run", "fetch", "ask", "compile", "leave"], blob: str, code: str,
         detail: str) -> Judged:
    return Judged(app, passport.footing.backend, passport.variant, passport.recipe.precision, key_of(passport), made_for(passport.footing),
                  act, blob, code, detail)


def judge_engine(here: Passport, signed: EngineTarget | None, *, uncertified: bool, own: str, present: Collection[str],
                 bad: Mapping[str, str]) -> Verdict:
    """What to do for the model that `here` describes.

    Args:
        signed: what a builder of the class vouches for under this key; None when nobody does.
        uncertified: nobody but its builder has tried it.
        own: blob that this board built for the key itself, empty when it did not. It was tried when it was built.
        present: blobs that are here. bad: blobs that failed here before, each with its code.
    """
    if own and own in present and own not in bad:
        return Verdict("run", own)
    if signed is None:
        return Verdict("ask", code="engine.none", detail="nobody has built an engine of this model for boards of this kind yet")
    if signed.blob in bad:
        return Verdict("compile", signed.blob, bad[signed.blob], "the engine failed on this board before")
    code, detail = why_not_ours(here, signed.passport)
    if code:
        return Verdict("compile", signed.blob, code, detail)
    if uncertified:
        return Verdict("compile", signed.blob, "engine.uncertified", "only its builder has tried the engine: a second board has to")
    return Verdict("run" if signed.blob in present else "fetch", signed.blob)


def why_not_ours(here: Passport, made: Passport | None) -> tuple[str, str]:
    """Why an engine with that passport is not for the board and the model that `here` describes; two empty strings when it is.

    Codes: `engine.no-passport`, as `why_foreign`, and `engine.stale`: other weights, another recipe, or another key than its name says.
    """
    if made is None:
        return "engine.no-passport", "the engine was signed without a passport"
    code, detail = why_foreign(made.footing, here.footing)
    if code:
        return code, f"the engine {detail}"
    if made.recipe.weights != here.recipe.weights:
        return "engine.stale", f"the engine is of weights {made.recipe.weights[:12]}, the bundle has {here.recipe.weights[:12]}"
    if key_of(made) != key_of(here):
        return "engine.stale", "the engine was built with other settings than the model is run with"
    return "", ""
