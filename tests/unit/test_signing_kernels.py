"""The host's side of a fleet's kernels: what may be signed, what boards then see, and that a garbage collector keeps it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from small_cubins import fill
from typer.testing import CliRunner

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import IncompatibleError, InputError, UntrustedError
from jetfleet_contract.kernel_sets import INTERFACE
from jetfleet_contract.messages import Instant
from jetfleet_host.blob_use import referenced_blobs
from jetfleet_host.cli import app
from jetfleet_host.kernels.building import source_digest
from jetfleet_host.kernels.signed import kernel_blobs, read_signed, sign_kernels, signed_kernels, withdraw_kernels
from jetfleet_host.project import Project
from jetfleet_host.repository import meta_package

ROWS = ((87, 12), (72, 11))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.init(tmp_path / "fleet")


def test_a_signed_set_reaches_the_trust_store_of_a_board(project: Project, tmp_path: Path) -> None:
    found = fill(tmp_path / "cubins", ROWS, source=source_digest())
    done = sign_kernels(project, tmp_path / "cubins")
    assert (done.new, done.waits, done.interface) == (True, False, INTERFACE)
    trust = TrustStore(tmp_path / "board", project.root_file.read_bytes())
    trust.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    target = trust.kernels(INTERFACE)
    assert target is not None
    assert (target,) == signed_kernels(project)
    assert read_signed(project, target) == found
    for blob, info in target.every().items():
        assert project.blobs.size(blob) == info.size
    assert kernel_blobs(project).keys() <= referenced_blobs(project)
    assert not sign_kernels(project, tmp_path / "cubins").new
    withdraw_kernels(project, INTERFACE)
    trust.update(meta_package(project), Instant(1.0, "boot", time.time(), True))
    assert trust.kernels(INTERFACE) is None
    with pytest.raises(InputError, match="no kernels of interface"):
        withdraw_kernels(project, INTERFACE)


def test_what_is_not_of_this_version_is_not_signed(project: Project, tmp_path: Path) -> None:
    fill(tmp_path / "old", ROWS)
    with pytest.raises(IncompatibleError) as caught:
        sign_kernels(project, tmp_path / "old")
    assert caught.value.code == "kernels.source"
    fill(tmp_path / "other", ROWS, source=source_digest(), interface=INTERFACE + 1)
    with pytest.raises(IncompatibleError) as caught:
        sign_kernels(project, tmp_path / "other")
    assert caught.value.code == "kernels.interface"
    fill(tmp_path / "cut", ROWS, source=source_digest())
    path = tmp_path / "cut" / "jetfleet.sm_87.cu12.cubin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UntrustedError) as refused:
        sign_kernels(project, tmp_path / "cut")
    assert refused.value.code == "kernels.digest"
    with pytest.raises(InputError):
        sign_kernels(project, tmp_path / "nothing")
    assert signed_kernels(project) == ()


def test_the_commands(project: Project, tmp_path: Path) -> None:
    fill(tmp_path / "cubins", ROWS, source=source_digest())
    told = CliRunner().invoke(app, ["kernels", "publish", str(tmp_path / "cubins"), "--dir", str(project.dir)])
    assert told.exit_code == 0, told.output
    assert "2 cubins for sm_72, sm_87" in told.stdout
    again = CliRunner().invoke(app, ["kernels", "publish", str(tmp_path / "cubins"), "--dir", str(project.dir), "--json"])
    assert json.loads(again.stdout)["new"] is False
    listed = CliRunner().invoke(app, ["kernels", "signed", "--dir", str(project.dir)])
    assert "interface 1, source" in listed.stdout
    assert listed.stdout.count("sm_") == 2
    asked = CliRunner().invoke(app, ["kernels", "signed", "--dir", str(project.dir), "--json"])
    assert [cubin["sm"] for cubin in json.loads(asked.stdout)[0]["cubins"]] == [87, 72]
    gone = CliRunner().invoke(app, ["kernels", "withdraw", "--dir", str(project.dir), "--json"])
    assert json.loads(gone.stdout) == {"interface": INTERFACE}
    assert "No kernels are signed" in CliRunner().invoke(app, ["kernels", "signed", "--dir", str(project.dir)]).stdout
