"""The manifest's decoder: bounds, digests, types."""

from __future__ import annotations

import msgspec
import pytest

from jetfleet_contract import bundle
from jetfleet_contract.bundle import Descriptor, Manifest, decode_manifest, digest_of
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import encode


def manifest(**changes: object) -> Manifest:
    good = Manifest(2, bundle.OCI_MANIFEST, bundle.MODEL_ARTIFACT, Descriptor(bundle.MODEL_CONFIG, digest_of(b"{}"), 2),
                    (Descriptor(bundle.SPEC, digest_of(b"spec"), 4), Descriptor(bundle.WEIGHT, digest_of(b"w"), 1)))
    return msgspec.structs.replace(good, **changes)


def test_a_manifest_survives_its_bytes() -> None:
    assert decode_manifest(encode(manifest())) == manifest()


def test_unknown_fields_are_ignored_as_oci_asks() -> None:
    data = encode(manifest())[:-1] + b',"future":1}'
    assert decode_manifest(data) == manifest()


@pytest.mark.parametrize(("changes", "code"), [
    ({"schema_version": 1}, "bundle.manifest"),
    ({"media_type": "x"}, "bundle.manifest"),
    ({"artifact_type": "x"}, "bundle.type"),
    ({"layers": (Descriptor(bundle.SPEC, digest_of(b"a"), 1),) * 2}, "bundle.layers"),
    ({"layers": tuple(Descriptor(bundle.WEIGHT, digest_of(b"%d" % i), 1) for i in range(bundle.MAX_LAYERS + 1))}, "bundle.layers"),
    ({"layers": (Descriptor(bundle.SPEC, "sha256:../../etc/passwd", 1),)}, "bundle.descriptor"),
    ({"layers": (Descriptor(bundle.SPEC, "sha512:" + "a" * 64, 1),)}, "bundle.descriptor"),
    ({"layers": (Descriptor(bundle.SPEC, digest_of(b"a"), -1),)}, "bundle.descriptor"),
    ({"layers": (Descriptor(bundle.SPEC, digest_of(b"a"), bundle.MAX_BLOB_BYTES + 1),)}, "bundle.descriptor"),
])
def test_each_wrong_manifest_has_its_code(changes: dict[str, object], code: str) -> None:
    with pytest.raises(MalformedError) as caught:
        decode_manifest(encode(manifest(**changes)))
    assert caught.value.code == code


def test_the_one_layer_of_a_type() -> None:
    assert manifest().only(bundle.SPEC).size == 4
    for kind in (bundle.EVALUATION,):
        with pytest.raises(MalformedError):
            manifest().only(kind)
