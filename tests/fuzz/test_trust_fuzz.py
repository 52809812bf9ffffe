"""Whatever arrives on the meta, desired and cmd topics: a value, or MalformedError or UntrustedError, and nothing else.

Three kinds of bytes: noise, damaged copies of good messages, and odd content under good signatures (a host with a bug, or a
thief of keys). Trust never changes by a message that was refused.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from signed_repository import NOW, SignedRepository, key_hex

from jetfleet_agent.supervisor.identity import verify_ed25519
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.errors import MalformedError, UntrustedError
from jetfleet_contract.messages import AppSpec, Command, Deployment, Instant, signed_bytes
from jetfleet_contract.trust import decode_package, unseal

REPO = SignedRepository()
REPO.add_bundle("ab" * 32, blobs={"cd" * 32: BlobInfo(70_000, table="ef" * 32)})
REPO.commit()
PACKAGE = REPO.package()
DEPLOYMENT = REPO.deploy(Deployment("gate-7", 5, NOW + 60.0, (AppSpec("ocr", "ab" * 32, "toy", "1"),)))
COMMAND = REPO.order(Command("gate-7", 5, NOW + 60.0, "restart"))
AT = Instant(1.0, "boot", float(NOW), True)

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=20),
    st.sampled_from([0, -1, 1 << 63, 1 << 200, "", "root", "9" * 5000, "\ud7ff\0", [], {}]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=8), st.integers(), max_size=3))
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    made = TrustStore(tmp_path / "trust", REPO.roots[0])
    made.update(PACKAGE, AT)
    return made


def _quiet(call: Callable[[], object]) -> bool:
    """True when the call gave a value; only the two allowed errors pass."""
    try:
        call()
    except (MalformedError, UntrustedError):
        return False
    return True


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A good message with some bytes replaced, removed, doubled or cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "cut", "remove", "double", "insert"]))
        if what == "flip" and data:
            data[position] ^= draw(st.integers(1, 255))
        elif what == "cut":
            del data[position:]
        elif what == "remove":
            del data[position:position + draw(st.integers(1, 40))]
        elif what == "double":
            data[position:position] = data[position:position + 60]
        else:
            data[position:position] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def oddly_changed(draw: st.DrawFn, good: Any) -> Any:
    """A JSON value with one node, anywhere in it, replaced, removed or added."""
    value = copy.deepcopy(good)
    at: Any = value
    path: list[tuple[Any, Any]] = []
    while isinstance(at, (dict, list)) and at and (not path or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
        path.append((at, key))
        at = at[key]
    holder, key = path[-1]
    what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if what == "replace":
        holder[key] = draw(ODD)
    elif what == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=8))] = draw(ODD)
    else:
        holder.append(draw(ODD))
    return value


@FUZZ
@given(st.one_of(st.binary(max_size=300), damaged(PACKAGE), damaged(DEPLOYMENT)))
def test_damaged_bytes_on_every_topic(store: TrustStore, data: bytes) -> None:
    before = store.versions
    _quiet(lambda: decode_package(data))
    _quiet(lambda: store.update(data, AT))
    _quiet(lambda: store.deployment(data, "gate-7", 0, "", AT))
    _quiet(lambda: store.command(data, "gate-7", AT))
    assert store.versions == before


@FUZZ
@given(damaged(DEPLOYMENT))
def test_a_damaged_deployment_is_the_same_or_refused(store: TrustStore, data: bytes) -> None:
    good = store.deployment(DEPLOYMENT, "gate-7", 0, "", AT)
    if _quiet(lambda: store.deployment(data, "gate-7", 0, "", AT)):
        assert store.deployment(data, "gate-7", 0, "", AT) == good


@FUZZ
@given(oddly_changed(json.loads(PACKAGE)))
def test_odd_packages(store: TrustStore, value: Any) -> None:
    before = store.versions
    _quiet(lambda: store.update(json.dumps(value).encode(), AT))
    assert store.versions == before


def _signed_oddly(role: str, signed: Any) -> bytes | None:
    """`signed` under a good signature of `role`; None when it has no canonical form."""
    try:
        canonical = str(encode_canonical(signed)).encode()
    except Exception:  # noqa: BLE001 - whatever the library cannot write needs no test
        return None
    signer = REPO.signers[role][0]
    return json.dumps({"signed": signed, "signatures": [signer.sign(canonical).to_dict()]}).encode()


@FUZZ
@given(st.data())
def test_odd_metadata_under_good_signatures(data: st.DataObject) -> None:
    role = data.draw(st.sampled_from(["timestamp", "snapshot", "targets", "root"]))
    repo = copy.copy(REPO)
    repo.snapshot, repo.timestamp = copy.deepcopy(REPO.snapshot), copy.deepcopy(REPO.timestamp)
    good = json.loads(REPO.roots[0] if role == "root" else getattr(REPO, f"{role}_bytes"))["signed"]
    made = _signed_oddly(role, data.draw(oddly_changed(good)))
    if made is None:
        return
    roots = [REPO.roots[0], made] if role == "root" else REPO.roots
    if role != "root":
        setattr(repo, f"{role}_bytes", made)
    if role == "targets":
        repo.commit_snapshot(bump=False)
    elif role == "snapshot":
        repo.commit_timestamp(bump=False)
    with tempfile.TemporaryDirectory() as folder:
        store = TrustStore(Path(folder), REPO.roots[0])
        if _quiet(lambda: store.update(repo.package(root=roots), AT)):
            assert TrustStore(Path(folder), REPO.roots[0]).versions == store.versions
        else:
            assert store.versions == {}
            assert store.update(PACKAGE, AT)


@FUZZ
@given(st.data())
def test_odd_bodies_under_good_signatures(store: TrustStore, data: st.DataObject) -> None:
    kind, signer, good = data.draw(st.sampled_from([("deployment", REPO.deployment, DEPLOYMENT), ("command", REPO.command, COMMAND)]))
    body = json.dumps(data.draw(oddly_changed(json.loads(good)["signed"]))).encode()
    signature = {"keyid": key_hex(signer), "sig": signer.sign(signed_bytes(kind, body)).signature}
    envelope = b'{"type":"%s","signed":%s,"signatures":[%s]}' % (kind.encode(), body, json.dumps(signature).encode())
    _quiet(lambda: store.deployment(envelope, "gate-7", 0, "", AT))
    _quiet(lambda: store.command(envelope, "gate-7", AT))
    _quiet(lambda: unseal(envelope, kind, Deployment, [key_hex(signer)], verify_ed25519))


@FUZZ
@given(st.one_of(st.binary(max_size=200), damaged(b'{"package":{}}')))
def test_any_bytes_in_the_stored_state(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("trust.json", "floor.json"):
            (Path(folder) / name).write_bytes(data)
        store = TrustStore(Path(folder), REPO.roots[0])
        assert store.versions == {}
        assert store.update(PACKAGE, AT)
