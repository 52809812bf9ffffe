"""The A/B machine and releases: an older one is refused before it costs anything, unless somebody approved it."""

from __future__ import annotations

import pytest
from slot_worlds import BUNDLES, World, target

from jetfleet_contract import slot_records as r

A, B, C = BUNDLES["a"], BUNDLES["b"], BUNDLES["c"]


def refusal(world: World) -> tuple[str, str, str]:
    last = world.reports[-1]
    return last.outcome, last.code, last.version


def test_an_older_release_is_refused_before_a_byte_is_fetched() -> None:
    world = World().install("b", release=2)
    champion = world.state.champion
    effects = world.send(r.Deploy(target(2, "a", release=1)))
    assert [type(effect) for effect in effects] == [r.Persist, r.SendReport]
    assert refusal(world) == ("refused", "slots.downgrade", "a")
    assert (world.state.phase, world.state.seq, world.state.champion, world.running) == ("idle", 2, champion, B)
    world.restart()
    assert world.send(r.Deploy(target(2, "a", release=1))) == ()
    assert refusal(world) == ("refused", "slots.downgrade", "a"), "told again after a restart"


def test_an_older_release_is_refused_once_its_signed_target_is_known() -> None:
    world = World().install("b", release=2)
    world.releases[A] = 1
    world.send(r.Deploy(target(2, "a")))
    assert world.state.phase == "fetching"
    world.fetch_step()
    assert (world.state.phase, world.running) == ("idle", B)
    assert refusal(world) == ("refused", "slots.downgrade", "a")
    assert A not in world.store


def test_an_approved_downgrade_goes_and_lowers_what_is_remembered() -> None:
    world = World().install("b", release=2).install("a", 2, release=1, downgrade=True)
    assert world.state.champion is not None
    assert (world.running, world.state.champion.release) == (A, 1)
    world.install("c", 3, release=2)
    assert world.running == C


@pytest.mark.parametrize(("runs", "wanted", "name"), [(0, 1, "model"), (2, 0, "model"), (2, 2, "model"), (2, 1, "other")])
def test_what_is_not_known_to_be_older_goes(runs: int, wanted: int, name: str) -> None:
    world = World().install("b", release=runs)
    world.send(r.Deploy(target(2, "a", release=wanted, name=name)))
    assert world.state.phase == "fetching"


@pytest.mark.parametrize("phase", ["fetching", "choosing", "probing", "trial", "keeping"])
def test_a_downgrade_whose_approval_is_taken_back_ends(phase: str) -> None:
    world = World().install("b", release=2).go(phase, 2, "a", release=1, downgrade=True)
    world.send(r.Deploy(target(3, "a", release=1)))
    world.check()
    assert (world.state.phase, world.running) == ("idle", B)
    assert [report.code for report in world.reports[-2:]] == ["slots.superseded", "slots.downgrade"]


def test_a_downgrade_goes_on_being_one_when_the_metadata_is_not_at_hand_for_a_moment() -> None:
    world = World().install("b", release=2)
    world.releases[A] = 1
    world.go("trial", 2, "a", downgrade=True)
    world.send(r.Deploy(target(3, "a")))
    assert refusal(world) == ("refused", "slots.downgrade", "a")


def test_a_release_learned_late_stays_with_the_model() -> None:
    world = World()
    world.releases[B] = 7
    world.install("b")
    assert world.state.champion is not None
    assert world.state.champion.release == 7
    world.send(r.Deploy(target(2, "b", config=2)))
    assert world.state.champion.release == 7, "a deployment that came before its metadata takes nothing away"
