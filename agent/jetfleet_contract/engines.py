"""Engines: what a runtime compiles for one class of boards, what it is bound to, and why a board may not run one. Pure.

An engine is a TensorRT plan, a TensorRT-RTX engine or one of OpenVINO's compiled blobs. Its **key** names all that it was made from and is
bound to: the weights, the recipe, the runtime's full version and the machine. Boards that ask for the same key can share one engine: one
board of the class builds it, all others fetch it. Its **passport** says the same in words and is signed with it, so that a board can tell
by name why an engine is not for it, before a byte of it is loaded.

    need       board -> host   d/{device}/engine      signed: this key would serve me
    build      host -> board   d/{device}/cmd         signed: you are the builder that was elected
    progress   board -> host   d/{device}/engine      signed: how far it is; silence elects another
    built      board -> host   d/{device}/up/{blob}   the engine, its timing cache where it has one, and the class's metadata with both,
                                                      signed by the builder
    certify    host -> board   d/{device}/cmd         signed: a second board is to try it
    fit/unfit  board -> host   d/{device}/engine      signed: what came out
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from .errors import MalformedError
from .messages import Message
from .topics import check_blob, check_name

EngineBackend = Literal["openvino", "tensorrt", "tensorrt-rtx"]
ENGINE_TITLES: dict[EngineBackend, str] = {"openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
MAX_WORD_BYTES = 8192
_MAX_TEXT = 200


class Footing(Message, frozen=True):
    """What a compiled engine is bound to on one machine.

    `version` is the runtime's full version. `device` names the processor as the runtime sees it: a CPU's model, a GPU's name, or a Jetson
    module's part number. `features` are those that the compiler chose its code by (a CPU's instruction sets, sorted). `sm` is the CUDA
    compute capability times ten and `sm_count` the number of multiprocessors, 0 where there is no GPU; `system` the L4T release, empty
    elsewhere; `cores` the threads that the code was laid out for, 0 when it does not matter.
    """

    backend: EngineBackend
    version: str
    platform: str
    device: str
    features: tuple[str, ...] = ()
    sm: int = 0
    sm_count: int = 0
    system: str = ""
    cores: int = 0


class Recipe(Message, frozen=True):
    """What an engine is made from, and how. `weights` is the SHA-256 (hex) of the ONNX file, `shape` of its input (N, C, H, W); `folded`
    takes uint8 frames, so that the input's normalisation is part of it and `input` the digest of its spec; `dla` runs on a DLA core.
    `batches` are the smallest, usual and largest batch of an engine with a free batch axis; () where it is fixed."""

    weights: str
    precision: str
    shape: tuple[int, ...]
    threads: int = 0
    folded: bool = False
    input: str = ""
    dla: bool = False
    batches: tuple[int, ...] = ()


class Passport(Message, frozen=True):
    """What travels, signed, beside an engine. `subject` is the bundle's manifest (hex), `variant` the weight file's name there, `builder`
    the board that built it. The digest of the engine itself is its target's."""

    footing: Footing
    recipe: Recipe
    subject: str
    variant: str
    builder: str


class EngineFile(Message, frozen=True):
    """An engine on this board's disk, and the SHA-256 (hex) that its bytes must have when they are loaded."""

    path: str
    digest: str


class EngineWord(Message, frozen=True):
    """What a board says about one key. `percent` 0..100; `code` is empty unless it failed or does not fit. `agreement` 0..1 with the
    bundle's reference answers and `p50_ms` are what its builder, then a certifying board, saw; 0 elsewhere. `under`: power mode and clocks
    that it was measured under, in words. `at`: seconds since 1970 by the board's clock."""

    device: str
    key: str
    what: Literal["need", "building", "built", "failed", "fit", "unfit"]
    at: float
    passport: Passport
    percent: float = 0.0
    blob: str = ""
    code: str = ""
    detail: str = ""
    agreement: float = 0.0
    p50_ms: float = 0.0
    under: str = ""


def engine_key(footing: Footing, recipe: Recipe) -> str:
    """64 hex digits that name an engine: equal for boards that can share it, whoever builds it and for whichever bundle."""
    return hashlib.sha256(b"jetfleet-engine-1\0" + msgspec.json.encode([footing, recipe])).hexdigest()


def key_of(passport: Passport) -> str:
    """The key of what the passport describes."""
    return engine_key(passport.footing, passport.recipe)


def engine_name(key: str) -> str:
    """The engine's name below ``engine/CLASS/``: the key's first 62 digits, because a name has at most 63 characters."""
    return "k" + check_blob(key)[:62]


def timing_name(footing: Footing) -> str:
    """The name below ``engine/CLASS/`` of the timing cache of builds on that footing."""
    return "t" + hashlib.sha256(b"jetfleet-timing-1\0" + msgspec.json.encode(footing)).hexdigest()[:62]


def made_for(footing: Footing) -> str:
    """What an engine is bound to, in words: ``TensorRT 10.3.0.30, p3767-0005, sm_87 with 8 SMs, L4T 36.4.3``."""
    gpu = f"sm_{footing.sm}" + (f" with {footing.sm_count} SMs" if footing.sm_count else "") if footing.sm else ""
    words = (f"{ENGINE_TITLES[footing.backend]} {footing.version}", footing.device, gpu, f"L4T {footing.system}" if footing.system else "")
    return ", ".join(word for word in words if word)


def check_passport(passport: Passport) -> Passport:
    """Names, digests and sizes within bounds.

    Raises:
        MalformedError: `name.bad`, `blob.bad`, `engine.bounds`.
    """
    check_blob(passport.subject)
    check_blob(passport.recipe.weights)
    check_name("variant", passport.variant)
    check_name("builder", passport.builder)
    words = (passport.footing.version, passport.footing.platform, passport.footing.device, passport.footing.system,
             passport.recipe.precision, *passport.footing.features)
    numbers = (passport.footing.sm, passport.footing.sm_count, passport.footing.cores, passport.recipe.threads,
               *passport.recipe.shape, *passport.recipe.batches)
    if (len(passport.footing.features) > 64 or len(passport.recipe.shape) != 4 or len(passport.recipe.batches) not in (0, 3)
            or any(len(word) > _MAX_TEXT for word in words) or not all(0 <= number < 1 << 31 for number in numbers)):
        raise MalformedError("engine.bounds", "a passport with words or numbers out of bounds")
    return passport


def why_foreign(made: Footing, here: Footing) -> tuple[str, str]:
    """Why an engine that was made on `made` may not run on `here`: a stable code and a sentence; two empty strings when it may.

    Codes: `engine.backend`, `engine.platform`, `engine.version`, `engine.device`, `engine.sm`, `engine.features`, `engine.system`,
    `engine.cores`.
    """
    name = ENGINE_TITLES[made.backend]
    checks = (
        ("engine.backend", made.backend, here.backend, "is for {}, not for {}"),
        ("engine.platform", made.platform, here.platform, "was built on {}, this board is {}"),
        ("engine.version", made.version, here.version, name + " {} built it, this board has {}"),
        ("engine.sm", f"sm_{made.sm}", f"sm_{here.sm}", "is for {}, this GPU is {}"),
        ("engine.device", f"{made.device} ({made.sm_count} SMs)" if made.sm else made.device,
         f"{here.device} ({here.sm_count} SMs)" if here.sm else here.device, "was built on {}, this board has {}"),
        ("engine.features", ", ".join(made.features), ", ".join(here.features), "uses {}, this processor has {}"),
        ("engine.system", made.system, here.system, "was built under L4T {}, this board runs {}"),
        ("engine.cores", str(made.cores), str(here.cores), "was laid out for {} cores, this board has {}"),
    )
    for code, had, has, sentence in checks:
        if had != has:
            return code, sentence.format(had or "nothing", has or "nothing")
    return "", ""
