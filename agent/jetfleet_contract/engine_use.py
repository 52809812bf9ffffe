"""What a board does about the engine that would serve a model here: run one, fetch it, ask for one, or compile. Pure.

    run       it is here, and nothing speaks against it
    fetch     a builder of the class signed it, and it was certified
    ask       nobody has signed one yet: the host is told, and the model is compiled meanwhile
    compile   one was signed, but not for this board, or not yet: `code` says why; the model is compiled
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from .delegations import EngineTarget
from .engines import Passport, key_of, why_foreign


class Verdict(msgspec.Struct, frozen=True):
    """`blob` is the engine to run or to fetch; `code` and `detail` say why there is none to run now."""

    act: Literal["run", "fetch", "ask", "compile"]
    blob: str = ""
    code: str = ""
    detail: str = ""


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
