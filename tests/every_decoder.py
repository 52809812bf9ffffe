"""Every decoder of bytes that strangers may send, with a good message each, and a mutator that is quick enough for millions of inputs.

    python tests/every_decoder.py 1000000 --seed 7      # so many inputs in all; prints a table, ends with 1 on the first surprise

A decoder gives a value or one of the errors that it is allowed, in bounded time; anything else is a surprise. The suite runs a seeded part.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import crop_worlds
import msgspec
from builder_board import Builder
from signed_repository import NOW, SignedRepository, key_hex
from vectors.make_vectors import samples

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.identity import Identity, verify_ed25519
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract import bundle, crops, messages, topics, transfer, uploads
from jetfleet_contract.chunks import Bitmap, BlobInfo, lower_pages, open_table, table_of
from jetfleet_contract.delegations import read_engine
from jetfleet_contract.delta_format import Copy, Data, Header, read_header, read_records, write_header, write_record
from jetfleet_contract.deltas import decode_index
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.policy import Candidate, Choice, ChoiceRow, Explanation
from jetfleet_contract.sealing import Sealed, box_from, box_text
from jetfleet_contract.trust import BundleTarget, decode_package, unseal
from jetfleet_host import intake
from jetfleet_host.ceremony import read_draft
from jetfleet_host.certificates import CertificateAuthority
from jetfleet_host.commands.device import unpacked
from jetfleet_host.signing import verify_device

REFUSALS = (MalformedError, UntrustedError)


class Decoder(NamedTuple):
    """`share` is its part of all inputs: dear ones get less."""

    name: str
    decode: Callable[[bytes], object]
    good: bytes
    share: float = 1.0
    refusals: tuple[type[JetfleetError], ...] = REFUSALS


def mutants(good: bytes, chance: random.Random) -> Iterator[bytes]:
    """Endless variations of a good message: flips, cuts, doubled and moved parts, hostile numbers, brackets, and plain noise."""
    tokens = (b"9" * 400, b"-1", b"1e999", b"null", b"true", b"[]", b"{}", b'""', b"\0", b"\xff\xfe", b'"\\ud800"', b"[" * 60, b"../",
              b"18446744073709551616")
    while True:
        data = bytearray(good)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(data) + 1)
            what = chance.randrange(8)
            if what == 0 and data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            elif what == 1 and data:
                data[at % len(data)] = chance.randrange(256)
            elif what == 2:
                del data[at:]
            elif what == 3:
                del data[at : at + chance.randrange(1, 40)]
            elif what == 4:
                data[at:at] = data[at : at + chance.randrange(1, 80)]
            elif what == 5:
                end = at + chance.randrange(1, 12)
                data[at:end] = chance.choice(tokens)
            elif what == 6:
                data[at:at] = chance.choice(tokens)
            else:
                data[at:at] = chance.randbytes(chance.randrange(1, 16))
        yield bytes(data) if chance.randrange(20) else chance.randbytes(chance.randrange(300))


OFFER = uploads.Offer("cam-01", 7, "ab" * 32, "engine", "resnet.plan", BlobInfo(70_000, table="cd" * 32), 1790000000.0, 4)
EXPLANATION = Explanation({"text": messages.AppState("text", "ab" * 32, "ppocr", "2")},
                          {"text": Choice((ChoiceRow(Candidate("fp32", "openvino", "bf16"), "chosen", "fastest"),), None)})


def decoders(folder: Path) -> list[Decoder]:
    """All of them. `folder` is scratch."""
    repo = SignedRepository()
    repo.add_bundle("ab" * 32, blobs={"cd" * 32: BlobInfo(70_000, table="ef" * 32)})
    repo.commit()
    now = messages.Instant(1.0, "boot", float(NOW), True)
    trust = TrustStore(folder / "trust", repo.roots[0])
    trust.update(repo.package(), now)
    deployment = repo.deploy(messages.Deployment("gate-7", 5, NOW + 60.0, (messages.AppSpec("ocr", "ab" * 32, "toy", "1"),)))
    keys = (key_hex(repo.command),)
    command = repo.order(messages.Command("gate-7", 5, NOW + 60.0, "restart"))
    identity = Identity.load_or_create(folder / "board")
    authority = CertificateAuthority.create(folder / "ca", "fuzz")
    tabled = table_of(bytes([n]) * 65536 for n in range(5))
    target = BundleTarget("toy", "1", "ab" * 32, BlobInfo(100), {})
    plain = [Decoder(f"message {name}", _plain(type(sample)), messages.encode(sample))
             for name, sample in samples().items() if name != "manifest"]
    said = {**samples(), "birth": msgspec.structs.replace(samples()["birth"], key=identity.public_hex), "offer": OFFER,
            "response": messages.Response("cam-01", 4, 1790000000.0, "", "done", "{}")}
    signed = [Decoder(f"host reads {kind}", _signed(kind, identity), identity.sign(kind, said[kind]), 0.2)
              for kind in ("birth", "report", "telemetry", "offer", "response")]
    delta = write_header(Header("ab" * 32, 5000, "cd" * 32, 900, "tensor")) + write_record(Copy(0, 400)) + write_record(
        Data(500, 0, 100, b"x" * 90))
    return [
        *plain, *signed,
        Decoder("envelope", _plain(messages.Envelope), deployment),
        Decoder("board reads package", decode_package, repo.package()),
        Decoder("board verifies package", lambda data: trust.update(data, now), repo.package(), 0.01),
        Decoder("board opens deployment", lambda data: trust.deployment(data, "gate-7", 0, "", now), deployment, 0.3),
        Decoder("board opens command", lambda data: unseal(data, "command", messages.Command, keys, verify_ed25519), command, 0.3),
        Decoder("bundle manifest", bundle.decode_manifest, messages.encode(samples()["manifest"])),
        Decoder("want", lambda data: transfer.decode_want(data, 40), transfer.encode_want(transfer.Want(65536, Bitmap.full(40), 3, 4))),
        Decoder("chunk", transfer.decode_chunk, transfer.encode_chunk(1, 2, b"data" * 9)),
        Decoder("round mark", transfer.decode_mark, b'{"round":1,"mark":0,"kind":"begin","chunks":1,"spread_s":0.5}'),
        Decoder("mark to one board", transfer.own_mark, transfer.encode_own_mark(transfer.RoundMark(9, 4, "end", 0))),
        Decoder("bitmap", lambda data: Bitmap.decode(data, 1000), Bitmap.of(1000, [0, 1, 2, 500, 999]).encode()),
        Decoder("chunk table", lambda data: open_table(tabled.blob, tabled.info, [data]), tabled.pages[0][1]),
        Decoder("root page", lambda data: lower_pages(BlobInfo(1 << 30, table="ab" * 32), data), bytes(32 * 8)),
        Decoder("upload part", uploads.decode_part, uploads.encode_part(1, 2, b"data" * 9)),
        Decoder("upload mark", uploads.decode_part, uploads.encode_part_mark(b'{"round":1,"mark":0,"kind":"begin","chunks":1}')),
        Decoder("offer", lambda data: uploads.check_offer(messages.decode(data, uploads.Offer), "cam-01"), messages.encode(OFFER)),
        Decoder("verdict", _plain(uploads.Verdict), messages.encode(uploads.Verdict("cam-01", 7, "ab" * 32, "upload.large", "no"))),
        Decoder("explanation", _plain(Explanation), messages.encode(EXPLANATION)),
        Decoder("board's log", unpacked, gzip.compress(b"a line of the log\n" * 30, mtime=0)),
        Decoder("delta index", lambda data: decode_index(data, target), b'{"manifest":"%s","targets":{}}' % (b"ab" * 32)),
        Decoder("delta", _delta, delta),
        Decoder("engine", _engine, b'{"size":1000,"subject":"%s","chunk_size":65536}' % (b"5b" * 32)),
        Decoder("sealed box", lambda data: box_from(data.decode("latin-1")), box_text(Sealed(bytes(32), bytes(60))).encode()),
        Decoder("host reads crop", lambda data: crops.check_crop(verify_device(data, identity.public_hex, "crop", crops.Crop), "cam-01"),
                identity.sign("crop", crops.Crop("cam-01", 7, "ocr", 1790000000.0, True, True, bytes(32), bytes(90))), 0.2),
        Decoder("crop, opened", crops.unpack, crops.pack(crop_worlds.NOTE, crop_worlds.jpeg())),
        Decoder("answer", lambda data: crops.check_detections(messages.decode(data, crops.Answer).detections),
                messages.encode(crops.Answer("cam-01", 7, "toy:1", crop_worlds.NOTE.edge))),
        Decoder("root draft", read_draft, repo.roots[0], 0.05),
        Decoder("builder's metadata", _builders(), Builder().vouch("orin", "a", "b"), 0.05),
        Decoder("signing request", lambda data: authority.issue_device("gate-7", data), _request(), 0.02, (InputError,)),
        Decoder("pipeline event", ipc.event_from, ipc.to_line(ipc.Running("ab" * 32, "c"))),
        Decoder("pipeline order", ipc.order_from, ipc.to_line(ipc.Drop("ab" * 32))),
        Decoder("claimed key", intake.claimed_key, identity.sign("birth", samples()["birth"])),
        Decoder("online mark", lambda data: intake.state_from(topics.state("cam-01"), data), messages.encode(samples()["state"])),
        Decoder("result", lambda data: intake.result_from(topics.result("cam-01"), data), messages.encode(samples()["result"])),
    ]


def _plain(kind: type[msgspec.Struct]) -> Callable[[bytes], object]:
    return lambda data: messages.decode(data, kind)


def _signed(kind: str, identity: Identity) -> Callable[[bytes], object]:
    readers: dict[str, Any] = {"birth": intake.birth_from, "report": intake.report_from, "telemetry": intake.telemetry_from,
                               "offer": intake.offer_from, "response": intake.response_from}
    topic = topics.response("cam-01", 4) if kind == "response" else f"{topics.PREFIX}/d/cam-01/{kind}"
    return lambda data: readers[kind](topic, data, identity.public_hex, verify_device)


def _delta(data: bytes) -> object:
    read = io.BytesIO(data).read
    return sum(record.length for record in read_records(read_header(read), read))


def _engine(data: bytes) -> object:
    try:
        custom = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedError("message.bad", "no JSON") from None
    return read_engine("orin", "engine/orin/a", "ab" * 32, custom)


def _builders() -> Callable[[bytes], object]:
    from jetfleet_host.delegations import read_delegated

    return lambda data: read_delegated("orin", data)


def _request() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(generate_private_key(SECP256R1()), SHA256())
    return request.public_bytes(Encoding.PEM)


class Outcome(NamedTuple):
    name: str
    inputs: int
    values: int
    codes: dict[str, int]
    slowest_s: float


def fuzz(decoder: Decoder, inputs: int, seed: int) -> Outcome:
    """Feed it; AssertionError with the input on a surprise."""
    chance = random.Random(f"{seed} {decoder.name}")
    source, codes, values, slowest = mutants(decoder.good, chance), Counter[str](), 0, 0.0
    for _ in range(inputs):
        data = next(source)
        began = time.perf_counter()
        try:
            decoder.decode(data)
            values += 1
        except decoder.refusals as error:
            codes[error.code] += 1
        except Exception as error:
            raise AssertionError(f"{decoder.name} raised {error!r} for {data!r}") from error
        slowest = max(slowest, time.perf_counter() - began)
    return Outcome(decoder.name, inputs, values, dict(codes), slowest)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        every = decoders(Path(folder))
        shares = sum(decoder.share for decoder in every)
        total = 0
        for decoder in every:
            outcome = fuzz(decoder, max(1, round(arguments.inputs * decoder.share / shares)), arguments.seed)
            total += outcome.inputs
            codes = ", ".join(f"{code} {count}" for code, count in sorted(outcome.codes.items(), key=lambda item: -item[1])[:4])
            print(f"{outcome.name:<26} {outcome.inputs:>8}  values {outcome.values:>7}  slowest {outcome.slowest_s * 1e3:7.1f} ms  {codes}",
                  flush=True)
        print(f"{len(every)} decoders, {total} inputs, no surprise")


if __name__ == "__main__":
    main()
