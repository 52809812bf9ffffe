"""What strangers may do on the shared topics: wrong chunks to boards, greedy wants to the host, and garbage to both."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from delivery_rig import MemoryBlobs

from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_contract import topics
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.charges import BUDGET_BLOBS, BUDGET_RENEW_S, BUDGET_SLACK
from jetfleet_contract.chunks import CHUNK_BYTES, Bitmap, lower_pages, open_table, table_of, top_page
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.listening import heard
from jetfleet_contract.transfer import Want, encode_chunk, encode_want, receiver
from jetfleet_host.delivery import Distributor

DATA = random.Random(5).randbytes(20 * CHUNK_BYTES + 100)
TABLED = table_of(DATA[at : at + CHUNK_BYTES] for at in range(0, len(DATA), CHUNK_BYTES))
GOOD = DATA[:CHUNK_BYTES]


@pytest.mark.parametrize("chunk", [
    b"\xee" * CHUNK_BYTES, GOOD + b"\0", GOOD[:-1], b"", GOOD * 16, DATA[CHUNK_BYTES : 2 * CHUNK_BYTES], GOOD[::-1],
], ids=["forged", "one byte longer", "one byte shorter", "empty", "sixteen times as long", "of another place", "reversed"])
def test_a_chunk_that_the_signed_table_does_not_name_is_never_written(tmp_path: Path, chunk: bytes) -> None:
    table = open_table(TABLED.blob, TABLED.info, [TABLED.pages[0][1]])
    with BlobStore(tmp_path).open_partial(TABLED.blob, table) as part:
        assert part.write(0, GOOD)
        assert not part.write(0, chunk)
        assert not part.write(1, GOOD)
        assert part.write(0, GOOD)  # a duplicate changes nothing
    with BlobStore(tmp_path).open_partial(TABLED.blob, table) as again:
        assert list(again.missing()) == list(range(1, 21))


@pytest.mark.parametrize(("payload", "code"), [
    (encode_chunk(1, 21, b"x"), "chunk.bad"), (encode_chunk(1, 0xFFFFFFFF, b"x"), "chunk.bad"), (b"\0\0", "chunk.bad"), (b"", "chunk.bad"),
    (encode_chunk(1, 0, bytes((1 << 20) + 1)), "chunk.bad"),
])
def test_chunk_messages_out_of_bounds(payload: bytes, code: str) -> None:
    with pytest.raises(MalformedError) as caught:
        heard(receiver(21, CHUNK_BYTES), TABLED.blob, "b0", topics.chunk(TABLED.blob), payload)
    assert caught.value.code == code


def test_a_forged_page_of_a_chunk_table(tmp_path: Path) -> None:
    """The table travels as blobs do: its page is named by digest in the signed target, and its shape is refused, too."""
    page = TABLED.pages[0][1]
    for wrong, code in ((page[:-32], "table.bad"), (page + b"\0" * 32, "table.bad"), (b"", "table.bad")):
        with pytest.raises(MalformedError) as caught:
            open_table(TABLED.blob, TABLED.info, [wrong])
        assert caught.value.code == code
    top = top_page(TABLED.info)
    assert top is not None
    assert top.blob == hashlib.sha256(page).hexdigest()
    assert not lower_pages(TABLED.info, page)


class Wire:
    """A link that takes everything and counts it."""

    connected = True
    backlog = 0
    limits = BrokerLimits()

    def __init__(self) -> None:
        self.sent = 0

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        self.sent += len(payload)
        return True


def test_wants_that_amplify_are_bounded_by_a_budget() -> None:
    """A board, or a thief of its certificate, says again and again that everything is missing: a few bytes that would cost a whole blob."""
    blobs, wire = MemoryBlobs(), Wire()
    blob, info = blobs.add(DATA)
    host = Distributor(wire, blobs, chunk_size=blobs.chunk_size)
    greedy = encode_want(Want(CHUNK_BYTES, Bitmap.full(21)))
    now, asked = 0.0, 0
    while now < 600.0:
        host.on_want(topics.want(blob, "liar"), greedy, now)
        asked += 1
        for _ in range(4):
            host.tick(now)
            now += 0.25
    renewed = 600.0 / BUDGET_RENEW_S * info.size
    assert "delivery.budget" in host.stats.refused
    assert host.stats.blobs[blob].payload_bytes <= info.size * BUDGET_BLOBS + BUDGET_SLACK * CHUNK_BYTES + renewed + CHUNK_BYTES
    assert asked == 600


def test_wants_for_what_is_not_ones_own_and_nonsense_publish_nothing() -> None:
    blobs, wire = MemoryBlobs(), Wire()
    blob, _ = blobs.add(DATA)
    host = Distributor(wire, blobs, allowed=lambda device, _: device != "liar", chunk_size=blobs.chunk_size)
    full = encode_want(Want(CHUNK_BYTES, Bitmap.full(21)))
    own = topics.want(blob, "honest")
    for topic, payload in ((topics.want(blob, "liar"), full), (topics.want("0" * 64, "honest"), full), (own, b"\xff" * 90),
                           (own, encode_want(Want(512, Bitmap.full(21)))), ("jf/1/b/../want/honest", full),
                           (f"jf/1/b/{blob}/want/+", full), (f"jf/1/b/{blob}/want/a/b", full)):
        host.on_want(topic, payload, 1.0)
    for step in range(40):
        host.tick(1.0 + step)
    assert wire.sent == 0
    assert {"delivery.unassigned", "delivery.unknown", "want.bad", "name.bad", "topic.bad"} <= host.stats.refused.keys()
