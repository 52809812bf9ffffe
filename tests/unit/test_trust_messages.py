"""Deployments, commands and the board's own signature: who may say what to whom, once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from signed_repository import DAY, NOW, SignedRepository, key_hex

from jetfleet_agent.supervisor.identity import Identity, verify_ed25519
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Ack, AppSpec, Birth, Capability, Command, Deployment, Envelope, Instant, Source, decode, encode
from jetfleet_contract.trust import check_deployment, message_digest, unseal

APP = AppSpec("ocr", "ab" * 32, "toy", "1")
GOOD = Deployment("gate-7", 5, NOW + DAY, (APP,))


def at(wall: float = NOW, *, trusted: bool = True) -> Instant:
    return Instant(10.0, "boot", wall, trusted)


@pytest.fixture
def repo() -> SignedRepository:
    return SignedRepository()


@pytest.fixture
def store(repo: SignedRepository, tmp_path: Path) -> TrustStore:
    store = TrustStore(tmp_path / "trust", repo.roots[0])
    store.update(repo.package(), at())
    return store


def code_of(call: Any) -> str:
    with pytest.raises(JetfleetError) as caught:
        call()
    return caught.value.code


# --- deployments -------------------------------------------------------------------------------------------


def test_good_deployment(repo: SignedRepository, store: TrustStore) -> None:
    assert store.deployment(repo.deploy(GOOD), "gate-7", 4, "x", at()) == GOOD


def test_before_any_metadata_nothing_counts(repo: SignedRepository, tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "t", repo.roots[0])
    assert code_of(lambda: store.deployment(repo.deploy(GOOD), "gate-7", 0, "", at())) == "trust.no-metadata"


def test_seq_rules(repo: SignedRepository, store: TrustStore) -> None:
    data = repo.deploy(GOOD)
    other = repo.deploy(msgspec.structs.replace(GOOD, tags={"a": "b"}))
    assert code_of(lambda: store.deployment(data, "gate-7", 6, "", at())) == "trust.seq-lower"
    assert store.deployment(data, "gate-7", 5, message_digest(GOOD), at()) == GOOD
    assert store.deployment(data, "gate-7", 5, "", at()) == GOOD
    assert code_of(lambda: store.deployment(other, "gate-7", 5, message_digest(GOOD), at())) == "trust.seq-fork"
    for seq in (0, -1, 1 << 53):
        bad = repo.deploy(msgspec.structs.replace(GOOD, seq=seq))
        assert code_of(lambda d=bad: store.deployment(d, "gate-7", -5, "", at())) == "trust.seq"


def test_signing_the_same_deployment_with_a_new_key_is_no_fork(repo: SignedRepository, store: TrustStore) -> None:
    digest = message_digest(GOOD)
    old = repo.deployment
    repo.deployment = CryptoSigner.generate_ed25519()
    repo.targets.unrecognized_fields["x-jetfleet"]["deployment"] = [key_hex(repo.deployment)]
    repo.commit()
    store.update(repo.package(), at())
    assert store.deployment(repo.deploy(GOOD), "gate-7", 5, digest, at()) == GOOD
    assert code_of(lambda: store.deployment(repo.deploy(GOOD, by=old), "gate-7", 5, digest, at())) == "trust.unknown-key"


def test_expiry(repo: SignedRepository, store: TrustStore) -> None:
    late = at(NOW + DAY)
    assert code_of(lambda: store.deployment(repo.deploy(GOOD), "gate-7", 4, "", late)) == "trust.expired"
    assert store.deployment(repo.deploy(GOOD), "gate-7", 5, message_digest(GOOD), late) == GOOD  # runs already
    forever = repo.deploy(msgspec.structs.replace(GOOD, expires=NOW + 1000 * DAY))
    assert code_of(lambda: store.deployment(forever, "gate-7", 4, "", at(NOW + 8 * DAY))) == "trust.expired"  # metadata has


def test_without_a_clock_the_signed_time_floors_expiry(repo: SignedRepository, store: TrustStore) -> None:
    old = repo.deploy(msgspec.structs.replace(GOOD, expires=NOW - 1))
    assert code_of(lambda: store.deployment(old, "gate-7", 4, "", at(0.0, trusted=False))) == "trust.expired"
    assert store.deployment(repo.deploy(GOOD), "gate-7", 4, "", at(9e9, trusted=False)) == GOOD


def test_wrong_addressee_key_kind_or_bytes(repo: SignedRepository, store: TrustStore) -> None:
    data = repo.deploy(GOOD)
    stranger = CryptoSigner.generate_ed25519()
    table = {
        "trust.device": (data, "gate-8"),
        "trust.unknown-key": (repo.deploy(GOOD, by=stranger), "gate-7"),
        "trust.type": (repo.deploy(GOOD, kind="command"), "gate-7"),
        "trust.signature": (data.replace(b"gate-7", b"gate-8"), "gate-8"),
        "message.bad": (b"{}", "gate-7"),
        "message.large": (b" " * 200_000, "gate-7"),
    }
    for code, (payload, device) in table.items():
        assert code_of(lambda p=payload, d=device: store.deployment(p, d, 0, "", at())) == code
    assert code_of(lambda: store.deployment(repo.deploy(GOOD, by=repo.command), "gate-7", 0, "", at())) == "trust.unknown-key"


def test_a_stolen_key_id_does_not_help(repo: SignedRepository, store: TrustStore) -> None:
    envelope = json.loads(repo.deploy(GOOD, by=CryptoSigner.generate_ed25519()))
    envelope["signatures"][0]["keyid"] = key_hex(repo.deployment)
    assert code_of(lambda: store.deployment(json.dumps(envelope).encode(), "gate-7", 0, "", at())) == "trust.signature"
    for sig in ("", "zz" * 64, "00" * 64, "é"):
        envelope["signatures"][0]["sig"] = sig
        assert code_of(lambda: store.deployment(json.dumps(envelope).encode(), "gate-7", 0, "", at())) == "trust.signature"


def test_a_signed_command_never_passes_for_a_deployment(repo: SignedRepository) -> None:
    """Even one key for both kinds: the type is under the signature."""
    data = json.loads(repo.deploy(GOOD))
    data["type"] = "command"
    keys = [key_hex(repo.deployment)]
    assert code_of(lambda: unseal(json.dumps(data).encode(), "command", Command, keys, verify_ed25519)) == "trust.signature"


@pytest.mark.parametrize(("code", "apps"), [
    ("name.bad", (msgspec.structs.replace(APP, app="../x"),)),
    ("name.bad", (msgspec.structs.replace(APP, version="1/../.."),)),
    ("name.bad", (msgspec.structs.replace(APP, sources=(Source("a/b", "local:x"),)),)),
    ("blob.bad", (msgspec.structs.replace(APP, bundle="../../etc/passwd"),)),
    ("deployment.apps", (APP, APP)),
    ("deployment.apps", tuple(msgspec.structs.replace(APP, app=f"a{i}") for i in range(33))),
    ("deployment.sources", (msgspec.structs.replace(APP, sources=(Source("x", "u"), Source("x", "v"))),)),
    ("deployment.input", (msgspec.structs.replace(APP, input_from="nobody"),)),
    ("deployment.input", (msgspec.structs.replace(APP, input_from="ocr"),)),
    ("deployment.input", (msgspec.structs.replace(APP, input_from="b"), msgspec.structs.replace(APP, app="b", input_from="ocr"))),
])
def test_a_signed_deployment_is_still_checked(repo: SignedRepository, store: TrustStore, code: str, apps: tuple[AppSpec, ...]) -> None:
    bad = msgspec.structs.replace(GOOD, apps=apps)
    assert code_of(lambda: store.deployment(repo.deploy(bad), "gate-7", 0, "", at())) == code


def test_a_bundle_under_another_name_is_refused(repo: SignedRepository, store: TrustStore) -> None:
    repo.add_bundle(APP.bundle, "toy", "1")
    repo.commit()
    store.update(repo.package(), at())
    assert store.deployment(repo.deploy(GOOD), "gate-7", 0, "", at()) == GOOD
    for wrong in (msgspec.structs.replace(APP, version="2"), msgspec.structs.replace(APP, name="other")):
        bad = repo.deploy(msgspec.structs.replace(GOOD, apps=(wrong,)))
        assert code_of(lambda d=bad: store.deployment(d, "gate-7", 0, "", at())) == "trust.mix"


def test_a_chain_of_apps_is_fine() -> None:
    chain = (APP, msgspec.structs.replace(APP, app="b", input_from="ocr"), msgspec.structs.replace(APP, app="c", input_from="b"))
    check_deployment(msgspec.structs.replace(GOOD, apps=chain))


# --- commands ----------------------------------------------------------------------------------------------


def test_a_command_runs_at_most_once_also_after_a_restart(repo: SignedRepository, store: TrustStore) -> None:
    order = Command("gate-7", 3, NOW + 60, "restart")
    assert store.command(repo.order(order), "gate-7", at()) == order
    assert code_of(lambda: store.command(repo.order(order), "gate-7", at())) == "trust.seq-lower"
    again = TrustStore(store._folder, store._pinned)
    assert code_of(lambda: again.command(repo.order(order), "gate-7", at())) == "trust.seq-lower"
    assert again.command(repo.order(msgspec.structs.replace(order, seq=4)), "gate-7", at()).seq == 4


def test_commands_refused_use_no_number(repo: SignedRepository, store: TrustStore) -> None:
    order = Command("gate-7", 3, NOW + 60, "restart")
    assert code_of(lambda: store.command(repo.order(order), "gate-8", at())) == "trust.device"
    assert code_of(lambda: store.command(repo.order(order), "gate-7", at(NOW + 61))) == "trust.expired"
    assert code_of(lambda: store.command(repo.order(order, by=repo.deployment), "gate-7", at())) == "trust.unknown-key"
    assert store.command(repo.order(order), "gate-7", at()) == order


# --- identity ----------------------------------------------------------------------------------------------


def test_identity_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path / "id")
    path = tmp_path / "id" / "identity.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert Identity.load_or_create(tmp_path / "id").public_hex == first.public_hex
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load_or_create(tmp_path / "other").public_hex != first.public_hex


def test_identity_signs_what_the_host_can_open(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path)
    birth = Birth("gate-7", 1, "0.1", 1, identity.public_hex, Capability("cpu-x86", "cpu-x86", "x86_64"))
    data = identity.sign("birth", birth)
    assert unseal(data, "birth", Birth, [identity.public_hex], verify_ed25519) == birth
    assert bytes(decode(data, Envelope).signed) == encode(birth)
    assert code_of(lambda: unseal(data.replace(b"gate-7", b"gate-8"), "birth", Birth, [identity.public_hex], verify_ed25519)) \
        == "trust.signature"
    with pytest.raises(UntrustedError):
        unseal(data, "report", Ack, [identity.public_hex], verify_ed25519)


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_identity_is_never_silently_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.pem").write_bytes(content)
    with pytest.raises(StorageError) as caught:
        Identity.load_or_create(tmp_path)
    assert caught.value.code == "identity.unreadable"
    assert (tmp_path / "identity.pem").read_bytes() == content


def test_the_private_key_is_in_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    identity = Identity.load_or_create(tmp_path)
    secret = identity._key.private_bytes_raw().hex()
    pem = (tmp_path / "identity.pem").read_text().splitlines()[1]
    (tmp_path / "identity.pem").write_text(pem)
    with pytest.raises(StorageError) as caught:
        Identity.load_or_create(tmp_path)
    for text in (repr(identity), str(identity), caplog.text, str(caught.value), repr(caught.value)):
        assert secret not in text
        assert pem not in text


def test_verify_never_raises() -> None:
    for key, signature in (("zz", b""), ("00" * 32, b"x" * 64), ("ab" * 31, b""), ("", b"")):
        assert not verify_ed25519(key, signature, b"data")


def test_too_many_signatures(repo: SignedRepository, store: TrustStore) -> None:
    envelope = json.loads(repo.deploy(GOOD))
    envelope["signatures"] *= 17
    with pytest.raises(MalformedError):
        store.deployment(json.dumps(envelope).encode(), "gate-7", 0, "", at())
