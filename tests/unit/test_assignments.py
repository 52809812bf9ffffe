"""A board may want the blobs of bundles that a deployment of its own has named, and no others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, page_digests, table_of
from jetfleet_contract.messages import AppSpec, Deployment
from jetfleet_contract.rollout import planned
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.trust import BundleTarget
from jetfleet_host.assignments import Assignments, with_pages
from jetfleet_host.store import journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device


def blob(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


OLD, NEW, OTHER = blob("old"), blob("new"), blob("other")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")


def deploy(database: Database, device: str, seq: int, bundle: str, rollout: str) -> None:
    spec = AppSpec("text", bundle, "text", str(seq))
    deployment = Deployment(device, seq, 2e9, (spec,), rollout)
    with database.session() as session:
        if session.get(Device, device) is None:
            session.add(Device(device=device, key="00", first_seen=1.0, last_seen=1.0))
            session.flush()
        journal.add_rollout(session, planned(Plan(rollout, "text", bundle, "text", str(seq), ((device,),))), spec, False, 1.0)
        journal.add_issued(session, rollout, "forward", deployment, bundle, None, 1.0)
        journal.save_deployment(session, deployment, b"", 1.0)


def test_only_what_was_named_to_the_board(database: Database) -> None:
    deploy(database, "cam-01", 1, OLD, "r1")
    assignments = Assignments(database)
    assignments.offer({OLD: {OLD: 65536, blob("old-w"): 1024}, OTHER: {OTHER: 65536}})
    assert assignments.allowed("cam-01", blob("old-w"))
    assert not assignments.allowed("cam-01", OTHER)
    assert not assignments.allowed("cam-02", OLD)
    assert (assignments.chunk_size(OLD), assignments.chunk_size(blob("old-w"))) == (65536, 1024)


def test_an_older_bundle_stays_allowed_and_a_new_one_counts_once_it_was_announced(database: Database) -> None:
    deploy(database, "cam-01", 1, OLD, "r1")
    assignments = Assignments(database)
    assignments.offer({OLD: {OLD: 65536}, NEW: {NEW: 65536}})
    assert not assignments.allowed("cam-01", NEW)
    deploy(database, "cam-01", 2, NEW, "r2")
    assignments.changed("cam-01")
    assert assignments.allowed("cam-01", NEW)
    assert assignments.allowed("cam-01", OLD)


def test_a_withdrawn_bundle_is_no_longer_given_out(database: Database) -> None:
    deploy(database, "cam-01", 1, OLD, "r1")
    assignments = Assignments(database)
    assignments.offer({})
    assert not assignments.allowed("cam-01", OLD)


def test_the_pages_of_chunk_tables_belong_to_the_bundle() -> None:
    chunk = b"x" * 1024
    tabled = table_of((chunk for _ in range(page_digests(1024) + 1)), chunk_size=1024)
    pages = dict(tabled.pages)
    small = BlobInfo(size=3 * CHUNK_BYTES, table=blob("page"))
    target = BundleTarget("text", "1", OLD, BlobInfo(size=100), {tabled.blob: tabled.info, blob("small"): small})
    found = with_pages(target.every(), pages.__getitem__)
    assert found.keys() == {OLD, tabled.blob, *pages, blob("small"), blob("page")}
    assert found[tabled.blob] == 1024
    assert all(found[page] == CHUNK_BYTES for page in pages)  # a page travels in one piece
    assert len(pages) == 3  # the page that lists the pages, and the two that it lists
