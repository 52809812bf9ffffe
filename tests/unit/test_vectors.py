"""Golden bytes of contract version 1: what was written once must be read, and written the same, forever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from vectors.make_vectors import samples

from jetfleet_contract import messages
from jetfleet_contract.bundle import decode_manifest
from jetfleet_contract.chunks import Bitmap, table_of

GOLDEN = json.loads((Path(__file__).parent.parent / "vectors/contract_v1.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN["messages"]))
def test_a_message_reads_and_writes_as_it_always_did(name: str) -> None:
    data = GOLDEN["messages"][name].encode()
    sample = samples()[name]
    decoded = decode_manifest(data) if name == "manifest" else messages.decode(data, type(sample))
    assert decoded == sample
    assert messages.encode(decoded) == data


def test_no_message_lacks_a_vector() -> None:
    assert set(samples()) == set(GOLDEN["messages"])


def test_the_signature_still_verifies() -> None:
    golden = GOLDEN["signature"]
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(golden["key"]))
    body = GOLDEN["messages"]["deployment"].encode()
    key.verify(bytes.fromhex(golden["sig"]), messages.signed_bytes("deployment", body))


def test_the_chunk_table_is_cut_as_ever() -> None:
    data = bytes(i * 7 % 251 for i in range(200_000))
    tabled = table_of(data[at:at + 65536] for at in range(0, len(data), 65536))
    golden = GOLDEN["chunks"]
    assert (tabled.blob, tabled.info.table, [page.hex() for _, page in tabled.pages]) == (golden["blob"], golden["table"], golden["pages"])


def test_bitmaps_read_as_ever() -> None:
    golden = {name: Bitmap.decode(bytes.fromhex(text), 1000) for name, text in GOLDEN["bitmaps"].items()}
    assert list(golden["holes"]) == [0, 1, 2, 500, 999]
    assert golden["full"] == Bitmap.full(1000)
    assert golden["none"] == Bitmap(1000)
