"""Publishing with deltas: what is made from which versions, what is signed, what boards may ask for, and what stays."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from bundle_maker import make_bundle
from delta_files import moved, weighed_bundle, weights
from typer.testing import CliRunner

from jetfleet_agent.patching import patch
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.chunks import MAX_CHUNK_BYTES
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import Instant
from jetfleet_host.assignments import with_pages
from jetfleet_host.blob_use import referenced_blobs
from jetfleet_host.cli import app
from jetfleet_host.deltas.publishing import read_published
from jetfleet_host.project import CONFIG, Project
from jetfleet_host.publish import find_bundle, publish, published_deltas, served_blobs, withdraw
from jetfleet_host.repository import meta_package


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.init(tmp_path / "fleet")


def bundles(tmp_path: Path, count: int) -> list[Path]:
    """Versions 1, 2, ... of one model, each a small step from the one before."""
    arrays, made = weights(), []
    for number in range(1, count + 1):
        made.append(tmp_path / f"b{number}")
        weighed_bundle(made[-1], str(number), arrays)
        arrays = moved(arrays, 2e-5, seed=number)
    return made


def test_a_new_version_comes_with_a_signed_index_and_deltas_that_boards_can_apply(project: Project, tmp_path: Path) -> None:
    first, second = (publish(project, bundle) for bundle in bundles(tmp_path, 2))
    assert [(row.variant, row.base, row.made.chosen) for row in second.deltas] == [("fp32", "toy:1", "tensor")]
    trust = TrustStore(tmp_path / "board", project.root_file.read_bytes())
    trust.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    target = trust.deltas(second.manifest)
    assert target is not None
    assert trust.deltas(first.manifest) is None
    index = read_published(project.blobs, trust.bundle(second.manifest), target)
    (blob, (source,)), = index.targets.items()
    assert source.size < 0.7 * trust.bundle(second.manifest).blobs[blob].size
    patch(project.blobs.path(source.base), project.blobs.path(source.delta), tmp_path / "out", 1)
    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == blob


def test_the_last_three_versions_are_bases_and_one_more_on_request(project: Project, tmp_path: Path) -> None:
    made = bundles(tmp_path, 5)
    for bundle in made[:4]:
        publish(project, bundle)
    done = publish(project, made[4], deltas_from=["toy:1"])
    assert [row.base for row in done.deltas] == ["toy:4", "toy:3", "toy:2", "toy:1"]
    other = tmp_path / "other"
    weighed_bundle(other, "1", moved(weights(), 1e-5, seed=9), name="sister")
    assert publish(project, other).deltas == (), "another model has no versions yet"
    with pytest.raises(InputError) as unknown:
        publish(project, _next(tmp_path), deltas_from=["toy:77"])
    assert unknown.value.code == "models.unknown"


def _next(tmp_path: Path) -> Path:
    weighed_bundle(tmp_path / "next", "99", moved(weights(), 1e-5, seed=10))
    return tmp_path / "next"


def test_without_deltas_none_are_made(project: Project, tmp_path: Path) -> None:
    first, second = bundles(tmp_path, 2)
    publish(project, first)
    assert publish(project, second, deltas=0).deltas == ()
    assert published_deltas(project) == {}


def test_a_delta_that_saves_too_little_is_not_kept_and_the_table_says_why(project: Project, tmp_path: Path) -> None:
    for version in ("1", "2"):
        make_bundle(tmp_path / version, version=version, weight_bytes=60_000, seed=int(version))
    publish(project, tmp_path / "1")
    (row,) = publish(project, tmp_path / "2").deltas
    assert row.made.chosen is None
    assert row.made.reason.startswith("in full: the least delta has 100%")
    assert published_deltas(project) == {}


def test_boards_may_ask_for_deltas_and_garbage_collection_keeps_them(project: Project, tmp_path: Path) -> None:
    _, second = (publish(project, bundle) for bundle in bundles(tmp_path, 2))
    index = published_deltas(project)[second.manifest]
    (sources,) = read_published(project.blobs, find_bundle(project, "toy", "2"), index).targets.values()
    allowed = with_pages(served_blobs(project)[second.manifest], lambda blob: project.blobs.read(blob, 0, MAX_CHUNK_BYTES))
    needed = {index.index, sources[0].delta, sources[0].table}
    assert needed <= allowed.keys()
    assert needed <= referenced_blobs(project)
    withdraw(project, "toy", "2")
    assert published_deltas(project) == {}
    assert not needed & referenced_blobs(project)


def test_deltas_are_cut_anew_with_their_bundle(project: Project, tmp_path: Path) -> None:
    made = bundles(tmp_path, 2)
    _, second = (publish(project, bundle) for bundle in made)
    config = project.dir / CONFIG
    config.write_text(config.read_text().replace("[delivery]", "[delivery]\nchunk_kb = 16"))
    again = Project.load(project.dir)
    assert publish(again, made[1]).recut
    (sources,) = read_published(again.blobs, find_bundle(again, "toy", "2"), published_deltas(again)[second.manifest]).targets.values()
    assert sources[0].chunk_size == 16 * 1024
    assert again.blobs.size(sources[0].table) is not None


def test_the_command_prints_the_table(project: Project, tmp_path: Path) -> None:
    first, second = bundles(tmp_path, 2)
    publish(project, first)
    done = CliRunner().invoke(app, ["publish", str(second), "--dir", str(project.dir)])
    assert done.exit_code == 0, done.output
    assert "toy:1" in done.output
    assert "tensor, " in done.output
    weighed_bundle(tmp_path / "b3", "3", moved(weights(), 1e-5, seed=5))
    shown = CliRunner().invoke(app, ["publish", str(tmp_path / "b3"), "--dir", str(project.dir), "--json"])
    rows = json.loads(shown.stdout)["deltas"]
    assert {row["base"] for row in rows} == {"toy:1", "toy:2"}
    assert rows[0]["made"]["attempts"][0]["method"] == "tensor"
