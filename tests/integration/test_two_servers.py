"""Two `jetfleet serve` on one database: one drives, the other takes over when it dies; no wave opens twice, no board is issued twice."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from brokers import mosquitto, until
from contract_device import ContractDevice
from databases import postgres_url
from served_fleet import ServedFleet
from sqlalchemy import select

from jetfleet_contract.messages import Report
from jetfleet_host import views
from jetfleet_host.project import Project
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Issued, Lease


class Pair:
    """Two machines with a copy of one project folder each, on one database and one broker."""

    def __init__(self, folder: Path, port: int, database: str) -> None:
        self.port, self.database = port, database
        project = Project.init(folder / "one" / "fleet", broker=f"127.0.0.1:{port}")
        with (project.dir / "jetfleet.toml").open("a") as config:
            config.write(f'\n[database]\nurl = "{database}"\n')
        text = (project.dir / "jetfleet.toml").read_text()
        (project.dir / "jetfleet.toml").write_text(text.replace("[database]\n# url", "# url", 1))
        self.first = ServedFleet(folder / "one", "", Project.load(project.dir))
        self.first.publish("1")
        shutil.copytree(project.dir, folder / "two" / "fleet")
        self.second = ServedFleet(folder / "two", "", Project.load(folder / "two" / "fleet"))

    def lease(self) -> tuple[str, int]:
        with closing(Database.open(self.database)) as database, database.reading() as session:
            row = session.scalars(select(Lease)).one()
            return row.owner, row.epoch

    def issued(self) -> list[tuple[str, int]]:
        with closing(Database.open(self.database)) as database, database.reading() as session:
            return [(row.device, row.seq) for row in session.scalars(select(Issued).order_by(Issued.device))]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.slow])])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    url = f"sqlite:///{tmp_path / 'shared.db'}" if request.param == "sqlite" else postgres_url()
    with mosquitto() as broker:
        made = Pair(tmp_path, broker.port, url)
        try:
            yield made
        finally:
            made.first.stop(signal.SIGKILL)
            made.second.stop(signal.SIGKILL)


def test_the_second_takes_over_in_the_middle_of_a_wave_and_a_third_life_stands_by(pair: Pair, tmp_path: Path) -> None:
    pair.first.start()
    pair.second.start("standby")
    names = ("dock-1", "dock-2", "dock-3")
    boards = [ContractDevice(tmp_path / name, pair.first.root, pair.port, name) for name in names]
    with boards[0] as canary, boards[1] as slow, boards[2] as last:
        until(lambda: pair.first.knows(*names), "the births")
        slow.answers["1"] = ""
        rollout = pair.first.begin("toy:1", "--devices", ",".join(names))
        until(lambda: slow.deployments and last.acked, "the second wave to be under way")
        pair.first.kill()
        bundle = slow.deployments[-1].apps[0].bundle
        until(lambda: pair.lease()[1] == 2, "the second to take over", 60)
        slow.report(_committed(slow, bundle))
        until(lambda: pair.second.phase(rollout) == "done", "the rollout to end under the second", 60)
        pair.first.start("standby")
        assert pair.lease()[0].endswith("two/fleet")
        assert (canary.numbers, slow.numbers, last.numbers) == ([1], [1], [1])
        assert pair.issued() == [(name, 1) for name in names]
        with pair.second.reading() as session:
            state = views.rollout(session, rollout)
        assert [(v.wave, v.gate) for v in state.verdicts] == [(0, "install"), (0, "latency"), (1, "install"), (1, "latency")]


@pytest.mark.slow
def test_an_owner_that_was_frozen_finds_itself_superseded_and_stands_by(pair: Pair, tmp_path: Path) -> None:
    pair.first.start()
    with ContractDevice(tmp_path / "dock-1", pair.first.root, pair.port, "dock-1") as board:
        until(lambda: pair.first.knows("dock-1"), "the birth")
        pair.second.start("standby")
        os.kill(pair.first.pid, signal.SIGSTOP)
        until(lambda: pair.lease()[1] == 2, "the second to take over", 60)
        until(lambda: '"event": "up"' in pair.second.log.read_text(), "the second to serve")
        os.kill(pair.first.pid, signal.SIGCONT)
        until(lambda: '"event": "superseded"' in pair.first.log.read_text(), "the first to notice")
        rollout = pair.second.begin("toy:1", "--all")
        until(lambda: pair.second.phase(rollout) == "done", "a rollout under the second")
        assert board.numbers == [1]
        pair.second.stop()  # a clean end hands over at once
        until(lambda: pair.lease() == (pair.lease()[0], 3) and pair.lease()[0].endswith("one/fleet"), "the first to serve again")


def _committed(board: ContractDevice, bundle: str) -> Report:
    return Report(board.name, 7, board.numbers[-1], "reader", 0.0, "idle", bundle, "1", "", "committed")
