"""Attacks on the board's idea of time: set back, set forward, absurd, or not set at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from signed_repository import DAY, NOW, SignedRepository, when
from trusting_board import MANIFEST, at, refused

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_agent.supervisor.trust_floor import BUILD_TIME
from jetfleet_contract.errors import UntrustedError
from jetfleet_contract.messages import Command, Deployment


def test_an_untrusted_clock_neither_blocks_nor_opens(repo: SignedRepository, tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "t", repo.roots[0])
    assert store.clock_floor == BUILD_TIME
    assert store.update(repo.package(), at(4e9, trusted=False))
    assert store.clock_floor == NOW
    repo.timestamp.expires = when(NOW - 1)  # past by the floor, though the clock says 1970
    repo.commit_timestamp()
    refused(store, repo.package(), "trust.expired", at(0.0, trusted=False))


def test_a_trusted_clock_set_back_does_not_revive_what_has_expired(repo: SignedRepository, store: TrustStore) -> None:
    repo.signed_at = NOW + 20 * DAY
    repo.timestamp.expires = when(NOW + 27 * DAY)
    repo.commit()
    assert store.update(repo.package(), at(NOW + 20 * DAY))
    repo.timestamp.expires = when(NOW + 10 * DAY)
    repo.commit_timestamp()
    refused(store, repo.package(), "trust.expired", at(NOW))


def test_metadata_from_the_future_is_refused_by_a_trusted_clock(repo: SignedRepository, store: TrustStore) -> None:
    repo.signed_at = NOW + 3 * DAY
    repo.commit()
    refused(store, repo.package(), "trust.future")
    assert store.clock_floor == NOW


def test_a_strict_board_takes_nothing_new_until_its_clock_is_set(repo: SignedRepository, store: TrustStore) -> None:
    """The policy for boards without a battery-backed clock: a withheld, expired package is not even looked at."""
    strict = TrustStore(store._folder, store._pinned, "strict")
    repo.commit()
    refused(strict, repo.package(), "trust.clock", at(NOW, trusted=False))
    deployment, command = Deployment("gate-7", 5, NOW + 60.0, ()), Command("gate-7", 5, NOW + 60.0, "restart")
    for call in (lambda: strict.deployment(repo.deploy(deployment), "gate-7", 4, "", at(NOW, trusted=False)),
                 lambda: strict.command(repo.order(command), "gate-7", at(NOW, trusted=False))):
        with pytest.raises(UntrustedError) as caught:
            call()
        assert caught.value.code == "trust.clock"
    assert strict.deployment(repo.deploy(deployment), "gate-7", 5, "", at(NOW, trusted=False)) == deployment  # what runs goes on
    assert strict.bundle(MANIFEST)
    assert strict.update(repo.package(), at())
    assert strict.command(repo.order(command), "gate-7", at()) == command


@pytest.mark.parametrize("wall", [float("nan"), float("inf"), -1e300, 1e300])
def test_absurd_clocks_do_not_crash(repo: SignedRepository, tmp_path: Path, wall: float) -> None:
    store = TrustStore(tmp_path / "t", repo.roots[0])
    try:
        store.update(repo.package(), at(wall))
    except UntrustedError as error:
        assert error.code == "trust.expired"  # noqa: PT017
