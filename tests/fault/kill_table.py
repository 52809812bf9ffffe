"""The program behind `test_update_kills.py`: kills an update at every point of its way, then starts the board again.

For each point the life is run twice in child processes: the first dies there by SIGKILL, the second starts from what is on disk and goes
on. One JSON line each on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from supervised_lives import DiesAt, Life, MortalDisk, Shelf


def one_life(folder: Path, shelf: Shelf, point: int, good: bool) -> dict[str, object]:
    """Install 1, update to 2; `point` is where it dies, -1 for never."""
    dies = DiesAt(point)
    life = Life(folder, shelf, disk=MortalDisk(dies), point=dies, good=good)
    state = life.live((shelf.deployment(1, "1"),)) if not good else life.live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
    return {"version": state.champion.version if state.champion else "", "outcome": state.last.outcome if state.last else "",
            "phase": state.phase, "seq": state.seq, "running": life.running, "bundle": shelf.bundles["2" if good else "1"],
            "points": dies.passed, "waiting": len(life.outbox)}


def in_child(folder: Path, shelf: Shelf, point: int, good: bool) -> tuple[int, dict[str, object]]:
    """Run a life in a forked process; its wait status and what it wrote."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            answer.write_text(json.dumps(one_life(folder / "state", shelf, point, good)))
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  told to the parent, which fails the test
            answer.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return status, json.loads(answer.read_text()) if answer.exists() else {}


def main(good: bool) -> None:
    memory = Path("/dev/shm")  # a killed process, unlike a power cut, loses nothing that fsync would have saved
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        root = Path(folder)
        shelf = Shelf(root / "shelf", ("1", "2"))
        (root / "whole").mkdir()
        status, whole = in_child(root / "whole", shelf, -1, good)
        print(json.dumps({"point": -1, "died": status != 0, "what": "", "after": whole}), flush=True)
        points = whole.get("points", [])
        assert isinstance(points, list)
        for point, what in enumerate(points):
            place = root / str(point)
            place.mkdir()
            status, _ = in_child(place, shelf, point, good)
            died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9
            _, after = in_child(place, shelf, -1, good)
            after.pop("points", None)
            print(json.dumps({"point": point, "died": died, "what": what, "after": after}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] == "good")
