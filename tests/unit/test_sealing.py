"""Sealed secrets: one standard's bytes on both sides, bound to board, name and version, and never seen anywhere else."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.supervisor.commands import Commands
from jetfleet_agent.supervisor.effects import EffectRunner, RunSettings
from jetfleet_agent.supervisor.engine_ports import NoEngines
from jetfleet_agent.supervisor.sealed_secrets import MAX_SECRETS, NoSecrets, SecretStore
from jetfleet_contract.app_config import AppConfig, PreviewSink, WebhookSink
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError
from jetfleet_contract.messages import Command, Instant, Source
from jetfleet_contract.sealing import MAX_SECRET_BYTES, Sealed, box_from, box_text, sealing_info
from jetfleet_contract.slot_records import Setup
from jetfleet_host.sealing import PURPOSE, seal

ADDRESS = "rtsp://admin:hunter2@10.0.0.9/stream?token=s3cret"


def code_of(call: Any) -> str:
    with pytest.raises(JetfleetError) as caught:
        call()
    assert "hunter2" not in caught.value.diagnostics()
    assert "s3cret" not in caught.value.diagnostics()
    return caught.value.code


def boxed(store: SecretStore, name: str = "front", version: int = 1, *, text: str = ADDRESS, device: str = "dock-1") -> str:
    return box_text(seal(store.public_hex, text.encode(), device=device, name=name, version=version))


@pytest.fixture
def store(tmp_path: Path) -> SecretStore:
    return SecretStore(tmp_path / "identity", "dock-1")


@given(st.binary(min_size=1, max_size=200))
def test_a_box_is_hpke_and_opens_with_another_implementation(secret: bytes) -> None:
    """RFC 9180: what we seal, the cryptography library's HPKE opens."""
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    receiver = X25519PrivateKey.generate()
    sealed = seal(receiver.public_key().public_bytes_raw().hex(), secret, device="d", name="n", version=3)
    assert suite.decrypt(sealed.enc + sealed.box, receiver, sealing_info("d", PURPOSE, "n", 3)) == secret


def test_and_the_board_opens_what_another_implementation_seals(store: SecretStore) -> None:
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    sealed = suite.encrypt(ADDRESS.encode(), store._key.public_key(), sealing_info("dock-1", PURPOSE, "front", 9))
    store.accept("front", 9, box_text(Sealed(sealed[:32], sealed[32:])))
    assert store.reveal("front") == ADDRESS


def test_kept_sealed_and_through_a_restart(store: SecretStore, tmp_path: Path) -> None:
    store.accept("front", 5, boxed(store, version=5))
    again = SecretStore(tmp_path / "identity", "dock-1")
    assert again.public_hex == store.public_hex
    assert again.reveal("front") == ADDRESS
    assert again.versions() == {"front": 5}
    for path in (tmp_path / "identity").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"hunter2" not in path.read_bytes()
    assert "hunter2" not in repr(again)


def test_a_box_counts_for_its_board_name_and_version_only(store: SecretStore, tmp_path: Path) -> None:
    other = SecretStore(tmp_path / "other", "dock-2")
    for box, name, version in ((boxed(other), "front", 1), (boxed(store, device="dock-2"), "front", 1),
                               (boxed(store, name="back"), "front", 1), (boxed(store, version=2), "front", 3)):
        assert code_of(lambda b=box, n=name, v=version: store.accept(n, v, b)) == "secret.sealed"
    good = boxed(store)
    position = len(good) // 2
    assert code_of(lambda: store.accept("front", 1, good[:-2] + ("00" if good[-2:] != "00" else "01"))) == "secret.sealed"
    assert code_of(lambda: store.accept("front", 1, "00" * 32 + good[64:])) == "secret.sealed"  # a point of low order
    assert code_of(lambda: store.accept("front", 1, good[:position])) in ("secret.sealed", "secret.box")
    assert store.versions() == {}


def test_versions_only_grow_also_past_a_removal(store: SecretStore) -> None:
    first, second = boxed(store, version=1), boxed(store, version=2)
    store.accept("front", 2, second)
    for version, box in ((1, first), (2, second), (0, first), (-1, ""), (1 << 60, first)):
        assert code_of(lambda v=version, b=box: store.accept("front", v, b)) == "secret.version"
    store.accept("front", 3, "")
    assert store.versions() == {}
    assert code_of(lambda: store.reveal("front")) == "secret.unknown"
    assert code_of(lambda: store.accept("front", 2, second)) == "secret.version"


def test_bounds(store: SecretStore) -> None:
    for number in range(MAX_SECRETS):
        store.accept(f"s{number}", 1, boxed(store, f"s{number}"))
    assert code_of(lambda: store.accept("more", 1, boxed(store, "more"))) == "secret.full"
    assert code_of(lambda: store.accept("../x", 1, "")) == "name.bad"
    for size in (0, MAX_SECRET_BYTES + 1):
        assert code_of(lambda n=size: seal(store.public_hex, b"x" * n, device="d", name="n", version=1)) == "secret.size"
    for key in ("", "xy", "00" * 32):
        assert code_of(lambda k=key: seal(k, b"x", device="d", name="n", version=1)) == "secret.key"
    store.accept("s0", 2, boxed(store, "s0", 2, text="x" * MAX_SECRET_BYTES))


@given(st.text(max_size=200))
def test_any_text_as_a_box(text: str) -> None:
    with contextlib.suppress(MalformedError):
        assert box_from(text).enc


def test_damaged_files(store: SecretStore, tmp_path: Path) -> None:
    store.accept("front", 1, boxed(store))
    (tmp_path / "identity" / "secrets.json").write_bytes(b'{"../x":{"version":1}}')
    assert SecretStore(tmp_path / "identity", "dock-1").versions() == {}
    (tmp_path / "identity" / "sealing.pem").write_bytes(b"rotten")
    with pytest.raises(StorageError) as caught:
        SecretStore(tmp_path / "identity", "dock-1")
    assert caught.value.code == "identity.unreadable"


def _runner(store: SecretStore | None, local: dict[str, str]) -> EffectRunner:
    nothing: Any = type("Nothing", (), {"__getattr__": lambda *_: lambda *_args, **_named: None})()
    return EffectRunner(nothing, nothing, nothing, nothing, nothing, nothing, print, lambda: Instant(0, "", 0, True), RunSettings(local),
                        store)


def test_a_source_is_opened_on_the_board_only(store: SecretStore) -> None:
    store.accept("front", 1, boxed(store))
    store.accept("word", 1, boxed(store, "word", text="hunter2"))
    runner = _runner(store, {"gate": "secret:front"})
    for uri in ("secret:front", "local:gate"):
        assert runner.resolve((Source("a", uri),))[0].uri == ADDRESS
    assert code_of(lambda: runner.resolve((Source("a", "secret:none"),))) == "secret.unknown"
    assert code_of(lambda: runner.resolve((Source("a", "secret:word"),))) == "secret.address"
    assert code_of(lambda: _runner(None, {}).resolve((Source("a", "secret:front"),))) == "secret.unsupported"
    assert NoSecrets().versions() == {}
    with pytest.raises(InputError):
        NoSecrets().accept("a", 1, "")


def test_the_token_of_a_preview_is_opened_and_an_address_of_a_webhook_is_not(store: SecretStore) -> None:
    """The pipeline needs the one, and has no network for the other."""
    store.accept("preview", 1, boxed(store, "preview", text="a-token-of-enough-letters"))
    store.accept("weak", 1, boxed(store, "weak", text="short"))
    store.accept("hook", 1, boxed(store, "hook", text="https://host/?key=1"))
    runner = _runner(store, {})
    hook = WebhookSink("secret:hook")
    for name, token in (("preview", "a-token-of-enough-letters"), ("weak", "secret:weak"), ("none", "secret:none")):
        setup = Setup(AppConfig(sinks=(PreviewSink(token=f"secret:{name}"), hook)))
        assert runner._configure_of(setup).config.sinks == (PreviewSink(token=token), hook)
        assert runner._configure_of(setup).config is not runner._configure_of(setup).config, "a new object: secrets may have changed"


def test_the_command_sets_lists_and_forgets_without_a_word_of_the_value(store: SecretStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[dict[str, str]] = []
    changes: list[int] = []
    orders: list[dict[str, str]] = []

    class Port:
        public_hex = "ab" * 32

        def publish(self, _topic: str, payload: bytes, **_: Any) -> bool:
            said.append(json.loads(payload))
            return True

        def sign(self, _kind: str, message: Any) -> bytes:
            return json.dumps({"code": message.code, "body": message.body, "detail": message.detail}).encode()

        def command(self, _data: bytes, device: str, _now: Instant) -> Command:
            return Command(device, len(orders), 1.0, "secret", orders[-1])

    port: Any = Port()
    commands = Commands("dock-1", port, port, port, port, port, lambda _: [], tuple, dict, lambda: Instant(0, "", 0, True), store,
                        lambda: changes.append(1), NoEngines())
    box = boxed(store)
    for args in ({"name": "front", "version": "1", "box": box}, {"name": "front", "version": "1", "box": box}, {},
                 {"name": "front", "version": "x"}, {"name": "front", "version": "2"}):
        orders.append(args)
        commands.arrived(b"")
    assert [(one["code"], one["body"]) for one in said] == [
        ("", '{"front": 1}'), ("secret.version", ""), ("", '{"front": 1}'), ("secret.version", ""), ("", "{}")]
    assert changes == [1]
    assert "hunter2" not in caplog.text + json.dumps(said)
    assert box not in caplog.text
