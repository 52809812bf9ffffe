"""Reports: signed once, kept until acknowledged, never twice, bounded."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from jetfleet_agent.supervisor.journal import RealDisk
from jetfleet_agent.supervisor.outbox import MAX_REPORTS, Outbox
from jetfleet_contract.messages import Report, decode, encode
from jetfleet_contract.slot_records import Progress

UNDER_WAY = Progress(1, "trial", "a" * 64, "2")
DONE = Progress(1, "keeping", "a" * 64, "2", outcome="committed", metrics={"gap_ms": 1.0})


def outbox(folder: Path, session: int = 1, disk: RealDisk | None = None) -> Outbox:
    return Outbox(folder, "board", session, encode, lambda: 0.5, disk)


def due(box: Outbox, mono: float) -> list[Report]:
    return [decode(body, Report) for body in box.due(mono)]


def test_a_report_is_sent_until_it_is_acknowledged(tmp_path: Path) -> None:
    box = outbox(tmp_path)
    box.add("gate", DONE, 1.8e9)
    first = due(box, 0.0)
    assert (first[0].outcome, first[0].metrics, first[0].app, first[0].at) == ("committed", {"gap_ms": 1.0}, "gate", 1.8e9)
    assert due(box, 0.1) == []
    wait = box.next_due(0.0)
    assert wait is not None
    assert 0 < wait <= 2.0
    assert [r.id for r in due(box, 2.1)] == [first[0].id]
    box.acknowledged(first[0].id)
    assert (len(box), box.next_due(3.0), due(box, 1e6)) == (0, None, [])


def test_the_pauses_grow_and_a_new_link_hurries(tmp_path: Path) -> None:
    box = outbox(tmp_path)
    box.add("gate", DONE, 0.0)
    mono, waits = 0.0, []
    for _ in range(8):
        assert due(box, mono)
        wait = box.next_due(mono)
        assert wait is not None
        waits.append(wait)
        mono += wait
    assert waits == sorted(waits)
    assert waits[-1] > 30
    box.hurry()
    assert due(box, mono - 1)


def test_an_outcome_outlives_a_restart_and_progress_does_not(tmp_path: Path) -> None:
    box = outbox(tmp_path)
    box.add("gate", UNDER_WAY, 0.0)
    box.add("gate", DONE, 0.0)
    again = outbox(tmp_path, 2)
    assert [(r.outcome, r.phase) for r in due(again, 0.0)] == [("committed", "keeping")]
    assert due(again, 1e6)[0].id == due(box, 0.0)[1].id, "the same report keeps its number"


def test_the_same_progress_is_one_report_also_after_its_acknowledgement_and_a_restart(tmp_path: Path) -> None:
    box = outbox(tmp_path)
    box.add("gate", DONE, 0.0)
    box.add("gate", DONE, 5.0)
    assert len(box) == 1
    box.acknowledged(due(box, 0.0)[0].id)
    box.add("gate", DONE, 9.0)
    again = outbox(tmp_path, 2)
    again.add("gate", DONE, 9.0)
    assert len(box) == len(again) == 0
    again.add("other", DONE, 9.0)
    assert len(again) == 1


def test_numbers_of_different_starts_never_meet(tmp_path: Path) -> None:
    one, two = outbox(tmp_path / "1", 1), outbox(tmp_path / "2", 2)
    for box in (one, two):
        box.add("gate", UNDER_WAY, 0.0)
    assert due(one, 0.0)[0].id < due(two, 0.0)[0].id


def test_when_it_is_full_progress_goes_first(tmp_path: Path) -> None:
    box = outbox(tmp_path)
    box.add("keep", DONE, 0.0)
    for number in range(MAX_REPORTS * 2):
        box.add(f"app{number}", UNDER_WAY, 0.0)
    assert len(box) == MAX_REPORTS
    assert due(box, 0.0)[0].app == "keep"
    for number in range(MAX_REPORTS * 2):
        box.add(f"app{number}", DONE, 0.0)
    assert len(box) == MAX_REPORTS
    assert len(list(tmp_path.glob("*.json"))) == MAX_REPORTS, "what was dropped leaves the disk too"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"id": "x"}'])
def test_a_damaged_file_is_left_out(tmp_path: Path, data: bytes) -> None:
    box = outbox(tmp_path)
    box.add("gate", DONE, 0.0)
    (tmp_path / "7.json").write_bytes(data)
    (tmp_path / "settled.json").write_bytes(data)
    assert len(outbox(tmp_path, 2)) == 1


def test_a_full_disk_does_not_keep_a_report_from_being_sent(tmp_path: Path) -> None:
    class Full(RealDisk):
        def put(self, path: Path, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "full")

    box = outbox(tmp_path, disk=Full())
    box.add("gate", DONE, 0.0)
    report = due(box, 0.0)[0]
    box.acknowledged(report.id)
    box.add("gate", DONE, 0.0)
    assert len(box) == 0


def test_a_long_detail_is_cut(tmp_path: Path) -> None:
    box = outbox(tmp_path)
    box.add("gate", Progress(1, "trial", detail="x" * 10_000), 0.0)
    assert len(due(box, 0.0)[0].detail) == 500
