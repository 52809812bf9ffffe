"""A shelf with two versions of a model whose weights moved a little, and the signed delta that leads from the first to the second."""

from __future__ import annotations

from pathlib import Path

import msgspec
from delta_files import delta, moved, weighed_bundle, weights
from supervised_lives import Shelf

from jetfleet_contract.bundle import WEIGHT, decode_manifest
from jetfleet_contract.chunks import BlobInfo, table_of
from jetfleet_contract.deltas import DeltaIndex, DeltaSource
from jetfleet_contract.messages import DeliveryPolicy, Deployment, encode
from jetfleet_contract.trust import BundleTarget, DeltaTarget


class DeltaShelf(Shelf):
    """Two versions of a model, and the delta that leads from the first to the second."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ())
        arrays = weights()
        for version in ("1", "2"):
            self.put(folder / version, version, weighed_bundle(folder / version, version, arrays))
            arrays = moved(arrays, 2e-5)
        self.weights = {version: self._weights(version) for version in ("1", "2")}
        self.made, path = delta(self.paths[self.weights["1"]], self.paths[self.weights["2"]])
        self.delta = self.add(path.read_bytes(), folder)
        self.offer(DeltaSource(self.weights["1"], self.delta, self.made.size, "tensor", 65536, self._table(path)), folder)

    def _weights(self, version: str) -> str:
        manifest = decode_manifest(self.paths[self.bundles[version]].read_bytes())
        return next(layer.blob for layer in manifest.layers if layer.media_type == WEIGHT)

    @staticmethod
    def _table(path: Path) -> str:
        data = path.read_bytes()
        return table_of((data[at:at + 65536] for at in range(0, len(data), 65536)), 65536).info.table

    def put(self, out: Path, version: str, digest: str) -> None:
        blobs = {path.name: path for path in (out / "blobs" / "sha256").iterdir()}
        self.paths.update(blobs)
        infos = {}
        for blob, path in blobs.items():
            infos[blob] = BlobInfo(path.stat().st_size, 1 << 20, "")
        manifest = digest.removeprefix("sha256:")
        self.targets[manifest] = BundleTarget("toy", version, manifest, infos.pop(manifest), infos)
        self.bundles[version] = manifest

    def add(self, data: bytes, folder: Path) -> str:
        blob = table_of([data[at:at + 65536] for at in range(0, len(data), 65536)]).blob
        (folder / blob).write_bytes(data)
        self.paths[blob] = folder / blob
        return blob

    def offer(self, source: DeltaSource, folder: Path) -> None:
        data = encode(DeltaIndex(self.bundles["2"], {self.weights["2"]: (source,)}))
        self.indexes[self.bundles["2"]] = DeltaTarget("toy", "2", self.add(data, folder), BlobInfo(len(data)))

    def deliver(self, seq: int, version: str, **policy: str) -> Deployment:
        made = self.deployment(seq, version)
        spec = msgspec.structs.replace(made.apps[0], delivery=DeliveryPolicy(**policy))  # type: ignore[arg-type]
        return msgspec.structs.replace(made, apps=(spec,))
