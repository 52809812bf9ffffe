"""What every test of an attack begins with: a repository in memory, and a board that trusts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from signed_repository import SignedRepository
from trusting_board import MANIFEST, at

from jetfleet_agent.supervisor.trust import TrustStore


@pytest.fixture
def repo() -> SignedRepository:
    made = SignedRepository()
    made.add_bundle(MANIFEST)
    made.commit()
    return made


@pytest.fixture
def store(repo: SignedRepository, tmp_path: Path) -> TrustStore:
    store = TrustStore(tmp_path / "trust", repo.roots[0])
    assert store.update(repo.package(), at())
    return store
