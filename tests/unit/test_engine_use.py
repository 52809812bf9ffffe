"""What a board does about an engine, for every way in which one can be missing, foreign, stale, uncertified or bad."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import EngineTarget
from jetfleet_contract.engine_use import Verdict, judge_engine, judge_other, why_not_ours
from jetfleet_contract.engine_use import judged as row_of
from jetfleet_contract.engines import Footing, Passport, Recipe, key_of

HERE = Passport(Footing("openvino", "2026.4.1-22982-abc", "x86_64", "Some CPU", ("avx2",), cores=4),
                Recipe("ab" * 32, "fp32", (1, 3, 48, 64), threads=1), "cd" * 32, "fp32", "board-1")
BLOB, OWN = "11" * 32, "22" * 32


def signed(passport: Passport | None = HERE, blob: str = BLOB) -> EngineTarget:
    return EngineTarget("engine/cpu-x86/k0", blob, BlobInfo(100), HERE.subject, passport)


def judged(target: EngineTarget | None, **changes: Any) -> tuple[str, str, str]:
    given_ = {"uncertified": False, "own": "", "present": (), "bad": {}, **changes}
    verdict = judge_engine(HERE, target, **given_)
    return verdict.act, verdict.blob, verdict.code


def other_footing(**changes: Any) -> Passport:
    return msgspec.structs.replace(HERE, footing=msgspec.structs.replace(HERE.footing, **changes))


def other_recipe(**changes: Any) -> Passport:
    return msgspec.structs.replace(HERE, recipe=msgspec.structs.replace(HERE.recipe, **changes))


def test_the_way_of_an_engine_that_fits() -> None:
    assert judged(None) == ("ask", "", "engine.none")
    assert judged(signed(), uncertified=True) == ("compile", BLOB, "engine.uncertified")
    assert judged(signed()) == ("fetch", BLOB, "")
    assert judged(signed(), present=(BLOB,)) == ("run", BLOB, "")
    assert judged(signed(), present=(BLOB,), bad={BLOB: "pipeline.killed"}) == ("compile", BLOB, "pipeline.killed")


def test_what_a_board_built_itself_needs_nobodys_word() -> None:
    assert judged(None, own=OWN, present=(OWN,)) == ("run", OWN, "")
    assert judged(None, own=OWN) == ("ask", "", "engine.none"), "it is gone from the disk"
    assert judged(signed(), own=OWN, present=(OWN,), bad={OWN: "engine.load"}) == ("fetch", BLOB, "")


@pytest.mark.parametrize(("made", "code"), [
    (None, "engine.no-passport"),
    (other_footing(version="2026.5.0-1-x"), "engine.version"),
    (other_footing(platform="aarch64"), "engine.platform"),
    (other_footing(device="Other CPU"), "engine.device"),
    (other_footing(features=("avx2", "avx512f")), "engine.features"),
    (other_footing(cores=8), "engine.cores"),
    (other_footing(backend="tensorrt"), "engine.backend"),
    (other_recipe(weights="ef" * 32), "engine.stale"),
    (other_recipe(folded=True), "engine.stale"),
    (other_recipe(precision="bf16"), "engine.stale"),
])
def test_every_refusal_has_its_name(made: Passport | None, code: str) -> None:
    assert judged(signed(made), present=(BLOB,)) == ("compile", BLOB, code)
    assert why_not_ours(HERE, made)[1]


passports = st.builds(
    Passport,
    st.builds(Footing, st.sampled_from(["openvino", "tensorrt"]), st.sampled_from(["1", "2"]), st.sampled_from(["x86_64", "aarch64"]),
              st.sampled_from(["a", "b"]), sm=st.sampled_from([0, 87]), cores=st.integers(0, 2)),
    st.builds(Recipe, st.sampled_from(["ab" * 32, "cd" * 32]), st.sampled_from(["fp32", "int8"]), st.just((1, 3, 8, 8)), st.integers(0, 2),
              st.booleans()),
    st.just("cd" * 32), st.just("fp32"), st.sampled_from(["one", "two"]))


@given(here=passports, made=passports)
def test_only_an_engine_of_the_same_key_is_ours_and_each_other_one_is_told_why(here: Passport, made: Passport) -> None:
    code, sentence = why_not_ours(here, made)
    assert bool(code) == bool(sentence) == (key_of(here) != key_of(made))


@given(here=passports, made=st.none() | passports, uncertified=st.booleans(), own=st.sampled_from(["", OWN]),
       present=st.sets(st.sampled_from([OWN, BLOB])), bad=st.dictionaries(st.sampled_from([OWN, BLOB]), st.just("engine.load")))
def test_nothing_runs_that_is_not_here_or_failed_before(here: Passport, made: Passport | None, uncertified: bool, own: str,
                                                        present: set[str], bad: dict[str, str]) -> None:
    target = EngineTarget("engine/c/k", BLOB, BlobInfo(1), here.subject, made)
    verdict = judge_engine(here, target, uncertified=uncertified, own=own, present=present, bad=bad)
    if verdict.act == "run":
        assert verdict.blob in present
        assert verdict.blob not in bad
    if verdict.act in ("run", "fetch") and verdict.blob == BLOB:
        assert not uncertified
        assert made is not None
        assert key_of(made) == key_of(here)
    assert verdict.act != "compile" or verdict.code


def test_every_engine_of_the_bundle_gets_its_row_and_reason() -> None:
    own = row_of("gate", HERE, Verdict("fetch", BLOB))
    assert (own.key, own.act, own.made_for) == (key_of(HERE), "fetch", "OpenVINO 2026.4.1-22982-abc, Some CPU")
    rtx = msgspec.structs.replace(HERE, footing=Footing("tensorrt-rtx", "1.7.1.116", "x86_64", "", sm=89))
    here = msgspec.structs.replace(rtx.footing, sm=86)
    cases = ((rtx, None, "engine.backend", "no driver"), (rtx, here, "engine.sm", "the engine is for sm_89, this GPU is sm_86"),
             (rtx, rtx.footing, "engine.other", "the app runs as fp32@openvino:fp32"))
    for made, footing, code, part in cases:
        row = judge_other("gate", HERE, signed(made), footing, "no driver")
        assert row is not None
        assert (row.act, row.code, row.blob, row.made_for) == ("leave", code, BLOB, "TensorRT for RTX 1.7.1.116, sm_89")
        assert part in row.detail
    assert judge_other("gate", HERE, signed(HERE), HERE.footing, "") is None, "it is the app's own"
    assert judge_other("gate", HERE, signed(None), None, "") is None
    assert judge_other("gate", HERE, signed(msgspec.structs.replace(rtx, subject="ee" * 32)), None, "") is None, "of another bundle"
