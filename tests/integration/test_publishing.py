"""From a bundle folder to a board's trust through the real command line, with several writers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from bundle_maker import make_bundle

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.messages import AppSpec, Deployment, Instant
from jetfleet_host.bundles import digest_file
from jetfleet_host.project import Project
from jetfleet_host.publish import published
from jetfleet_host.repository import meta_package
from jetfleet_host.signing import sign_deployment


def _jetfleet(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", "from jetfleet_host.cli import main; main()", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def _done(process: subprocess.Popen[str]) -> dict[str, object]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    loaded: dict[str, object] = json.loads(output)
    return loaded


def test_from_init_to_a_deployment_on_a_board(tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    _done(_jetfleet("init", folder, "--json"))
    make_bundle(tmp_path / "b")
    done = _done(_jetfleet("publish", str(tmp_path / "b"), "--dir", folder, "--json"))
    project = Project.load(tmp_path / "fleet")
    now = Instant(1.0, "boot", time.time(), True)
    trust = TrustStore(tmp_path / "board", project.root_file.read_bytes())
    assert trust.update(meta_package(project), now)
    target = trust.bundle(str(done["manifest"]))
    deployment = Deployment("gate-7", 1, now.wall + 60, (AppSpec("ocr", target.manifest, target.name, target.version),))
    assert trust.deployment(sign_deployment(project, deployment), "gate-7", 0, "", now) == deployment


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    project = Project.init(tmp_path / "fleet")
    first = TrustStore(tmp_path / "board", project.root_file.read_bytes())
    first.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    for version in ("1", "2", "3"):
        make_bundle(tmp_path / version, version=version, weight_bytes=300_000)
    writers = [_jetfleet("publish", str(tmp_path / version), "--dir", folder, "--json") for version in ("1", "2", "3")]
    writers.append(_jetfleet("keys", "rotate", "timestamp", "--dir", folder, "--json"))
    while any(writer.poll() is None for writer in writers):  # a reader in between always finds a whole package
        first.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    for writer in writers:
        _done(writer)
    first.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    assert [target.version for target in published(project)] == ["1", "2", "3"]
    for target in published(project):
        for blob in first.bundle(target.manifest).every():
            assert digest_file(project.blobs.path(blob)) == f"sha256:{blob}"


def test_an_error_has_its_exit_code_and_json(tmp_path: Path) -> None:
    process = _jetfleet("models", "--dir", str(tmp_path / "nowhere"), "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert json.loads(output)["error"]["code"] == "project.not-found"
    assert "jetfleet init" in errors
