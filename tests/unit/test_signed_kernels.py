"""The board follows the signed set of kernels: fetches its SM's, checks them, lays them out, and gives them up when they are withdrawn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from signed_repository import SignedRepository
from small_cubins import cubin, fill

from jetfleet_agent.cubin_files import find_cubin
from jetfleet_agent.supervisor.signed_kernels import AGAIN_S, SignedKernels
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.errors import IncompatibleError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.kernel_sets import INTERFACE, KernelsTarget, kernels_path, read_kernels_target
from jetfleet_contract.kernels import MANIFEST, NAMES, CubinFile, KernelSet
from jetfleet_contract.messages import Instant, encode
from jetfleet_contract.trust import target_field

ROWS = ((87, 12), (87, 13), (72, 11))


class Board:
    """Trust, store and fetcher in one, and the part under test."""

    def __init__(self, folder: Path, sm: int = 87) -> None:
        self.target: KernelsTarget | None = None
        self.blobs: dict[str, bytes] = {}
        self.wanted: list[str] = []
        self.now = 0.0
        self.folder = folder
        self.part = SignedKernels(folder, sm, self, self, self, lambda: Instant(self.now, "b", 0.0, wall_trusted=True))

    def kernels(self, interface: int) -> KernelsTarget | None:
        return self.target if interface == INTERFACE else None

    def read(self, blob: str, limit: int) -> bytes:
        return self.blobs[blob][:limit]

    def want(self, blob: str, info: BlobInfo) -> None:
        assert info.size
        self.wanted.append(blob)

    def sign(self, folder: Path, found: KernelSet) -> None:
        """The host signs what lies in that folder."""
        manifest = encode(found)
        files = {cubin.digest[7:]: (folder / cubin.file).read_bytes() for cubin in found.cubins}
        self.blobs = {hashlib.sha256(manifest).hexdigest(): manifest, **files}
        self.target = KernelsTarget(INTERFACE, next(iter(self.blobs)), BlobInfo(len(manifest)),
                                    {blob: BlobInfo(len(data)) for blob, data in files.items()})
        self.part.follow()

    def deliver(self) -> None:
        """Let time pass, and give what is asked for until nothing is."""
        self.part.tick()
        while self.wanted:
            self.part.blob_done(self.wanted.pop(0))


def test_the_board_keeps_its_own_gpus_kernels(tmp_path: Path) -> None:
    board = Board(tmp_path / "kernels")
    board.sign(tmp_path / "host", fill(tmp_path / "host", ROWS))
    board.deliver()
    assert sorted(path.name for path in board.folder.iterdir()) == ["jetfleet.sm_87.cu12.cubin", "jetfleet.sm_87.cu13.cubin", MANIFEST]
    assert find_cubin(87, 12, (("signed", board.folder),)).data == cubin(87)
    board.part.follow()
    board.deliver()
    assert board.wanted == []  # it is here: a start asks for nothing
    board.sign(tmp_path / "next", fill(tmp_path / "next", ((87, 12),), code=512))
    board.deliver()
    assert sorted(path.name for path in board.folder.iterdir()) == ["jetfleet.sm_87.cu12.cubin", MANIFEST]
    board.target = None
    board.part.follow()
    board.deliver()
    assert list(board.folder.iterdir()) == []


def test_a_set_older_than_the_agent_is_kept_for_what_it_has(tmp_path: Path) -> None:
    board = Board(tmp_path / "kernels")
    names = frozenset(sorted(NAMES)[:3])
    data = cubin(87, names)
    (tmp_path / "jetfleet.cubin").write_bytes(data)
    row = CubinFile("jetfleet.cubin", 87, 12, "12.0.1", "sha256:" + hashlib.sha256(data).hexdigest(), len(data))
    board.sign(tmp_path, KernelSet("sha256:" + "5" * 64, (), tuple(names), (row,), INTERFACE))
    board.deliver()
    assert find_cubin(87, 12, (("signed", board.folder),), names).data == data
    with pytest.raises(IncompatibleError, match=r"cubin\.kernels"):
        find_cubin(87, 12, (("signed", board.folder),))


def test_a_damaged_file_on_the_board_is_fetched_again(tmp_path: Path) -> None:
    board = Board(tmp_path / "kernels")
    board.sign(tmp_path / "host", fill(tmp_path / "host", ROWS))
    board.deliver()
    path = board.folder / "jetfleet.sm_87.cu12.cubin"
    path.write_bytes(path.read_bytes()[:-9])
    board.part.follow()
    board.deliver()
    assert find_cubin(87, 12, (("signed", board.folder),)).data == cubin(87)


def test_what_is_asked_for_is_asked_again(tmp_path: Path) -> None:
    board = Board(tmp_path / "kernels")
    board.sign(tmp_path / "host", fill(tmp_path / "host", ROWS))
    assert board.part.tick() == AGAIN_S
    board.part.blob_failed(board.wanted[0], JetfleetError("transfer.lost", "gone"))
    board.now += AGAIN_S
    board.part.tick()
    assert board.wanted == [board.target.manifest] * 2 if board.target else False


def test_a_board_without_a_gpu_asks_for_nothing(tmp_path: Path) -> None:
    board = Board(tmp_path / "kernels", sm=0)
    board.sign(tmp_path / "host", fill(tmp_path / "host", ROWS))
    board.deliver()
    assert not board.folder.exists()


@pytest.mark.parametrize(("what", "kind", "code"), [
    ("foreign", IncompatibleError, "kernels.sm"),
    ("interface", IncompatibleError, "kernels.interface"),
    ("forged", IncompatibleError, "cubin.sm"),
    ("unsigned", UntrustedError, "kernels.unsigned"),
    ("manifest", MalformedError, "message.bad"),
])
def test_a_bad_set_is_refused_by_name_once_and_the_old_one_stays(tmp_path: Path, what: str, kind: type[JetfleetError], code: str) -> None:
    board = Board(tmp_path / "kernels")
    board.sign(tmp_path / "host", fill(tmp_path / "host", ROWS))
    board.deliver()
    folder = tmp_path / "bad"
    found = fill(folder, ((72, 11),) if what == "foreign" else ROWS, interface=2 if what == "interface" else INTERFACE, code=512)
    if what == "forged":  # signed, but another GPU's machine code
        data = cubin(72, code=768)
        row = found.cubins[0]
        (folder / row.file).write_bytes(data)
        row = type(row)(row.file, row.sm, row.cuda, row.nvrtc, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))
        found = type(found)(found.source, found.options, found.kernels, (row, *found.cubins[1:]), found.interface)
    board.sign(folder, found)
    assert board.target is not None
    if what == "unsigned":
        board.target = KernelsTarget(INTERFACE, board.target.manifest, board.target.info, dict(list(board.target.blobs.items())[1:]))
    if what == "manifest":
        board.blobs[board.target.manifest] = b"{}x"
    with pytest.raises(kind) as caught:
        board.deliver()
    assert caught.value.code == code
    board.part.follow()
    board.wanted.clear()
    board.deliver()
    assert board.wanted == []
    assert find_cubin(87, 13, (("signed", board.folder),)).cubin.cuda == 13


def test_the_signed_target_is_read_by_the_trust_store_and_bounded(tmp_path: Path) -> None:
    from tuf.api.metadata import TargetFile

    from jetfleet_agent.supervisor.trust import TrustStore

    repository = SignedRepository()
    blobs = {"b" * 64: BlobInfo(300)}
    path = kernels_path()
    repository.targets.targets[path] = TargetFile(100, {"sha256": "a" * 64}, path, {"custom": target_field(BlobInfo(100), blobs)})
    repository.commit()
    trust = TrustStore(tmp_path, repository.roots[0])
    assert trust.kernels(INTERFACE) is None
    trust.update(repository.package(), Instant(0.0, "b", repository.signed_at, wall_trusted=True))
    assert trust.kernels(INTERFACE) == KernelsTarget(INTERFACE, "a" * 64, BlobInfo(100), blobs)
    assert trust.kernels(INTERFACE + 1) is None


@pytest.mark.parametrize("path", ["kernels/", "kernels/01", "kernels/x", "kernels/1/2", "kernels/-1", "kernels/1234567", "kernel/1"])
def test_other_names_are_no_set(path: str) -> None:
    with pytest.raises(MalformedError, match="no set of kernels"):
        read_kernels_target(path, "a" * 64, target_field(BlobInfo(1), {"b" * 64: BlobInfo(1)}))


def test_a_set_without_cubins_or_with_a_bad_one_is_none() -> None:
    for blobs in ({}, {"b": BlobInfo(1)}):
        with pytest.raises(MalformedError):
            read_kernels_target(kernels_path(), "a" * 64, target_field(BlobInfo(1), blobs))
