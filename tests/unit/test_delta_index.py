"""The signed index of deltas: where it stands in the metadata, what it may say, and which way a board takes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from signed_repository import NOW, SignedRepository
from tuf.api.metadata import TargetFile

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.deltas import MAX_SOURCES_A_BLOB, DeltaIndex, DeltaSource, decode_index, route
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import Instant, encode
from jetfleet_contract.trust import BundleTarget, read_delta_target, target_field

MANIFEST, WEIGHTS, BASE, DELTA, OTHER = ("ab" * 32, "cd" * 32, "11" * 32, "22" * 32, "33" * 32)
BUNDLE = BundleTarget("toy", "2", MANIFEST, BlobInfo(100), {WEIGHTS: BlobInfo(60_000)})


def index(**changes: object) -> bytes:
    source = msgspec.structs.replace(DeltaSource(BASE, DELTA, 5000, "tensor"), **changes)
    return encode(DeltaIndex(MANIFEST, {WEIGHTS: (source,)}))


def test_the_boards_trust_finds_the_index_of_a_bundle(tmp_path: Path) -> None:
    repo = SignedRepository()
    repo.add_bundle(MANIFEST, "toy", "2")
    repo.add_bundle(OTHER, "toy", "1")
    repo.targets.targets["delta/toy/2"] = TargetFile(700, {"sha256": DELTA}, "delta/toy/2", {"custom": target_field(BlobInfo(700), {})})
    repo.commit()
    store = TrustStore(tmp_path / "trust", repo.roots[0])
    store.update(repo.package(), Instant(1.0, "boot", NOW, True))
    found = store.deltas(MANIFEST)
    assert found is not None
    assert (found.index, found.info.size) == (DELTA, 700)
    assert store.deltas(OTHER) is None
    again = TrustStore(tmp_path / "trust", repo.roots[0])
    assert again.deltas(MANIFEST) == found


@pytest.mark.parametrize("path", ["delta/toy", "delta/toy/2/3", "delta/../2", "bundle/toy/2", "delta/toy/"])
def test_odd_paths_are_no_index(path: str) -> None:
    with pytest.raises(MalformedError):
        read_delta_target(path, DELTA, target_field(BlobInfo(700), {}))


def test_a_delta_target_that_names_blobs_is_refused() -> None:
    with pytest.raises(MalformedError, match="names blobs"):
        read_delta_target("delta/toy/2", DELTA, target_field(BlobInfo(700), {OTHER: BlobInfo(1)}))


def test_an_index_comes_back_as_it_was_written() -> None:
    assert decode_index(index(), BUNDLE).targets[WEIGHTS][0] == DeltaSource(BASE, DELTA, 5000, "tensor")


@pytest.mark.parametrize("changes", [
    {"base": "zz"}, {"delta": "../../etc/passwd"}, {"size": 0}, {"size": 60_000}, {"size": -1}, {"size": 1 << 60}, {"chunk_size": 1},
    {"base": WEIGHTS}, {"delta": WEIGHTS}, {"table": "11"}, {"table": OTHER},
])
def test_what_an_index_must_not_say(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        decode_index(index(**changes), BUNDLE)


def test_an_index_of_another_bundle_or_with_strange_blobs_is_refused() -> None:
    source = (DeltaSource(BASE, DELTA, 5000, "tensor"),)
    many = DeltaIndex(MANIFEST, {WEIGHTS: source * (MAX_SOURCES_A_BLOB + 1)})
    for bad in (DeltaIndex(OTHER, {}), DeltaIndex(MANIFEST, {OTHER: source}), many):
        with pytest.raises(MalformedError) as caught:
            decode_index(encode(bad), BUNDLE)
        assert caught.value.code == "delta.index"


def test_the_cheapest_delta_whose_base_is_there_is_taken() -> None:
    near, far = DeltaSource(BASE, DELTA, 5000, "tensor"), DeltaSource(OTHER, "44" * 32, 900, "chunks")
    made = DeltaIndex(MANIFEST, {WEIGHTS: (near, far)})
    assert route(made, WEIGHTS, lambda _blob: True).source == far
    assert route(made, WEIGHTS, lambda blob: blob == BASE).source == near
    assert route(made, WEIGHTS, lambda _blob: False).source is None
    assert route(made, MANIFEST, lambda _blob: True).source is None
    assert route(None, WEIGHTS, lambda _blob: True).source is None
