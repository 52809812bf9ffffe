"""Bundles on disk: deterministic, whole or absent, and every kind of damage has its own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundle_maker import PNG, make_bundle, parts

from jetfleet_contract.bundle import (
    FILEPATH,
    MAX_SPEC_BYTES,
    MODEL_CONFIG,
    PROBE_IMAGE,
    SPEC,
    WEIGHT,
    Descriptor,
    Variant,
    check_contents,
    decode_manifest,
    digest_of,
)
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.messages import encode
from jetfleet_host.bundles import open_bundle, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "toy")
    return tmp_path / "toy"


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _weight(bundle: Path) -> Path:
    opened = open_bundle(bundle)
    return opened.blob_path(opened.manifest.only(WEIGHT).digest)


def _rewrite_manifest(bundle: Path, change: Any) -> None:
    """Apply `change` to the manifest's JSON and fix index.json, as an attacker with a free hand on the folder would."""
    index = json.loads((bundle / "index.json").read_bytes())
    entry = index["manifests"][0]
    old = bundle / "blobs/sha256" / entry["digest"][7:]
    manifest = json.loads(old.read_bytes())
    change(manifest)
    data = json.dumps(manifest).encode()
    entry.update(digest=digest_of(data), size=len(data))
    (bundle / "blobs/sha256" / entry["digest"][7:]).write_bytes(data)
    (bundle / "index.json").write_text(json.dumps(index))


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "a" / "x"), make_bundle(tmp_path / "b" / "y")
    assert first == second
    assert _tree(tmp_path / "a" / "x") == _tree(tmp_path / "b" / "y")


def test_round_trip(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    made = parts(tmp_path / "again")
    assert (opened.spec, opened.evaluation, opened.probe) == (made["spec"], made["evaluation"], made["probe"])
    assert opened.blob_path(digest_of(PNG)).read_bytes() == PNG
    assert opened.manifest_digest == digest_of(opened.blob_path(opened.manifest_digest).read_bytes())


def test_writing_the_same_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "toy")
    before = _tree(tmp_path / "toy")
    assert make_bundle(tmp_path / "toy") == first
    with pytest.raises(InputError, match="never changes") as caught:
        make_bundle(tmp_path / "toy", seed=1)
    assert caught.value.code == "bundle.exists"
    assert _tree(tmp_path / "toy") == before
    assert not list(tmp_path.glob(".*"))


def test_config_is_a_modelpack_config(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.config.media_type == MODEL_CONFIG
    config = json.loads(opened.blob_path(opened.manifest.config.digest).read_bytes())
    assert set(config) == {"descriptor", "config", "modelfs"}  # additionalProperties is false in the specification's schema
    assert config["descriptor"] == {"name": "toy", "version": "1"}
    assert config["config"] == {"format": "onnx", "precision": "fp32"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer.digest for layer in opened.manifest.layers]}


def test_variants_of_equal_bytes_share_one_layer(tmp_path: Path) -> None:
    made: dict[str, Any] = parts(tmp_path / "w")
    variant, path = made["weights"][0]
    twin = msgspec.structs.replace(variant, name="twin")
    spec = msgspec.structs.replace(made["spec"], variants=(variant, twin))
    write_bundle(tmp_path / "b", **{**made, "spec": spec, "weights": [(variant, path), (twin, path)]})
    opened = open_bundle(tmp_path / "b")
    assert len(opened.manifest.layers) == 5
    assert opened.spec.variant("twin").digest == variant.digest


def test_a_weight_that_changed_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    made: dict[str, Any] = parts(tmp_path / "w")
    made["weights"][0][1].write_bytes(b"other")
    with pytest.raises(InputError) as caught:
        write_bundle(tmp_path / "b", **made)
    assert caught.value.code == "bundle.digest"
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_missing_weight_of_a_variant_is_refused(tmp_path: Path) -> None:
    made: dict[str, Any] = parts(tmp_path / "w")
    made["weights"] = []
    with pytest.raises(InputError) as caught:
        write_bundle(tmp_path / "b", **made)
    assert caught.value.code == "bundle.weights"


@pytest.mark.parametrize("bad", ["../../etc", "/abs", "UPPER", "a b", "a/../b", ""])
def test_names_that_could_become_paths_are_refused(tmp_path: Path, bad: str) -> None:
    made: dict[str, Any] = parts(tmp_path / "w")
    made["spec"] = msgspec.structs.replace(made["spec"], name=bad)
    with pytest.raises(MalformedError) as caught:
        write_bundle(tmp_path / "b", **made)
    assert caught.value.code == "name.bad"


def test_every_blob_flipped_anywhere_is_found(bundle: Path) -> None:
    for blob in sorted((bundle / "blobs/sha256").iterdir()):
        whole = blob.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            blob.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1:])
            with pytest.raises(UntrustedError) as caught:
                open_bundle(bundle)
            assert caught.value.code == "bundle.flipped"
            assert caught.value.where == str(blob)
            assert caught.value.remedy
        blob.write_bytes(whole)
    open_bundle(bundle)


def test_unverified_open_still_hashes_what_it_reads(bundle: Path) -> None:
    weight = _weight(bundle)
    weight.write_bytes(bytes(len(weight.read_bytes())))
    opened = open_bundle(bundle, verify=False)
    spec = opened.blob_path(opened.manifest.only(SPEC).digest)
    spec.write_bytes(spec.read_bytes().replace(b"cat", b"cow"))
    with pytest.raises(UntrustedError):
        open_bundle(bundle, verify=False)


def _resize(change: int) -> Any:
    def damage(folder: Path) -> None:
        weight = _weight(folder)
        weight.write_bytes(weight.read_bytes()[:change] if change < 0 else weight.read_bytes() + bytes(change))

    return damage


def _link(folder: Path) -> None:
    weight = _weight(folder)
    weight.rename(folder / "elsewhere")
    weight.symlink_to(folder / "elsewhere")


def _layer(**fields: Any) -> Any:
    return lambda folder: _rewrite_manifest(folder, lambda manifest: manifest["layers"][0].update(fields))


def _layers(change: Any) -> Any:
    return lambda folder: _rewrite_manifest(folder, lambda manifest: manifest.update(layers=change(manifest["layers"])))


_STRANGER = {"mediaType": WEIGHT, "digest": digest_of(b"stranger"), "size": 8}
_MANY = [{"mediaType": WEIGHT, "digest": digest_of(str(i).encode()), "size": 1} for i in range(300)]


@pytest.mark.parametrize(("code", "damage"), [
    ("bundle.truncated", _resize(-1)),
    ("bundle.oversize", _resize(1)),
    ("bundle.link", _link),
    ("bundle.missing", lambda folder: _weight(folder).unlink()),
    ("bundle.index", lambda folder: (folder / "index.json").unlink()),
    ("bundle.layout", lambda folder: (folder / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')),
    ("bundle.not-found", shutil.rmtree),
    ("bundle.path", _layer(annotations={FILEPATH: "../../../root/.ssh/authorized_keys"})),
    ("bundle.descriptor", _layer(digest="sha256:../../../../etc/passwd")),
    ("bundle.large", _layer(size=MAX_SPEC_BYTES + 1)),
    ("bundle.layers", _layers(lambda layers: [*layers, layers[0]])),
    ("bundle.layers", _layers(lambda layers: [*layers, *_MANY])),
    ("bundle.config", _layers(lambda layers: layers[::-1])),
    ("bundle.config", _layers(lambda layers: layers[1:])),
    ("bundle.config", _layers(lambda layers: [*layers, _STRANGER])),
])
def test_each_damage_has_its_own_code(bundle: Path, code: str, damage: Any) -> None:
    damage(bundle)
    with pytest.raises(JetfleetError) as caught:
        open_bundle(bundle)
    assert caught.value.code == code
    assert caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize("media_type", [WEIGHT, PROBE_IMAGE, "application/x-sh"])
def test_a_layer_that_nothing_names_is_extra(bundle: Path, media_type: str) -> None:
    opened = open_bundle(bundle)
    layers = (*opened.manifest.layers, Descriptor(media_type, digest_of(b"stranger"), 8))
    with pytest.raises(MalformedError) as caught:
        check_contents(msgspec.structs.replace(opened.manifest, layers=layers), opened.spec, opened.evaluation, opened.probe)
    assert caught.value.code == "bundle.extra"


def test_a_blob_that_only_lies_beside_is_checked_too(bundle: Path) -> None:
    beside = bundle / "blobs/sha256" / digest_of(b"measured later")[7:]
    beside.write_bytes(b"measured later")
    open_bundle(bundle)
    beside.write_bytes(b"measured Later")
    with pytest.raises(UntrustedError) as caught:
        open_bundle(bundle)
    assert caught.value.where == str(beside)
    open_bundle(bundle, verify=False)


def test_huge_manifest_and_index_are_not_read(bundle: Path) -> None:
    index = json.loads((bundle / "index.json").read_bytes())
    entry = index["manifests"][0]
    (bundle / "blobs/sha256" / entry["digest"][7:]).write_bytes(b"[" * (MAX_SPEC_BYTES + 1))
    entry["size"] = MAX_SPEC_BYTES + 1
    (bundle / "index.json").write_text(json.dumps(index))
    with pytest.raises(MalformedError) as caught:
        open_bundle(bundle)
    assert caught.value.code == "bundle.large"
    (bundle / "index.json").write_bytes(b" " * 100_000)
    with pytest.raises(MalformedError) as caught:
        open_bundle(bundle)
    assert caught.value.code == "bundle.index"


def test_manifest_is_what_the_contract_decodes(bundle: Path) -> None:
    opened = open_bundle(bundle)
    data = opened.blob_path(opened.manifest_digest).read_bytes()
    assert decode_manifest(data) == opened.manifest
    assert encode(opened.manifest) == data
    assert Descriptor("", opened.manifest_digest, 0).blob in {p.name for p in (bundle / "blobs/sha256").iterdir()}


def test_evaluation_of_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    made: dict[str, Any] = parts(tmp_path / "w")
    other = Variant("other", made["spec"].variants[0].digest, made["spec"].variants[0].size, "fp32")
    made["spec"] = msgspec.structs.replace(made["spec"], variants=(other,))
    made["weights"] = [(other, made["weights"][0][1])]
    with pytest.raises(MalformedError) as caught:
        write_bundle(tmp_path / "b", **made)
    assert caught.value.code == "bundle.variant"
