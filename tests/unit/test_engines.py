"""Engines of a class: keys that boards can share, passports, and why an engine is for another board."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.engines import Footing, Passport, Recipe, check_passport, engine_key, engine_name, key_of, why_foreign
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.topics import is_name

ORIN = Footing("tensorrt", "10.3.0.30", "aarch64", "p3767-0005", sm=87, sm_count=8, system="36.4.3")
RECIPE = Recipe("ab" * 32, "int8", (1, 3, 640, 640))
PASSPORT = Passport(ORIN, RECIPE, "5b" * 32, "int8", "bench-1")


def test_the_key_is_of_what_was_made_and_where_not_of_who_made_it() -> None:
    assert key_of(PASSPORT) == key_of(msgspec.structs.replace(PASSPORT, builder="bench-2", subject="6c" * 32, variant="other"))
    assert is_name(engine_name(key_of(PASSPORT)))


@pytest.mark.parametrize(("code", "other"), [
    ("engine.backend", {"backend": "tensorrt-rtx"}), ("engine.platform", {"platform": "x86_64"}),
    ("engine.version", {"version": "10.7.0.23"}),
    ("engine.sm", {"sm": 110}), ("engine.device", {"device": "p3767-0000"}), ("engine.device", {"sm_count": 16}),
    ("engine.features", {"features": ("neon",)}), ("engine.system", {"system": "36.5"}), ("engine.cores", {"cores": 6}),
])
def test_each_difference_has_a_name_and_another_key(code: str, other: dict[str, object]) -> None:
    here = msgspec.structs.replace(ORIN, **other)
    found, sentence = why_foreign(ORIN, here)
    assert found == code
    assert sentence
    assert engine_key(here, RECIPE) != engine_key(ORIN, RECIPE)


@given(st.text(max_size=20), st.integers(0, 200), st.lists(st.text(max_size=8), max_size=4))
def test_the_same_footing_is_never_foreign(version: str, sm: int, features: list[str]) -> None:
    footing = Footing("openvino", version, "x86_64", "cpu", tuple(features), sm)
    assert why_foreign(footing, footing) == ("", "")


@pytest.mark.parametrize("bad", [
    msgspec.structs.replace(PASSPORT, subject="../x"), msgspec.structs.replace(PASSPORT, builder="a/b"),
    msgspec.structs.replace(PASSPORT, recipe=msgspec.structs.replace(RECIPE, shape=(1, 3, 640))),
    msgspec.structs.replace(PASSPORT, recipe=msgspec.structs.replace(RECIPE, shape=(1, 3, -1, 640))),
    msgspec.structs.replace(PASSPORT, footing=msgspec.structs.replace(ORIN, device="x" * 300)),
])
def test_a_passport_out_of_bounds_is_refused(bad: Passport) -> None:
    with pytest.raises(MalformedError):
        check_passport(bad)
