"""The board's way out for pictures: the supervisor enforces the signed policy, whatever a pipeline believes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from crop_worlds import BUNDLE, DEVICE, NOTE, Board, answer, deployment, jpeg

from jetfleet_agent import ipc
from jetfleet_agent.crop_spool import MAX_FILES, CropSpool, spool_folder, take_crop
from jetfleet_agent.supervisor.audit import AuditLog, Departure, read_audit
from jetfleet_contract import topics
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.crops import Crop, unpack
from jetfleet_contract.errors import MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Envelope, decode
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sealing import Sealed
from jetfleet_contract.trust import seal
from jetfleet_host.crop_keys import CropKeys


@pytest.fixture
def keys(tmp_path: Path) -> CropKeys:
    (tmp_path / "keys").mkdir()
    return CropKeys(tmp_path / "keys")


class Signer:
    """The host's command key."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.key = Ed25519PrivateKey.generate()
        self.public = self.key.public_key().public_bytes_raw().hex()

    def sign(self, message: msgspec.Struct, kind: str = "answer") -> bytes:
        return seal(kind, message, self.public, self.key.sign)


SIGNER = Signer()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path, SIGNER.public)


def crop_of(body: bytes) -> Crop:
    return decode(bytes(decode(body, Envelope).signed), Crop)


def test_a_crop_leaves_sealed_signed_and_written_down(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("cascade", receiver=keys.receiver()))
    picture = jpeg()
    board.say(picture=picture)
    crop = crop_of(board.sent[0])
    assert (crop.answer, crop.keep, crop.app) == (True, False, "reader")
    assert picture[100:140] not in crop.box
    assert unpack(keys.open(Sealed(crop.enc, crop.box), device=DEVICE, app="reader", number=crop.id)) == (NOTE, picture)
    policy, sent = board.audit()
    assert (policy["what"], policy["purpose"]) == ("policy", "cascade")
    assert (sent["what"], sent["purpose"], sent["bytes"], sent["receiver"]) == ("sent", "cascade", len(board.sent[0]), keys.receiver())
    assert not list(spool_folder(board.run, "reader").iterdir())
    assert board.crops.gauges["crops_bytes"] == len(board.sent[0])


@pytest.mark.parametrize("purposes", [(), ("snapshot",), ("preview", "snapshot")])
def test_no_purpose_no_crop(board: Board, keys: CropKeys, purposes: tuple[str, ...]) -> None:
    board.crops.follow(deployment(*purposes, receiver=keys.receiver()))
    board.say()
    assert board.sent == []
    assert board.codes == ["crop.not-allowed"]
    assert not list(spool_folder(board.run, "reader").iterdir())


def test_no_receiver_no_crop_and_no_crop_of_another_app(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("cascade", receiver=""))
    board.say()
    board.crops.follow(deployment("cascade", receiver=keys.receiver()))
    with pytest.raises(MalformedError) as caught:
        board.say(msgspec.structs.replace(NOTE, app="other"))
    assert caught.value.code == "crop.bad"
    board.say(app="other")
    assert board.sent == []
    assert board.codes == ["crop.not-allowed", "crop.bad", "crop.not-allowed"]


def test_a_receiver_that_is_no_key_gets_nothing(board: Board) -> None:
    board.crops.follow(deployment("cascade", receiver="00" * 32))
    board.say()
    assert board.sent == []
    assert board.codes == ["crop.receiver"]


def test_a_withdrawn_purpose_deletes_what_waits_at_once(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("harvest", receiver=keys.receiver()))
    board.wire.connected = False
    board.say()
    assert board.crops.gauges["crops_waiting"] == 1
    CropSpool(spool_folder(board.run, "reader")).write(jpeg())
    board.crops.follow(deployment(receiver=keys.receiver()))
    assert not list(spool_folder(board.run, "reader").iterdir())
    assert not list((board.state / "crops").glob("[0-9]*.json"))
    board.wire.connected = True
    board.crops.on_link_up()
    board.crops.tick()
    assert board.sent == []
    assert [line.get("purpose", "") for line in board.audit()] == ["harvest", ""]


def test_what_waited_by_a_policy_that_ended_while_the_agent_was_down_is_deleted(board: Board, keys: CropKeys, tmp_path: Path) -> None:
    board.crops.follow(deployment("harvest", receiver=keys.receiver()))
    board.wire.connected = False
    board.say()
    again = Board(tmp_path, SIGNER.public, session=2)
    CropSpool(spool_folder(again.run, "reader")).write(jpeg())
    again.crops.follow(deployment(receiver=""))
    again.crops.tick()
    assert again.sent == []
    assert not list((again.state / "crops").glob("[0-9]*.json"))
    assert not list(spool_folder(again.run, "reader").iterdir())


def test_harvest_is_repeated_until_the_host_has_it_also_over_a_restart(board: Board, keys: CropKeys, tmp_path: Path) -> None:
    rules = deployment("harvest", receiver=keys.receiver())
    board.crops.follow(rules)
    board.say()
    board.mono += 61.0
    board.crops.tick()
    assert len(board.sent) == 2
    again = Board(tmp_path, SIGNER.public, session=2)
    again.crops.follow(rules)
    again.crops.tick()
    assert again.sent == board.sent[:1]
    assert crop_of(again.sent[0]).keep
    number = crop_of(again.sent[0]).id
    assert again.crops.on_message(topics.answer(DEVICE), SIGNER.sign(answer(number, code="crop.kept")))
    assert not list((again.state / "crops").glob("[0-9]*.json"))
    again.say()
    assert crop_of(again.sent[-1]).id > number


def test_bytes_that_were_used_count_after_a_restart(board: Board, keys: CropKeys, tmp_path: Path) -> None:
    rules = deployment("cascade", receiver=keys.receiver(), per_hour=20_000)
    board.crops.follow(rules)
    for _ in range(20):
        board.say()
    used = sum(map(len, board.sent))
    assert 0 < used <= 10_000  # half an hour's at once
    assert "crop.hour-budget" in board.codes
    again = Board(tmp_path, SIGNER.public, session=2)
    again.mono = board.mono + 1.0
    again.crops.follow(rules)
    for _ in range(20):
        again.say()
    assert used + sum(map(len, again.sent)) <= 10_500


def test_an_answer_counts_once_from_the_host_and_for_this_board(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("cascade", receiver=keys.receiver()))
    name = board.say()
    number = crop_of(board.sent[0]).id
    found = Detection("text", 0.9, (4.0, 4.0, 20.0, 20.0))
    topic, good = topics.answer(DEVICE), SIGNER.sign(answer(number, found))
    for code, bad in (("trust.unknown-key", Signer().sign(answer(number, found))), ("trust.signature", good.replace(b"text", b"tezt")),
                      ("trust.type", SIGNER.sign(answer(number, found), "verdict")),
                      ("crop.device", SIGNER.sign(msgspec.structs.replace(answer(number, found), device="gate-8"))),
                      ("crop.unknown", SIGNER.sign(answer(number + 1, found)))):
        with pytest.raises(UntrustedError) as caught:
            board.crops.on_message(topic, bad)
        assert caught.value.code == code
    assert board.told == []
    assert board.crops.on_message(topic, good)
    assert board.told == [("reader", ipc.Answered(name, (found,)))]
    with pytest.raises(UntrustedError) as caught:  # replayed
        board.crops.on_message(topic, good)
    assert caught.value.code == "crop.unknown"
    assert not board.crops.on_message(topics.command(DEVICE), good)


def test_without_a_broker_nobody_is_asked(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("cascade", receiver=keys.receiver()))
    board.wire.connected = False
    board.say()
    assert (board.sent, board.codes) == ([], ["crop.offline"])


def test_a_broker_that_takes_no_such_message_is_not_given_any(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("cascade", receiver=keys.receiver()))
    board.wire.limits = BrokerLimits(max_packet_bytes=1024)
    board.say()
    assert (board.sent, board.codes) == ([], ["crop.large"])


def test_what_cannot_be_written_down_does_not_leave(board: Board, keys: CropKeys) -> None:
    board.crops.follow(deployment("cascade", receiver=keys.receiver()))
    audit = board.state / "audit"
    (audit / "privacy.jsonl").unlink()
    (audit / "privacy.jsonl").mkdir()
    board.say()
    assert (board.sent, board.codes) == ([], ["audit.write"])


# --- spool and log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../identity/key.pem", "a.jpg", "", "/etc/passwd", "0" * 24, "0" * 24 + ".jpg/x", "0" * 24 + ".jpg\n"])
def test_names_of_crops_are_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(MalformedError) as caught:
        take_crop(tmp_path, name)
    assert caught.value.code == "crop.name"


def test_a_link_in_the_place_of_a_crop_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / ("0" * 24 + ".jpg")).symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError) as caught:
        take_crop(tmp_path, "0" * 24 + ".jpg")
    assert caught.value.code == "crop.gone"
    (tmp_path / ("1" * 24 + ".jpg")).write_bytes(bytes(50_000))
    with pytest.raises(MalformedError):
        take_crop(tmp_path, "1" * 24 + ".jpg")


def test_a_spool_that_nobody_empties_is_bounded(tmp_path: Path) -> None:
    spool = CropSpool(spool_folder(tmp_path, "reader"))
    names = [spool.write(bytes(20_000)) for _ in range(MAX_FILES + 20)]
    folder = spool_folder(tmp_path, "reader")
    kept = {path.name for path in folder.iterdir()}
    assert kept <= set(names)
    assert names[-1] in kept
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_audit_log_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=2000)
    for number in range(200):
        log.add(Departure(float(number), "sent", "reader", "cascade", number, 9, BUNDLE, BUNDLE))
    assert len(list(tmp_path.iterdir())) == 4
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4 * 2500
    with (tmp_path / "privacy.jsonl").open("ab") as stream:
        stream.write(b'{"at":1.0,"wh')
    numbers = [line.id for line in read_audit(tmp_path)]
    assert numbers == list(range(numbers[0], 200))
    assert json.loads((tmp_path / "privacy.jsonl").read_text().splitlines()[0])["sha256"] == BUNDLE
