"""Makes contract_v1.json: bytes that both sides must read, and write, for as long as contract version 1 lives.

    python tests/vectors/make_vectors.py > tests/vectors/contract_v1.json

Run it only to ADD vectors; `tests/unit/test_vectors.py` fails when an old one changes.
"""

from __future__ import annotations

import hashlib
import json

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jetfleet_contract import bundle, messages
from jetfleet_contract.chunks import Bitmap, table_of
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import sketch_of

SEED = bytes(range(32))  # a key for vectors only: it signs nothing else


def samples() -> dict[str, msgspec.Struct]:
    """One message of every kind that travels, with every field set."""
    blob = hashlib.sha256(b"bundle").hexdigest()
    capability = messages.Capability("cpu-x86", "cpu-x86", "x86_64", "Xeon", ("avx2", "avx512_vnni"), 2, 8192,
                                     (messages.BackendInfo("openvino", "2026.4", "", ("fp32", "int8")),
                                      messages.BackendInfo("tensorrt", "", "not installed")), simulated=True)
    app = messages.AppSpec("text", blob, "ppocr-det", "2", messages.AppConfig(3, {"threshold": 0.3}),
                           (messages.Source("front", "local:front", 8.0, loop=True),), trial=messages.TrialPolicy(frames=20))
    series = messages.Series("text", blob, "2", "fp32@openvino:bf16", "front", 100, 98, {"late": 2}, {"total": sketch_of([1.0, 2.0, 40.0])})
    return {
        "deployment": messages.Deployment("cam-01", 7, 1790000000.0, (app,), "r-1", {"site": "north"}),
        "command": messages.Command("cam-01", 4, 1790000000.0, "explain", {"app": "text"}),
        "birth": messages.Birth("cam-01", 3, "0.1.0", 1, "ab" * 32, capability, (messages.AppState("text", blob, "ppocr-det", "2"),), 7),
        "state": messages.DeviceState("cam-01", online=True, session=3),
        "report": messages.Report("cam-01", 12, 7, "text", 1790000000.5, "committed", blob, "2", "1", "committed", "", "ok",
                                  "fp32@openvino:bf16", {"gap_ms": 12.5}, "r-1"),
        "ack": messages.Ack(12),
        "telemetry": messages.Telemetry("cam-01", 3, 9, 1790000000.0, 10.0, (series,), {"rss_mb": 61.5}),
        "result": messages.Result("text", "front", 41, 1790000000.0, 18.5, "2", "fp32@openvino:bf16",
                                  (Detection("text", 0.93, (1.0, 2.0, 30.0, 12.0), (1.0, 2.0, 30.0, 2.0, 30.0, 12.0, 1.0, 12.0)),), 41),
        "result_things": messages.Result(
            "dock", "front", 42, 1790000000.0, 18.5, "2", "fp32@openvino:bf16",
            (Detection("person", 0.93, (1.0, 2.0, 30.0, 12.0), (), (1.0, 2.0, 30.0, 2.0, 15.0, 12.0), (4.0, 5.0, 0.9), (), 3),
             Detection("car", 0.5, (1.0, 2.0, 3.0, 4.0), track=4), Detection("embedding", 1.0, values=(0.25, -1.5)))),
        "probe": bundle.ProbeSet((bundle.ProbeItem(bundle.digest_of(b"png"), (Detection("text", 0.5, (1.0, 2.0, 3.0, 4.0)),)),), 0.8),
        "manifest": bundle.Manifest(2, bundle.OCI_MANIFEST, bundle.MODEL_ARTIFACT,
                                    bundle.Descriptor(bundle.MODEL_CONFIG, bundle.digest_of(b"{}"), 2),
                                    (bundle.Descriptor(bundle.WEIGHT, bundle.digest_of(b"w"), 1, {bundle.FILEPATH: "fp32.onnx"}),)),
    }


def vectors() -> dict[str, object]:
    """Messages as JSON text, a signed deployment, a chunk table and bitmaps."""
    encoded = {name: messages.encode(message).decode() for name, message in samples().items()}
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    body = encoded["deployment"].encode()
    data = bytes(i * 7 % 251 for i in range(200_000))
    tabled = table_of(data[at:at + 65536] for at in range(0, len(data), 65536))
    holes = Bitmap.of(1000, [0, 1, 2, 500, 999])
    return {
        "contract": 1,
        "messages": encoded,
        "signature": {"key": key.public_key().public_bytes_raw().hex(), "kind": "deployment",
                      "sig": key.sign(messages.signed_bytes("deployment", body)).hex()},
        "chunks": {"blob": tabled.blob, "table": tabled.info.table, "pages": [page.hex() for _, page in tabled.pages]},
        "bitmaps": {"holes": holes.encode().hex(), "full": Bitmap.full(1000).encode().hex(), "none": Bitmap(1000).encode().hex()},
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1, sort_keys=True))
