"""The doctor's checks of the system's journal, TensorRT's version and crashes; and the file that crashes are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
from choices import capability_of

from jetfleet_agent import doctor_software
from jetfleet_agent.boards import load_board
from jetfleet_agent.doctor_software import crashes, disk_usage, system_journal, tensorrt
from jetfleet_agent.supervisor.crash_log import CRASHES, KEPT, QUIET_S, Crash, CrashLog, read_crashes
from jetfleet_contract.messages import BackendInfo

NOW = 1_700_000_000.0


@pytest.mark.parametrize(("usage", "verdict", "words"), [
    ("Archived and active journals take up 3.9G in the file system.\n", "warning", "3994 MB, without a bound of its own"),
    ("Archived and active journals take up 512.0M in the file system.", "ok", "512 MB"), ("Journals take up 0B in it", "ok", "0 MB"),
    ("", "ok", "no journald"), ("garbage take up lots", "ok", "no journald")])
def test_the_journals_size(tmp_path: Path, usage: str, verdict: str, words: str) -> None:
    check = system_journal(usage, tmp_path)
    assert (check.verdict, words in check.finding) == (verdict, True)
    assert ("--vacuum-size" in check.remedy) == (verdict == "warning")


def test_the_journals_bound_is_the_last_that_systemd_reads(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/journald.conf.d"
    folder.mkdir(parents=True)
    (tmp_path / "etc/systemd/journald.conf").write_text("[Journal]\n#SystemMaxUse=1G\nSystemMaxUse=2G\n")
    assert "at most 2G" in system_journal("take up 1.0M", tmp_path).finding
    (folder / "50-small.conf").write_text("[Journal]\nSystemMaxUse = 200M\n")
    (folder / "notes.txt").write_text("SystemMaxUse=9G\n")
    assert "at most 200M" in system_journal("take up 1.0M", tmp_path).finding


def test_a_journalctl_that_is_not_there_or_hangs_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "journalctl"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert disk_usage() == ""
    program.write_text("#!/bin/sh\necho \"Archived and active journals take up $(( 8 * 2 )).0M in the file system, asked: $1\"\n")
    program.chmod(0o755)
    assert disk_usage() == "Archived and active journals take up 16.0M in the file system, asked: --disk-usage\n"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(doctor_software, "JOURNAL_WAIT_S", 0.2)
    assert disk_usage() == ""


@pytest.mark.parametrize(("version", "missing", "l4t", "verdict", "words"), [
    ("10.3.0.30", "", "36.4.3", "ok", "10.3.0.30, as JetPack 6.2"), ("10.7.0", "", "36.4.3", "warning", "comes with 10.3"),
    ("10.30.1", "", "36.4", "warning", "comes with 10.3"), ("10.16.2", "", "39.2.0", "ok", "JetPack 7.2"),
    ("", "no module", "36.4.3", "warning", "no module; JetPack 6.2")])
def test_tensorrt_against_the_boards_release(version: str, missing: str, l4t: str, verdict: str, words: str) -> None:
    check = tensorrt(capability_of(BackendInfo("tensorrt", version, missing=missing)), load_board("orin-nano"), l4t)
    assert check is not None
    assert (check.verdict, words in check.finding) == (verdict, True), check.finding
    assert bool(check.remedy) == (verdict != "ok")


def test_where_nobody_can_say_which_tensorrt_to_expect_there_is_no_check() -> None:
    there = capability_of(BackendInfo("tensorrt", "10.3"))
    assert tensorrt(there, load_board("orin-nano"), "") is None
    assert tensorrt(there, load_board("orin-nano"), "35.1") is None
    assert tensorrt(capability_of(), load_board("orin-nano"), "36.4.3") is None
    assert tensorrt(there, load_board("cpu-x86"), "36.4.3") is None


def test_crashes_of_a_day_are_counted_by_app_with_what_to_do() -> None:
    old, last = Crash(NOW - 90_000, "pipeline.exit"), Crash(NOW - 60, "pipeline.killed", "SIGSEGV; core dumped")
    assert crashes({}, NOW).verdict == crashes({"gate": [old] * 9}, NOW).verdict == "ok"
    few = crashes({"gate": [old, last], "door": [Crash(NOW + 1e6, "pipeline.exit")]}, NOW)
    assert (few.verdict, "gate 1 time, " in few.finding, "door" in few.finding) == ("ok", True, False)
    many = crashes({"door": [last], "gate": [old, last, last, last]}, NOW)
    assert many.verdict == "warning"
    assert many.finding.startswith("in the last day: gate 3 times, the last at ")
    assert "pipeline.killed SIGSEGV" in many.finding
    assert "dmesg" in many.remedy
    assert "(task.odd)" in crashes({"gate": [Crash(NOW, "task.odd")] * 3}, NOW).remedy


def test_crashes_are_kept_over_restarts_and_written_seldom(tmp_path: Path) -> None:
    path = tmp_path / CRASHES
    log = CrashLog(path)
    log.note("gate", "pipeline.killed", "x" * 1000, NOW, 0.0)
    (kept,) = read_crashes(path)["gate"]
    assert (kept.at, kept.code, len(kept.detail)) == (NOW, "pipeline.killed", 200)
    written = path.stat().st_mtime_ns
    for second in range(1, int(QUIET_S)):
        log.note("gate", "pipeline.exit", "", NOW + second, float(second))
    assert path.stat().st_mtime_ns == written, "a crash loop does not wear the flash"
    log.note("door", "pipeline.exit", "", NOW + QUIET_S, QUIET_S)
    assert len(read_crashes(path)["gate"]) == QUIET_S
    log.note("door", "pipeline.exit", "", NOW + QUIET_S, QUIET_S + 1)
    log.close()
    again = CrashLog(path)
    for second in range(2 * KEPT):
        again.note("gate", "late", "", NOW + 1000 + second, QUIET_S * second)
    assert [crash.code for crash in read_crashes(path)["gate"]] == ["late"] * KEPT
    assert len(read_crashes(path)["door"]) == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"apps": 3}', b"\xff" * 100])
def test_a_damaged_file_of_crashes_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / CRASHES
    path.write_bytes(data)
    assert read_crashes(path) == {}
    CrashLog(path).note("gate", "pipeline.exit", "", NOW, 0.0)
    assert len(read_crashes(path)["gate"]) == 1
