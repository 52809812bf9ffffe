"""The host's model process, its queue, and the hard-example set: kept, bounded, exported as a data folder, deleted."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import until
from cascade_site import save_good
from crop_worlds import DEVICE, NOTE, Wire, jpeg
from hypothesis import given
from hypothesis import strategies as st
from pipelines import detector_task
from typer.testing import CliRunner

from jetfleet_contract.crops import Crop, CropAnswer, CropJob
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import Instant
from jetfleet_contract.predictions import Detection
from jetfleet_host.cli import app
from jetfleet_host.compress.dataset import load_data
from jetfleet_host.crop_answers import Answering, Work
from jetfleet_host.crops import CropBounds, Crops, _Model, _row, _Taken
from jetfleet_host.custody import split
from jetfleet_host.fair_queue import FairQueue
from jetfleet_host.harvest import HarvestFiles, export
from jetfleet_host.project import Project
from jetfleet_host.store import harvest
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import HardExample

SEEN = Detection("text", 0.9, (4.0, 4.0, 20.0, 20.0))


# --- the queue ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60), st.integers(1, 8), st.integers(1, 4))
def test_the_queue_is_bounded_loses_nothing_silently_and_gives_urgent_first(puts: list[tuple[str, bool]], most: int, each: int) -> None:
    queue: FairQueue[tuple[str, int, bool]] = FairQueue(most, each)
    lost = []
    for number, (device, urgent) in enumerate(puts):
        gone = queue.put(device, (device, number, urgent), urgent=urgent)
        lost += [gone] if gone is not None else []
        assert len(queue) <= max(most, 1)
    got = [queue.get(0.0) for _ in range(len(queue))]
    assert sorted(number for _, number, _ in [*lost, *got]) == list(range(len(puts)))  # type: ignore[misc]
    assert [item[2] for item in got if item] == sorted((item[2] for item in got if item), reverse=True)
    for device in "abcd":
        for urgent in (True, False):
            order = [item[1] for item in got if item and item[0] == device and item[2] == urgent]
            assert order == sorted(order)
            assert len(order) <= each


def test_boards_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(100, 50)
    for number in range(5):
        queue.put("busy", f"busy{number}", urgent=True)
    queue.put("calm", "calm", urgent=True)
    assert [queue.get(0.0) for _ in range(3)] == ["busy0", "calm", "busy1"]
    queue.close()
    assert queue.get(10.0) is None


# --- the process -------------------------------------------------------------------------------------------------


def work(folder: Path, number: int, task: Any = None, picture: str = "") -> Work:
    pieces = (((0, 0, 32, 24), jpeg()),)
    job = CropJob(number, str(save_good(folder / "good.onnx")), task or detector_task(), (64, 48), pieces, 1)
    return Work(job, "a", (picture or str(number),), number)


@contextmanager
def answering(folder: Path, numbers: int, **options: Any) -> Iterator[tuple[Answering, list[CropAnswer]]]:
    queue: FairQueue[Work] = FairQueue(16, 16)
    answers: list[CropAnswer] = []
    made = Answering(queue, lambda _work, answer: answers.append(answer), **options)
    for number in range(1, numbers + 1):
        queue.put("a", work(folder, number), urgent=True)
    made.start()
    try:
        yield made, answers
    finally:
        made.stop()


def test_the_real_process_answers_in_order_and_ends_with_us(tmp_path: Path) -> None:
    with answering(tmp_path, 3) as (made, answers):
        until(lambda: len(answers) == 3, "answers", 60)
        assert [(answer.id, answer.code) for answer in answers] == [(1, ""), (2, ""), (3, "")]
        child = made._child
    assert child is not None
    assert child.poll() is not None


def test_crops_of_one_picture_are_answered_by_one_run(tmp_path: Path) -> None:
    queue: FairQueue[Work] = FairQueue(16, 16)
    answers: list[tuple[object, CropAnswer]] = []
    for number, picture in enumerate(("x", "y", "x", "x"), 1):
        queue.put("a", work(tmp_path, number, picture=picture), urgent=True)
    made = Answering(queue, lambda each, answer: answers.append((each.subject, answer)))
    made.start()
    try:
        until(lambda: len(answers) == 4, "answers", 60)
    finally:
        made.stop()
    assert [(subject, answer.id) for subject, answer in answers] == [(1, 1), (3, 1), (4, 1), (2, 2)]


DIES = "import sys; sys.stdin.readline(); sys.exit(3)"
HANGS = "import sys, time; sys.stdin.readline(); time.sleep(600)"
LIES = "import sys; sys.stdin.readline(); print('no json', flush=True); sys.stdin.readline()"


@pytest.mark.parametrize("program", [DIES, HANGS, LIES])
def test_a_process_that_dies_hangs_or_lies_costs_the_crop_in_hand(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetfleet_host.crop_answers.PAUSE_S", 0.01)
    with answering(tmp_path, 2, program=(sys.executable, "-c", program), answer_s=1.0) as (made, answers):
        until(lambda: len(answers) == 2, "answers", 60)
        assert [(answer.id, answer.code) for answer in answers] == [(1, "crop.model"), (2, "crop.model")]
        assert made.restarts == 2


def test_the_program_ends_when_its_input_does() -> None:
    done = subprocess.run([sys.executable, "-m", "jetfleet_agent.pipeline.answer_crops"], input=b"", capture_output=True, timeout=60,
                          check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    done = subprocess.run([sys.executable, "-m", "jetfleet_agent.pipeline.answer_crops"], input=b"nonsense\n", capture_output=True,
                          timeout=60, check=False)
    assert done.returncode == 1


# --- the set -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.init(tmp_path / "fleet")


def keep(project: Project, number: int, *, said: tuple[Detection, ...] = (SEEN,), code: str = "", app: str = "reader", at: float = 1000.0,
         task: str = "detect-db", picture: bytes = b"", device: str = DEVICE) -> None:
    picture = picture or jpeg(seed=number)
    spec = msgspec.structs.replace(detector_task(), kind=task)
    taken = _Taken(Crop(device, number, app, 1.0, True, True, b"", b""), NOTE, picture, True, True, _Model("", spec, "good:1"))
    HarvestFiles(project.dir / "harvest").put(hashlib.sha256(picture).hexdigest(), picture)
    database = Database.open(project.database_url)
    with database.session() as session:
        harvest.add(session, _row(taken, CropAnswer(number, said, code), at))
    database.close()


def rows(project: Project) -> list[HardExample]:
    database = Database.open(project.database_url)
    try:
        with database.reading() as session:
            return harvest.find(session)
    finally:
        database.close()


def run(project: Project, *arguments: str, fails: bool = False) -> Any:
    done = CliRunner().invoke(app, ["harvest", *arguments, "--dir", str(project.dir), "--json"])
    assert (done.exception is not None and not isinstance(done.exception, SystemExit)) == fails, done.output
    return done.exception if fails else json.loads(done.stdout)


def test_an_export_is_a_data_folder(project: Project, tmp_path: Path) -> None:
    keep(project, 1)
    keep(project, 2, said=())
    keep(project, 3, code="crop.model")
    keep(project, 4, said=(msgspec.structs.replace(SEEN, score=0.3), msgspec.structs.replace(SEEN, box=(40.0, 30.0, 60.0, 40.0))))
    keep(project, 5, picture=jpeg(16, 12, seed=5))  # half as many pixels as its window
    out = tmp_path / "hard"
    told = run(project, "export", "--out", str(out))
    assert (told["images"], told["labels"], told["skipped"]) == (4, 2, {"not answered": 1})
    data = load_data(out)
    assert data.truth is not None
    boxes = sorted(found.box for answer in data.truth for found in answer if found.box)
    assert boxes == [(2.0, 2.0, 10.0, 10.0), (4.0, 4.0, 20.0, 20.0)]
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
    assert run(project, "export", "--out", str(out), fails=True).code == "harvest.out"


def test_whole_labels_are_exported_as_such_and_not_mixed(project: Project, tmp_path: Path) -> None:
    keep(project, 1, task="classify", said=(Detection("dog", 0.9), Detection("cat", 0.1)), app="sorter")
    keep(project, 2, task="classify", said=(Detection("dog", 0.4),), app="sorter")
    keep(project, 3)
    assert run(project, "export", "--out", str(tmp_path / "all"), fails=True).code == "harvest.mixed"
    told = run(project, "export", "--app", "sorter", "--out", str(tmp_path / "sorted"))
    assert (told["images"], told["skipped"]) == (1, {"no clear label": 1})
    truth = load_data(tmp_path / "sorted").truth
    assert truth == ((Detection("dog", 1.0),),)


def test_nothing_to_export_is_said(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export(HarvestFiles(project.dir / "harvest"), [], tmp_path / "out", 0.5)
    assert caught.value.code == "harvest.empty"


def test_list_and_stats_tell_what_is_kept(project: Project) -> None:
    keep(project, 1, at=time.time())
    keep(project, 2, code="crop.model", device="gate-8", at=time.time())
    listed = run(project, "list", "--device", DEVICE)
    told = [(row["device"], row["answered"], row["said"][0][0], row["window"]) for row in listed]
    assert told == [(DEVICE, True, "text", [0, 0, 32, 24])]
    assert run(project, "list", "--before", "2001-01-01") == []
    stats = run(project, "stats")["apps"][0]
    assert (stats["app"], stats["examples"], stats["answered"]) == ("reader", 2, 1)
    assert run(project, "list", "--since", "yesterday", fails=True).code == "harvest.day"
    for command in (["list"], ["stats"]):
        assert CliRunner().invoke(app, ["harvest", *command, "--dir", str(project.dir)]).exit_code == 0


def test_purge_deletes_rows_and_pictures_that_nobody_else_names(project: Project) -> None:
    shared = jpeg(seed=9)
    keep(project, 1, picture=shared)
    keep(project, 2, picture=shared, device="gate-8")
    keep(project, 3)
    assert run(project, "purge", fails=True).code == "harvest.purge"
    assert run(project, "purge", "--device", DEVICE) == {"examples": 2, "pictures": 1}
    assert [row.device for row in rows(project)] == ["gate-8"]
    assert len(list((project.dir / "harvest").rglob("*.jpg"))) == 1
    assert run(project, "purge", "--before", "2001-01-01") == {"examples": 1, "pictures": 1}
    assert list((project.dir / "harvest").rglob("*.jpg")) == []


def test_the_set_stays_within_its_bytes_the_oldest_go(project: Project, tmp_path: Path) -> None:
    for number in range(1, 7):
        keep(project, number)
    sizes = [row.size for row in rows(project)]  # the newest first
    database = Database.open(project.database_url)
    bounds = CropBounds(1, 1, sum(sizes[:3]))
    crops = Crops(project, database, Wire(), lambda *_: None, lambda _: b"", bounds, lambda: None)  # type: ignore[arg-type]
    crops.tick(Instant(1.0, "b", 1.0, True))
    crops.close()
    database.close()
    assert [row.crop for row in rows(project)] == [6, 5, 4]
    assert len(list((project.dir / "harvest").rglob("*.jpg"))) == 3


def test_the_control_machine_gets_the_key_to_which_boards_seal(project: Project, tmp_path: Path) -> None:
    from jetfleet_host.crop_keys import CropKeys

    key = run(project, "key")["receiver"]
    other = split(project, tmp_path / "serve")
    assert CropKeys(other / "keys").receiver() == key
    assert CropKeys(project.keys_dir).files() == {}


def test_a_new_key_is_used_and_the_old_one_still_opens(project: Project) -> None:
    from jetfleet_agent.supervisor.sealing import seal
    from jetfleet_host.crop_keys import CropKeys

    keys = CropKeys(project.keys_dir)
    old = keys.receiver()
    box = seal(old, b"data", device=DEVICE, purpose="crop", name="reader", version=3)
    new = run(project, "key", "--new")
    assert new["receiver"] != old
    assert sorted(new["held"]) == sorted({old, new["receiver"]})
    assert keys.receiver() == new["receiver"]
    assert keys.open(box, device=DEVICE, app="reader", number=3) == b"data"
    assert {path.stat().st_mode & 0o777 for path in keys.files().values()} == {0o600}
