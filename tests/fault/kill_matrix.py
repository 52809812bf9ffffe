"""The program behind `test_kill_matrix.py`: kills a board at every point of its life, once or again and again, then starts it again.

    python tests/fault/kill_matrix.py SCENARIO [ONCE [AGAIN]]      one JSON line a case on standard output

A point lies before and after each effect, and before each change of the disk (create, reserve, write, sync, rename, link, unlink, mkdir).
Cases of a scenario, `once` for every ONCE-th point, the others for every AGAIN-th:

    once            killed there; the next start goes on
    every start     each start is killed at its own point of that number, until sixteen were or one came through
    every second    the same, but each second start is left alone until its life ends or it is killed by nothing

After that one start is left alone. What then runs must be committed, told to the host, and match the signed metadata byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from board_lives import Board, Site
from delta_shelves import DeltaShelf
from disk_taps import DiskTap
from supervised_lives import APP, DiesAt, Shelf

MAX_STARTS = 16
VERSIONS = ("1", "2", "3")


class Scenario(NamedTuple):
    """`live` is the whole life of one start; `ends` are the (version, outcome) that a kill may lead to, `worn` those of many kills."""

    live: Callable[[Board, Site], None]
    ends: frozenset[tuple[str, str]]
    worn: frozenset[tuple[str, str]]
    crashing: tuple[str, ...] = ()
    good: bool = True
    tight: bool = False
    before: Callable[[Path, Site], None] = lambda _folder, _site: None
    shelf: Callable[[Path], Shelf] = lambda folder: Shelf(folder, VERSIONS)


def _update(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"), (site.deployment(2, "2"), "idle")))
    board.acknowledge()
    board.point.phase = "upload"
    if not board.uploads.pending:
        board.uploads.add(b"a line of a log\n" * 9000, "logs", "agent.log", 4e9)
    for offer in board.uploads.pending:
        assert board.uploads.read(board.uploads.pending[offer].offer.blob, 0, 16) == b"a line of a log\n"
        board.uploads.drop(offer)


def _first(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"),))
    board.acknowledge()


def _rollback(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"), (site.deployment(2, "2"), "idle")))
    board.acknowledge()


def _superseded(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"), (site.deployment(2, "2"), "keeping"), (site.deployment(3, "3"), "idle")))


def _downgrade(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "2"), "idle"), (site.deployment(2, "1"), "idle"),
                  (site.deployment(3, "1", downgrade=True), "idle")))


def _undeploy(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"), (site.shelf.empty(2), "idle")))
    board.updater.tick()


def _repair(board: Board, site: Site) -> None:
    board.begin()
    for _ in range(20):
        if board.running or not board.pending:
            break
        board._work_once()


def _rotten(folder: Path, site: Site) -> None:
    """A board that runs version 1 and whose weights have rotted since."""
    board = Board(folder, site)
    _first(board, site)
    state = board.updater.states[APP]
    assert state.champion is not None
    path = board.store.path(state.champion.weights)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _by_delta(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"), (site.deployment(2, "2"), "idle")))
    board.acknowledge()


def _delta_shelf(folder: Path) -> Shelf:
    folder.mkdir()
    return DeltaShelf(folder)


def _all(*ends: tuple[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(ends)


SCENARIOS: dict[str, Scenario] = {
    "update": Scenario(_update, _all(("2", "committed")), _all(("2", "committed"), ("1", "failed"), ("1", "rolled_back"))),
    "refusal": Scenario(_first, _all(("", "refused")), _all(("", "refused"), ("", "failed")), good=False),
    "rollback": Scenario(_rollback, _all(("1", "rolled_back")), _all(("1", "rolled_back"), ("1", "failed"), ("", "refused"),
                                                                    ("", "failed"), ("", "rolled_back")), crashing=("2",)),
    "one at a time": Scenario(_rollback, _all(("2", "committed")), _all(("2", "committed"), ("1", "failed"), ("1", "rolled_back")),
                              tight=True),
    "superseded": Scenario(_superseded, _all(("3", "committed")), _all(("3", "committed"), ("2", "failed"), ("1", "failed"),
                                                                      ("2", "rolled_back"), ("1", "rolled_back"))),
    "downgrade": Scenario(_downgrade, _all(("1", "committed")), _all(("1", "committed"), ("2", "failed"), ("2", "rolled_back"))),
    "undeploy": Scenario(_undeploy, _all(("", "committed"), ("", "failed")), _all(("", "committed"), ("", "failed"), ("", "rolled_back"))),
    "delta": Scenario(_by_delta, _all(("2", "committed")), _all(("2", "committed"), ("1", "failed"), ("1", "rolled_back")),
                      shelf=_delta_shelf),
    "repair": Scenario(_repair, _all(("1", "committed")), _all(("1", "committed")), before=_rotten),
}


def one_start(folder: Path, site: Site, scenario: Scenario, point: int) -> dict[str, Any]:
    """One start of the board, which dies at `point` (-1: never); what it has come to."""
    dies = DiesAt(point)
    with DiskTap(folder, before=lambda op: dies(str(op))):
        board = Board(folder, site, point=dies, crashing=scenario.crashing, good=scenario.good, tight=scenario.tight)
        scenario.live(board, site)
        board.point.phase = "end"
    version = board.verify()
    state = board.updater.states[APP]
    return {"version": version, "outcome": state.last.outcome if state.last else "", "code": state.last.code if state.last else "",
            "seq": state.last.seq if state.last else 0, "phase": state.phase, "told": sorted(board.told()), "points": dies.passed}


def in_child(folder: Path, site: Site, scenario: Scenario, point: int) -> tuple[bool, dict[str, Any]]:
    """Run a start in a forked process: whether it was killed, and what it came to."""
    answer = folder.with_suffix(".json")
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            answer.write_text(json.dumps(one_start(folder, site, scenario, point)))
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  told to the parent, which fails the test
            answer.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9
    return killed, json.loads(answer.read_text()) if answer.exists() else {}


def wrong_with(after: dict[str, Any], ends: frozenset[tuple[str, str]]) -> str:
    """Why the board is not as it should be in the end; empty when it is."""
    if "error" in after:
        return str(after["error"])
    if (after["version"], after["outcome"]) not in ends:
        return f"ended with {after['version']!r}, {after['outcome']} {after['code']}"
    if [after["seq"], after["outcome"]] not in after["told"] and after["seq"] > 0 and after["outcome"]:
        return f"the host is never told of {after['outcome']}"
    return ""


def cases(root: Path, site: Site, name: str, once: int, again: int) -> Iterator[dict[str, Any]]:
    scenario = SCENARIOS[name]
    original = root / "original"
    original.mkdir()
    scenario.before(original / "state", site)

    def fresh() -> Path:
        shutil.rmtree(root / "board", ignore_errors=True)
        shutil.copytree(original, root / "board")
        return root / "board" / "state"

    _, whole = in_child(fresh(), site, scenario, -1)
    yield {"case": "whole", "phase": "", "what": "", "wrong": wrong_with(whole, scenario.ends), "after": whole}
    for point, (phase, what) in enumerate(whole["points"]):
        row = {"phase": phase, "what": what, "point": point}
        if point % once == 0:
            folder = fresh()
            killed, _ = in_child(folder, site, scenario, point)
            _, after = in_child(folder, site, scenario, -1)
            wrong = wrong_with(after, scenario.ends) if killed else "no kill"
            yield {**row, "case": "once", "kills": int(killed), "wrong": wrong, "after": after}
        for case, every in (("every start", 1), ("every second", 2)) if point % again == 0 else ():
            folder, kills = fresh(), 0
            for start in range(MAX_STARTS):
                killed, _ = in_child(folder, site, scenario, point if start % every == 0 else -1)
                kills += killed
                if not killed:
                    break
            _, after = in_child(folder, site, scenario, -1)
            yield {**row, "case": case, "kills": kills, "wrong": wrong_with(after, scenario.worn), "after": after}


def main(name: str, once: int = 1, again: int = 1) -> None:
    memory = Path("/dev/shm")  # a killed process, unlike a power cut, loses nothing that fsync would have saved
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        site = Site(SCENARIOS[name].shelf(Path(folder) / "shelf"))
        for row in cases(Path(folder), site, name, once, again):
            after = row["after"]
            if row["case"] != "whole":
                after.pop("points", None)
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
