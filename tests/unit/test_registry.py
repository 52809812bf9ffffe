"""The models registry: tags, lineage, retiring, comparing, collecting."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from bundle_maker import parts
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import AppSpec, Deployment
from jetfleet_host import lineage, registry
from jetfleet_host.bundles import write_bundle
from jetfleet_host.cli import app
from jetfleet_host.project import Project
from jetfleet_host.publish import find_bundle, publish, published
from jetfleet_host.store import journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Device


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three generations of one model; the first has lost its parent."""
    made = Project.init(tmp_path / "fleet")
    parent = ("toy:0", "sha256:" + "9" * 64)
    for number, version in enumerate(("1", "2", "3")):
        told = {lineage.PARENT_NAME: parent[0], lineage.PARENT_DIGEST: parent[1], lineage.SOURCE: f"sha256:{version * 64}"}
        made_of = parts(tmp_path / "w", version=version, seed=number)
        digest = write_bundle(tmp_path / f"b{version}", **made_of, annotations=told)  # type: ignore[arg-type]
        publish(made, tmp_path / f"b{version}")
        parent = (f"toy:{version}", digest)
    return made


@pytest.fixture
def session(project: Project) -> Iterator[Session]:
    with closing(Database.open(project.database_url)) as database, database.session() as made:
        yield made


def wanted_by(session: Session, project: Project, version: str) -> None:
    session.add(Device(device="gate", key="k", first_seen=0, last_seen=0, birth="", board="b", device_class="c"))
    session.flush()
    spec = AppSpec("reader", find_bundle(project, "toy", version).manifest, "toy", version)
    journal.save_deployment(session, Deployment("gate", 1, 1e12, (spec,)), b"{}", 0.0)


def test_a_tag_moves_and_names_a_version(project: Project, session: Session) -> None:
    first, second = find_bundle(project, "toy", "1"), find_bundle(project, "toy", "2")
    assert registry.tag(session, first, "candidate", 1.0) == ""
    assert registry.tag(session, second, "candidate", 2.0) == "1"
    assert registry.resolve(project, session, "toy@candidate") == second
    assert registry.resolve(project, session, "toy:1") == first
    history = registry.show(project, session, second).history
    assert [(event["what"], event["detail"]) for event in history] == [("tagged", "candidate, was 1")]
    registry.untag(session, "toy", "candidate", 3.0)
    with pytest.raises(InputError, match=r"models\.tag"):
        registry.resolve(project, session, "toy@candidate")


@pytest.mark.parametrize(("text", "code"), [("toy", "models.name"), ("toy:", "models.name"), ("toy:9", "models.unknown"),
                                            ("toy@x", "models.tag"), ("", "models.name")])
def test_names_that_mean_nothing(project: Project, session: Session, text: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        registry.resolve(project, session, text)
    assert caught.value.code == code


def test_releases_count_publications_and_descent_follows_parents(project: Project, session: Session) -> None:
    assert [target.release for target in published(project)] == [1, 2, 3]
    assert registry.descent(project, find_bundle(project, "toy", "3")) == ["toy:2", "toy:1", "toy:0"]
    assert registry.show(project, session, find_bundle(project, "toy", "2")).lineage.source == f"sha256:{'2' * 64}"


def test_what_a_board_should_run_cannot_be_retired(project: Project, session: Session) -> None:
    wanted_by(session, project, "2")
    with pytest.raises(InputError, match="board gate"):
        registry.retire(project, session, find_bundle(project, "toy", "2"), 1.0)
    registry.tag(session, find_bundle(project, "toy", "3"), "next", 1.0)
    with pytest.raises(InputError, match="tagged next"):
        registry.retire(project, session, find_bundle(project, "toy", "3"), 1.0)
    registry.retire(project, session, find_bundle(project, "toy", "1"), 1.0)
    assert [target.version for target in published(project)] == ["2", "3"]


def test_promoting_moves_production(project: Project, session: Session) -> None:
    assert registry.promote(project, session, find_bundle(project, "toy", "1"), 1.0) == ""
    assert registry.promote(project, session, find_bundle(project, "toy", "2"), 2.0) == "1"
    assert registry.resolve(project, session, "toy@production").version == "2"


def test_a_comparison_marks_what_differs(project: Project, session: Session) -> None:
    found = [registry.show(project, session, find_bundle(project, "toy", version)) for version in ("1", "2")]
    rows = {row.what: row for row in registry.diff(*found)}
    assert rows["task"].same
    assert not rows["variant fp32"].same
    assert not rows["source"].same
    assert rows["fp32@onnxruntime:fp32"].a == "top1 1.0000 accepted"


def test_collecting_takes_only_what_nothing_leads_to(project: Project) -> None:
    stray = project.blobs.folder / ("a" * 64)
    young = project.blobs.folder / ("b" * 64)
    stray.write_bytes(b"x" * 100)
    young.write_bytes(b"y")
    long_ago = time.time() - 2 * registry.YOUNG_S
    for path in project.blobs.folder.iterdir():
        if path != young:
            os.utime(path, (long_ago, long_ago))
    assert registry.unused_blobs(project) == {stray: 100}
    folder = str(project.dir)
    said = json.loads(CliRunner().invoke(app, ["models", "gc", "--dry-run", "--dir", folder, "--json"]).output)
    assert (said["bytes"], stray.exists()) == (100, True)
    CliRunner().invoke(app, ["models", "retire", "toy:1", "--dir", folder])
    said = json.loads(CliRunner().invoke(app, ["models", "gc", "--dir", folder, "--json"]).output)
    assert len(said["blobs"]) >= 5  # the stray one, and manifest, spec, evaluation, config, weights, pages of toy:1
    assert not stray.exists()
    for target in published(project):
        assert all((project.blobs.folder / blob).exists() for blob in target.every())


def test_commands_tell_it_all(project: Project) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["models", *arguments, "--dir", str(project.dir)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "toy@production is now" not in run("tag", "toy:3", "candidate")
    assert "toy:3 is in production" in run("promote", "toy@candidate")
    shown = run("show", "toy@production")
    assert "toy:3 <- toy:2 <- toy:1 <- toy:0" in shown
    assert "candidate production" in shown
    assert "candidate production" in run("list")
    assert "* variant fp32" in run("diff", "toy:1", "toy:3")
    assert json.loads(run("show", "toy:1", "--json"))["release"] == 1
    assert "is no more" in run("untag", "toy@candidate")
    for command in ("list", "show", "tag", "untag", "promote", "retire", "diff", "gc"):
        assert "Example" in CliRunner().invoke(app, ["models", command, "--help"]).output
