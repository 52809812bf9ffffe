"""A board that has a base gets the delta; what is wrong with one has a name, and policy says what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from delta_shelves import DeltaShelf
from supervised_lives import APP, Life

from jetfleet_agent.supervisor.store import RESERVE_BYTES
from jetfleet_contract.deltas import DeltaSource


@pytest.fixture
def shelf(tmp_path: Path) -> DeltaShelf:
    (tmp_path / "shelf").mkdir()
    return DeltaShelf(tmp_path / "shelf")


@pytest.fixture
def life(tmp_path: Path, shelf: DeltaShelf) -> Life:
    made = Life(tmp_path / "board", shelf)
    made.live((shelf.deliver(1, "1"),))
    return made


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def codes(life: Life) -> list[str]:
    return [report.code for report in life.reports if report.code]


def test_the_delta_comes_and_the_report_tells_what_it_saved(life: Life, shelf: DeltaShelf) -> None:
    state = life.live((shelf.deliver(2, "2"),))
    assert state.champion is not None
    assert state.champion.version == "2"
    assert life.by_delta == [shelf.weights["2"]]
    full = shelf.paths[shelf.weights["2"]].stat().st_size
    metrics = life.reports[-1].metrics
    assert (metrics["bytes_delta"], metrics["bytes_saved"]) == (shelf.made.size, full - shelf.made.size)
    assert metrics["bytes"] < full
    life.updater.tick()
    assert not life.store.has(shelf.delta), "a delta that was used is garbage"


def test_a_board_without_a_base_gets_all_of_it_as_planned(tmp_path: Path, shelf: DeltaShelf) -> None:
    life = Life(tmp_path / "fresh", shelf)
    state = life.live((shelf.deliver(1, "2"),))
    assert state.champion is not None
    assert (life.by_delta, codes(life)) == ([], [])
    assert "bytes_delta" not in life.reports[-1].metrics


@pytest.mark.parametrize("policy", ["fail", "full"])
@pytest.mark.parametrize("damage", ["rot", "gone", "bad delta", "bad index"])
def test_what_is_wrong_has_a_name_and_never_becomes_a_silent_full_download(life: Life, shelf: DeltaShelf, policy: str, damage: str) -> None:
    base = life.store.path(shelf.weights["1"])
    if damage == "rot":
        rot(base)
    elif damage == "gone":
        base.unlink()
    elif damage == "bad delta":
        shelf.offer(_hostile(shelf), shelf.paths[shelf.delta].parent)
    else:
        source = DeltaSource("ab" * 32, shelf.delta, 1 << 30, "tensor")
        shelf.offer(source, shelf.paths[shelf.delta].parent)
    life.updater.deploy(shelf.deliver(2, "2", on_delta_failure=policy))
    life.settle_unchecked(2)
    state = life.updater.states[APP]
    code = {"rot": "delta.base-damaged", "gone": "delta.base-missing", "bad delta": "delta.malformed", "bad index": "delta.index"}[damage]
    if damage == "bad index":
        code = "table.bad" if code not in codes(life) else code
    assert codes(life)[0] == code
    assert state.last is not None
    assert state.champion is not None
    if policy == "full":
        assert (state.last.outcome, state.champion.version) == ("committed", "2")
        assert life.store.sound(shelf.weights["2"])
    else:
        assert (state.last.code, state.champion.version) == (code, "1")
        assert not life.store.has(shelf.weights["2"])


def _hostile(shelf: DeltaShelf) -> DeltaSource:
    data = shelf.paths[shelf.delta].read_bytes()[:-100] + b"\xff" * 100
    blob = shelf.add(data, shelf.paths[shelf.delta].parent)
    return DeltaSource(shelf.weights["1"], blob, len(data), "tensor", 1 << 20, "")


def test_space_for_delta_and_result_is_checked_before_the_first_byte(life: Life, shelf: DeltaShelf,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    full = shelf.paths[shelf.weights["2"]].stat().st_size
    free = RESERVE_BYTES + full + shelf.made.size // 2
    monkeypatch.setattr(life.store, "_free", lambda: free)
    state = life.live((shelf.deliver(2, "2"),))
    assert state.last is not None
    assert (state.last.code, life.by_delta) == ("store.full", [])


def test_the_base_stays_while_its_delta_is_under_way(life: Life, shelf: DeltaShelf) -> None:
    life.updater.deploy(shelf.deliver(2, "2"))
    while not life.by_delta:
        life._work_once()
        life.runner.collect()
        assert life.store.has(shelf.weights["1"])
