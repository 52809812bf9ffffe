"""Who holds which key: offline roots, ceremonies with a threshold, the builder and the control machine, checks and expiries."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata
from typer.testing import CliRunner

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.messages import Deployment, Instant
from jetfleet_host import ceremony, custody
from jetfleet_host.ceremony import Wish
from jetfleet_host.cli import app
from jetfleet_host.handover import accept
from jetfleet_host.keys import ROLES, SERVE_ROLES, KeyFolder, make_key
from jetfleet_host.project import Project
from jetfleet_host.publish import publish, published
from jetfleet_host.repository import meta_package, refresh_timestamp
from jetfleet_host.serve import only_server
from jetfleet_host.signing import sign_deployment


def now(*, after: float = 0.0) -> Instant:
    return Instant(1.0, "boot", time.time() + after, True)


def board(project: Project, folder: Path) -> TrustStore:
    store = TrustStore(folder, project.root_file.read_bytes())
    store.update(meta_package(project), now())
    return store


def code_of(call: Any) -> str:
    with pytest.raises(JetfleetError) as caught:
        call()
    return caught.value.code


class Holders:
    """A project whose root takes `threshold` of `count` keys, each key on a stick of its own."""

    def __init__(self, folder: Path, count: int = 3, threshold: int = 2) -> None:
        self.folder = folder
        self.project = Project.init(folder / "fleet", root_keys=count, root_threshold=threshold)
        self.sticks = list(custody.take_out(self.project, "root", folder / "safe", keep=False))

    def sign(self, draft: Path, *numbers: int) -> None:
        for number in numbers:
            ceremony.sign(draft, self.sticks[number], self.project.repository.load().root)

    def draft(self, **wish: Any) -> Path:
        path = self.folder / "next-root.json"
        path.write_bytes(ceremony.draft(self.project, Wish(**wish), time.time()))
        return path

    def commit(self, draft: Path) -> int:
        return ceremony.commit(self.project, [draft.read_bytes()])


@pytest.fixture
def holders(tmp_path: Path) -> Holders:
    return Holders(tmp_path)


# --- offline -----------------------------------------------------------------------------------------------


def test_serve_and_publish_work_without_the_root_keys(holders: Holders, tmp_path: Path) -> None:
    project = holders.project
    assert project.keys.held("root") == ()
    trust = board(project, tmp_path / "board")
    make_bundle(tmp_path / "b")
    done = publish(project, tmp_path / "b")
    assert refresh_timestamp(project, time.time() + 6 * 86_400)
    assert trust.update(meta_package(project), now(after=6 * 86_400))
    assert trust.bundle(done.manifest).version == "1"
    project.rotate("deployment")
    for role in ("root", "timestamp"):
        assert code_of(lambda r=role: project.rotate(r)) == "keys.missing"
    assert {row.place for row in custody.key_table(project) if row.role == "root"} == {str(tmp_path / "safe")}


def test_one_stick_of_two_is_not_enough(holders: Holders) -> None:
    shutil.copy(holders.sticks[0], holders.project.keys_dir)
    assert code_of(lambda: holders.project.rotate("timestamp")) == "keys.threshold"
    shutil.copy(holders.sticks[2], holders.project.keys_dir)
    holders.project.rotate("timestamp")
    holders.project.rotate("root")
    root = holders.project.repository.load().root.signed.roles["root"]
    assert (len(root.keyids), root.threshold) == (3, 2)


def test_taking_out(tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    custody.take_out(project, "targets", tmp_path / "copy", keep=True, passphrase=b"long")
    [path] = (tmp_path / "copy").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert project.keys.held("targets")
    custody.take_out(project, "targets", tmp_path / "copy", keep=True, passphrase=b"long")  # again, as after a kill
    for call, code in ((lambda: custody.take_out(project, "targets", tmp_path / "copy", keep=False), "keys.exists"),
                       (lambda: custody.take_out(project, "targets", project.keys_dir / "x", keep=False), "keys.place"),
                       (lambda: custody.take_out(project, "king", tmp_path / "x", keep=False), "keys.role")):
        assert code_of(call) == code
    assert project.keys.held("targets")
    custody.take_out(project, "targets", tmp_path / "moved", keep=False)
    assert code_of(lambda: custody.take_out(project, "targets", tmp_path / "x", keep=False)) == "keys.missing"
    make_bundle(tmp_path / "b")
    assert code_of(lambda: publish(project, tmp_path / "b")) == "keys.missing"


@pytest.mark.parametrize(("keys", "threshold"), [(0, 0), (1, 2), (2, 0), (17, 1), (-1, -1)])
def test_impossible_thresholds(tmp_path: Path, keys: int, threshold: int) -> None:
    assert code_of(lambda: Project.init(tmp_path / "f", root_keys=keys, root_threshold=threshold)) == "keys.threshold"
    assert not (tmp_path / "f").exists()


# --- ceremony ----------------------------------------------------------------------------------------------


def test_a_board_that_slept_through_five_ceremonies_and_a_change_of_threshold(holders: Holders, tmp_path: Path) -> None:
    trust = board(holders.project, tmp_path / "board")
    for turn in range(5):
        publics = [path.name.split(".")[1] for path in holders.sticks]
        fresh, path = make_key(tmp_path / f"holder-{turn}", "root", None)
        draft = holders.draft(add=(("root", fresh),), remove=(("root", publics[0]),), thresholds={"root": 3 if turn == 2 else 2})
        holders.sticks.append(path)
        holders.sign(draft, 0, 1, 2, 3)
        assert holders.commit(draft) == turn + 2
        del holders.sticks[0]
    assert trust.update(meta_package(holders.project), now())
    assert trust.versions["root"] == 6
    assert board(holders.project, tmp_path / "new").versions == trust.versions
    assert holders.project.root_file.read_bytes() == (holders.project.repo_dir / "6.root.json").read_bytes()


def test_the_old_and_the_new_threshold_both_count(holders: Holders, tmp_path: Path) -> None:
    fresh = [make_key(tmp_path / f"new-{number}", "root", None) for number in range(3)]
    old = [path.name.split(".")[1] for path in holders.sticks]
    draft = holders.draft(add=tuple(("root", public) for public, _ in fresh), remove=tuple(("root", public) for public in old))
    root = holders.project.repository.load().root
    before = meta_package(holders.project)
    for key in (holders.sticks[0], fresh[0][1], fresh[1][1], holders.sticks[0]):  # twice by one key is once
        ceremony.sign(draft, key, root)
        assert code_of(lambda: holders.commit(draft)) == "trust.signature"
    assert ceremony.standing(draft.read_bytes(), root).signed == {"old": (1, 2), "new": (2, 2)}
    assert meta_package(holders.project) == before
    holders.sign(draft, 2)
    assert ceremony.standing(draft.read_bytes(), root).complete
    assert holders.commit(draft) == 2
    trust = board(holders.project, tmp_path / "board")
    assert trust.versions["root"] == 2
    package = meta_package(holders.project)
    assert holders.commit(draft) == 2, "again is fine"
    assert meta_package(holders.project) == package
    stale = draft.read_bytes()
    for key in (fresh[0][1], fresh[1][1]):
        shutil.copy(key, holders.project.keys_dir)
    holders.project.rotate("snapshot")
    assert code_of(lambda: ceremony.commit(holders.project, [stale])) == "trust.rollback"


def test_holders_may_sign_copies(holders: Holders, tmp_path: Path) -> None:
    draft = holders.draft(days=100)
    copies = [Path(shutil.copy(draft, tmp_path / f"copy-{number}")) for number in range(2)]
    holders.sign(copies[0], 0)
    holders.sign(copies[1], 1)
    other = holders.draft(days=101)
    holders.sign(other, 0, 1)
    assert code_of(lambda: ceremony.commit(holders.project, [copies[0].read_bytes(), other.read_bytes()])) == "trust.mix"
    assert ceremony.commit(holders.project, [copy.read_bytes() for copy in copies]) == 2


def test_what_a_holder_is_shown(holders: Holders, tmp_path: Path) -> None:
    fresh, _ = make_key(tmp_path / "x", "targets", None)
    old = holders.project.repository.load().root
    gone = old.signed.keys[old.signed.roles["targets"].keyids[0]].keyval["public"]
    draft = holders.draft(add=(("targets", fresh),), remove=(("targets", gone),), thresholds={"root": 3}, days=30).read_bytes()
    told = "\n".join(ceremony.standing(draft, old).changes)
    for words in (f"targets: key {fresh} is added", f"targets: key {gone} is removed", "root: 2 signature(s) were asked for, 3 will be"):
        assert words in told
    alone = ceremony.standing(draft, None)
    assert not alone.complete
    assert fresh in "\n".join(alone.changes)


def test_a_draft_changed_after_it_was_signed_does_not_count(holders: Holders) -> None:
    draft = holders.draft(days=100)
    holders.sign(draft, 0, 1)
    changed = Metadata.from_bytes(draft.read_bytes())
    changed.signed.roles["root"].threshold = 1
    draft.write_bytes(changed.to_bytes())
    assert code_of(lambda: holders.commit(draft)) == "trust.signature"


def test_new_keys_of_other_roles_have_to_be_here(holders: Holders, tmp_path: Path) -> None:
    before = meta_package(holders.project)
    fresh, path = make_key(tmp_path / "new", "timestamp", None)
    old = holders.project.keys.held("timestamp")[0]
    draft = holders.draft(add=(("timestamp", fresh),), remove=(("timestamp", old),))
    holders.sign(draft, 0, 2)
    assert code_of(lambda: holders.commit(draft)) == "keys.missing"
    assert meta_package(holders.project) == before
    shutil.copy(path, holders.project.keys_dir)
    assert holders.commit(draft) == 2
    assert board(holders.project, tmp_path / "board").versions["root"] == 2


@pytest.mark.parametrize(("wish", "code"), [
    ({"thresholds": {"root": 4}}, "keys.threshold"), ({"thresholds": {"king": 1}}, "keys.role"),
    ({"add": (("root", "xyz"),)}, "keys.bad"), ({"remove": (("root", "ab" * 32),)}, "keys.unknown"),
    ({"add": (("deployment", "ab" * 32),)}, "keys.role"), ({"days": 0}, "keys.expiry"), ({"days": 10_000}, "keys.expiry"),
])
def test_wishes_that_make_no_root(holders: Holders, wish: dict[str, Any], code: str) -> None:
    assert code_of(lambda: holders.draft(**wish)) == code


def test_strangers_and_wrong_files(holders: Holders, tmp_path: Path) -> None:
    draft = holders.draft()
    _, stranger = make_key(tmp_path / "stranger", "root", None)
    root = holders.project.repository.load().root
    assert code_of(lambda: ceremony.sign(draft, stranger, root)) == "keys.stranger"
    assert code_of(lambda: ceremony.sign(tmp_path / "none", stranger, root)) == "keys.draft"
    assert code_of(lambda: ceremony.sign(draft, tmp_path / "none", root)) == "keys.missing"
    _, secret = make_key(tmp_path / "secret", "root", b"long")
    assert code_of(lambda: ceremony.sign(draft, secret, root)) == "keys.passphrase"
    assert code_of(lambda: ceremony.sign(draft, secret, root, b"wrong")) == "keys.passphrase"
    for data in (b"", b"{}", b"x" * 100_000, (holders.project.repo_dir / "timestamp.json").read_bytes()):
        with pytest.raises(MalformedError):
            ceremony.commit(holders.project, [data])


@given(st.binary(max_size=300))
def test_any_bytes_as_a_draft(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ceremony.read_draft(data)


# --- builder and control machine ---------------------------------------------------------------------------


def test_builder_and_control_machine(tmp_path: Path) -> None:
    builder = Project.init(tmp_path / "builder")
    make_bundle(tmp_path / "one")
    first = publish(builder, tmp_path / "one")
    trust = board(builder, tmp_path / "board")
    control = Project.load(custody.split(builder, tmp_path / "control"))
    assert {role for role in ROLES if control.keys.held(role)} == set(SERVE_ROLES)
    assert {role for role in ROLES if builder.keys.held(role)} == {"root", "targets"}
    assert {path.stat().st_mode & 0o777 for path in control.keys_dir.glob("*.pem")} == {0o600}
    assert refresh_timestamp(control, time.time() + 6 * 86_400)
    assert published(control)[0].manifest == first.manifest

    make_bundle(tmp_path / "two", version="2")
    second = publish(builder, tmp_path / "two")
    assert (first.waits, second.waits) == (False, True)
    assert not publish(builder, tmp_path / "two").new
    make_bundle(tmp_path / "twin", version="2", seed=9)
    assert code_of(lambda: publish(builder, tmp_path / "twin")) == "publish.version-taken"
    make_bundle(tmp_path / "three", version="3")
    third = publish(builder, tmp_path / "three")
    done = accept(control, builder.dir)
    assert done.new
    assert done.blobs > 0
    assert not accept(control, builder.dir).new
    assert trust.update(meta_package(control), now())
    assert [trust.bundle(one.manifest).version for one in (first, second, third)] == ["1", "2", "3"]
    deployment = Deployment("gate-7", 1, time.time() + 60, ())
    assert trust.deployment(sign_deployment(control, deployment), "gate-7", 0, "", now()) == deployment
    assert code_of(lambda: sign_deployment(builder, deployment)) == "keys.missing"
    assert code_of(lambda: refresh_timestamp(builder, time.time() + 6 * 86_400)) == "keys.missing"
    make_bundle(tmp_path / "four", version="4")
    assert code_of(lambda: publish(control, tmp_path / "four")) == "keys.missing"


def test_a_handover_is_believed_by_its_signature_and_hashes_alone(tmp_path: Path) -> None:
    builder = Project.init(tmp_path / "builder")
    control = Project.load(custody.split(builder, tmp_path / "control"))
    assert code_of(lambda: accept(control, builder.dir)) == "handover.none"
    assert code_of(lambda: accept(control, tmp_path / "nowhere")) == "handover.none"
    make_bundle(tmp_path / "one")
    done = publish(builder, tmp_path / "one")
    before = meta_package(control)
    stranger = Project.init(tmp_path / "stranger")
    publish(Project.load(_without_serve_keys(stranger, tmp_path / "elsewhere")), tmp_path / "one")
    assert code_of(lambda: accept(control, stranger.dir)) == "trust.signature"
    victim = builder.blobs.path(done.manifest)
    control.blobs.path(done.manifest).unlink()
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + b"!")
    assert code_of(lambda: accept(control, builder.dir)) == "bundle.flipped"
    victim.unlink()
    assert code_of(lambda: accept(control, builder.dir)) == "handover.incomplete"
    assert meta_package(control) == before
    victim.write_bytes(good)
    old = (builder.repo_dir / "handover.targets.json").read_bytes()
    make_bundle(tmp_path / "two", version="2")
    publish(builder, tmp_path / "two")
    accept(control, builder.dir)
    (builder.repo_dir / "handover.targets.json").write_bytes(old)
    assert code_of(lambda: accept(control, builder.dir)) == "trust.rollback"


def _without_serve_keys(project: Project, folder: Path) -> Path:
    custody.split(project, folder)
    return project.dir


def test_split_mistakes(tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert code_of(lambda: custody.split(project, tmp_path / "full")) == "project.not-empty"
    with only_server(project.dir):
        assert code_of(lambda: custody.split(project, tmp_path / "control")) == "serve.running"
    custody.split(project, tmp_path / "control2")
    assert code_of(lambda: custody.split(project, tmp_path / "control3")) == "keys.missing"


# --- checks ------------------------------------------------------------------------------------------------


def test_findings(tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    at = time.time()
    assert {f.code for f in custody.findings(project, at)} == {"keys.online-root", "keys.online-targets", "keys.threshold-one"}
    next(project.keys_dir.glob("targets.*")).chmod(0o644)
    project.keys.create("snapshot")
    later = {f.code: f.level for f in custody.findings(project, at + 6 * 86_400)}
    assert later["keys.mode"] == "fail"
    assert later["keys.unused"] == later["keys.expires-soon"] == "warn"
    assert {f.code: f.level for f in custody.findings(project, at + 8 * 86_400)}["keys.expired"] == "fail"


def test_a_control_machine_with_a_threshold_has_nothing_to_find(tmp_path: Path) -> None:
    builder = Project.init(tmp_path / "builder", root_keys=2, root_threshold=2)
    control = Project.load(custody.split(builder, tmp_path / "control"))
    assert custody.findings(control, time.time()) == ()


def test_a_file_of_another_name_is_no_key(tmp_path: Path) -> None:
    for name in ("root.backup.pem", "root.pem", f"root.{'ab' * 32}.old.pem", f"root.{'AB' * 32}.pem"):
        (tmp_path / name).touch()
    assert KeyFolder(tmp_path).held("root") == ()


# --- command line ------------------------------------------------------------------------------------------


def test_a_ceremony_on_the_command_line(tmp_path: Path) -> None:
    folder, safe = str(tmp_path / "fleet"), str(tmp_path / "safe")
    (tmp_path / "pass").write_text("correct horse\n")
    protected = ["--passphrase-file", str(tmp_path / "pass")]

    def run(*arguments: str, json_: bool = True) -> Any:
        result = CliRunner().invoke(app, [*arguments, *(["--json"] if json_ else [])])
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        assert "PRIVATE" not in result.output
        assert "correct horse" not in result.output
        return json.loads(result.output) if json_ else result.output

    run("init", folder, "--root-keys", "2", "--root-threshold", "2")
    sticks = run("keys", "offline", "root", "--to", safe, "--dir", folder, *protected)
    third = run("keys", "new", "root", "--to", str(tmp_path / "third"), *protected)
    draft = str(tmp_path / "next.json")
    drafted = run("keys", "root-draft", "--add", f"root={third['public']}", "--out", draft, "--dir", folder)
    assert drafted["signed"] == {"old": [0, 2], "new": [0, 2]}
    refused = CliRunner().invoke(app, ["keys", "sign", draft, "--key", sticks[0], *protected], input="n\n")
    assert refused.exit_code == 1
    root = str(tmp_path / "fleet/device/root.json")
    assert "is added" in run("keys", "sign", draft, "--key", sticks[0], "--root", root, "--yes", *protected, json_=False)
    signed = run("keys", "sign", draft, "--key", sticks[1], "--dir", folder, "--yes", *protected)
    assert signed["complete"]
    assert run("keys", "root-commit", draft, "--dir", folder)["version"] == 2
    rows = run("keys", "list", "--dir", folder)
    assert [(row["threshold"], row["keys"], row["held"]) for row in rows if row["role"] == "root"] == [(2, 3, False)] * 3
    assert "2 of 3" in run("keys", "list", "--dir", folder, json_=False)
    assert {f["code"] for f in run("keys", "check", "--dir", folder)} == {"keys.online-targets"}
    made = run("keys", "split", "--serve", str(tmp_path / "control"), "--dir", folder)
    make_bundle(tmp_path / "b")
    assert "jetfleet accept" in run("publish", str(tmp_path / "b"), "--dir", folder, json_=False)
    assert run("accept", folder, "--dir", made["serve"])["new"]
    for command in ("list", "check", "rotate", "new", "offline", "export", "split", "root-draft", "sign", "root-commit"):
        assert "Example" in CliRunner().invoke(app, ["keys", command, "--help"]).output


@pytest.mark.parametrize("arguments", [["--add", "root"], ["--threshold", "root=many"], ["--remove", "=x", "--add", "root="]])
def test_mistakes_in_a_wish(tmp_path: Path, arguments: list[str]) -> None:
    Project.init(tmp_path / "fleet")
    result = CliRunner().invoke(app, ["keys", "root-draft", *arguments, "--dir", str(tmp_path / "fleet"), "--out", str(tmp_path / "o")])
    assert isinstance(result.exception, (InputError, UntrustedError))
    assert not (tmp_path / "o").exists()
