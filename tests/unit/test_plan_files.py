"""Plans in TOML: the example is one, each key means what it says, and each mistake is one clear error."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.errors import InputError
from jetfleet_contract.kpis import KpiBound
from jetfleet_contract.messages import DeliveryPolicy
from jetfleet_contract.rollout_plan import Budget, Selector, Window
from jetfleet_host import plan_files
from jetfleet_host.plan_files import EXAMPLE, PlanFile, boards_of, bytes_of, plan_of, read_plan, seconds_of


def written(tmp_path: Path, text: str) -> PlanFile:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return read_plan(path)


def test_the_example_says_what_it_means(tmp_path: Path) -> None:
    plan = written(tmp_path, EXAMPLE)
    gates = plan_files.gates_of(plan)
    assert (gates.min_success, gates.max_bad, gates.max_p95_ratio, gates.evidence_s, gates.hold_s) == (0.95, -1, 1.2, 600.0, 600.0)
    assert plan_files.holds_of(plan) == (600.0, 3600.0)
    assert plan_files.windows_of(plan) == (Window((22, 4), (0, 1, 2, 3)),)
    assert plan_files.budget_of(plan) == Budget(20 * 10**9, 5 * 10**9)
    assert plan_files.overrides_of(plan).delivery == DeliveryPolicy("fail", 500 * 10**6, ((20, 6),))
    assert plan_files.selector_of(plan) == Selector(classes=("orin-*",), exclude=("dock-9", "site=lab"))


def test_every_key_is_in_the_example() -> None:
    """Commented or not: who reads it has seen all there is."""
    sections = [PlanFile, plan_files.SelectSection, plan_files.WindowSection, plan_files.GatesSection, plan_files.DeliverySection,
                plan_files.BudgetSection]
    known = {field for section in sections for field in section.__struct_encode_fields__} - {"max_bad", "min_samples", "everybody"}
    assert {key for key in known if not any(mark in EXAMPLE for mark in (f"{key} =", f"[{key}]", f"[gates.{key}."))} == set()
    assert tomllib.loads(EXAMPLE)


def test_figures_are_bounded_by_name(tmp_path: Path) -> None:
    text = EXAMPLE.replace("# [gates.kpi.people]", "[gates.kpi.people]").replace("# min_ratio = 0.9", "min_ratio = 0.9")
    plan = written(tmp_path, text)
    assert plan_files.gates_of(plan).kpis == {"people": KpiBound(min_ratio=0.9)}


def test_an_empty_plan_is_what_the_command_does_without_one(tmp_path: Path) -> None:
    plan = written(tmp_path, "")
    assert plan == PlanFile()
    assert plan_files.gates_of(plan).max_bad == 0
    assert plan_files.selector_of(plan) is None


def test_paths_are_relative_to_the_plan(tmp_path: Path) -> None:
    assert written(tmp_path, 'apps = "apps.toml"').apps == str(tmp_path / "apps.toml")


@pytest.mark.parametrize(("text", "code", "told"), [
    ("canry = 1", "plan.unknown", "did you mean canary?"),
    ("[gates]\nmax_p95 = 1.2", "plan.unknown", "did you mean gates.max_p95_ratio?"),
    ("[gates.kpi.people]\nmin_ration = 0.9", "plan.unknown", "did you mean gates.kpi.people.min_ratio?"),
    ("[gates.kpi.people]\nmin_ratio = -1.0", "plan.value", ""),
    ("[gates.kpi.people]", "plan.value", ""),
    ("[gates.kpi.'a b']\nleast = 1.0", "plan.value", ""),
    ("[[windows]]\nhour = [1, 2]", "plan.unknown", "did you mean windows.hours?"),
    ("[select]\nclasses = ['x']", "plan.unknown", "did you mean select.class?"),
    ("[trial]\nframe = 3", "plan.unknown", "did you mean trial.frames?"),
    ("[delivery]\nzzz = 1", "plan.unknown", "valid keys here: bytes_per_day"),
    ("canary = '5 boards'", "plan.value", "count, or a share"),
    ("canary = -1", "plan.value", "count, or a share"),
    ("waves = ['101%']", "plan.value", "count, or a share"),
    ("hold = 'soon'", "plan.value", "length of time"),
    ("hold = []", "plan.value", "hold is empty"),
    ("on_breach = 'cry'", "plan.value", "on_breach"),
    ("[[windows]]\nhours = [5, 5]", "plan.value", "empty"),
    ("[[windows]]\nhours = [5, 25]", "plan.value", "24"),
    ("[[windows]]\ndays = ['monday']", "plan.value", "days"),
    ("[budget]\nmax_bytes = '2 gigs'", "plan.value", "number of bytes"),
    ("[gates]\nmin_success = 95", "plan.value", "min_success"),
    ("[gates]\nconfidence = 1.0", "plan.value", "confidence"),
    ("gates = 3", "plan.value", "gates"),
    ("canary =", "plan.syntax", "TOML"),
    ("x = '" + "a" * 300_000 + "'", "plan.syntax", "limit"),
])
def test_a_wrong_plan_is_one_clear_error(tmp_path: Path, text: str, code: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        written(tmp_path, text)
    assert caught.value.code == code
    assert told in str(caught.value)


def test_no_plan_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan\.unreadable"):
        read_plan(tmp_path / "none.toml")


def test_numbers() -> None:
    assert [boards_of(size, 30) for size in (0, 7, "10%", "1%", "33.4%", "100 %")] == [0, 7, 3, 1, 11, 30]
    assert [seconds_of(length) for length in (5, 1.5, "30s", "10m", "2 h", "1d")] == [5.0, 1.5, 30.0, 600.0, 7200.0, 86400.0]
    assert [bytes_of(size) for size in (5, "500 MB", "2GB", "1.5 kB", "7 B")] == [5, 500 * 10**6, 2 * 10**9, 1500, 7]


_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)
_KEYS = st.sampled_from([*PlanFile.__struct_fields__, "x"])


@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_anything_is_a_plan_or_an_error(table: dict[str, object]) -> None:
    with suppress(InputError):
        assert isinstance(plan_of(table, Path("plan.toml")), PlanFile)
