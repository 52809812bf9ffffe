"""A board that was off, or cut off in the middle, while its fleet was rolled back: woken, it converges from what the broker retained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import mosquitto, until
from fleet_rig import AgentProcess, HostRig, app_spec

from jetfleet_contract.messages import AppSpec

DEVICE = "gate-1"


class Sleeper:
    """A broker, a host with two published versions, and a board that runs the first."""

    def __init__(self, folder: Path, port: int) -> None:
        self.host = HostRig(folder / "host", port)
        self.board = AgentProcess(folder / DEVICE, DEVICE, port, self.host.project.root_file).start()
        self.bundles = {version: self.host.publish(version) for version in ("1", "2")}
        outcome = self.host.outcome(self.host.deploy(DEVICE, self.spec("1")))
        assert outcome.outcome == "committed", outcome

    def spec(self, version: str, *, downgrade: bool = False) -> AppSpec:
        return msgspec.structs.replace(app_spec(self.bundles[version], version), downgrade=downgrade)

    def roll_back(self) -> int:
        """What a rollout's way back sends: the older version, with an operator's approval."""
        return self.host.deploy(DEVICE, self.spec("1", downgrade=True))

    def runs(self) -> str:
        before = len(self.host.results)
        until(lambda: len(self.host.results) > before + 3, "results", 60)
        return self.host.results[-1].version


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Sleeper]:
    with mosquitto() as broker:
        made = Sleeper(tmp_path, broker.port)
        yield made
        try:
            made.board.stop()
        finally:
            made.host.stop()
        assert not made.host.faults, made.host.faults


def test_off_during_the_rollback(sleeper: Sleeper) -> None:
    host = sleeper.host
    assert host.outcome(host.deploy(DEVICE, sleeper.spec("2"))).outcome == "committed"
    sleeper.board.kill()
    seq = sleeper.roll_back()
    sleeper.board.start()
    outcome = host.outcome(seq)
    assert (outcome.outcome, outcome.version, outcome.from_version) == ("committed", "1", "2")
    assert sleeper.runs() == "1"


@pytest.mark.slow
def test_off_during_the_update_and_the_rollback_it_never_hears_of_the_update(sleeper: Sleeper) -> None:
    host = sleeper.host
    sleeper.board.kill()
    missed = host.deploy(DEVICE, sleeper.spec("2"))
    seq = sleeper.roll_back()
    sleeper.board.start()
    outcome = host.outcome(seq)
    assert (outcome.outcome, outcome.version, outcome.phase) == ("committed", "1", "idle")
    assert not [report for report in host.reports if report.seq == missed]
    assert sleeper.runs() == "1"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["fetching", "keeping"])
def test_cut_off_in_the_middle_of_the_update_and_off_during_the_rollback(sleeper: Sleeper, phase: str) -> None:
    host = sleeper.host
    missed = host.deploy(DEVICE, sleeper.spec("2"))
    until(lambda: any(report.seq == missed and report.phase == phase for report in host.reports), phase, 60)
    sleeper.board.kill()
    seq = sleeper.roll_back()
    sleeper.board.start()
    assert (host.outcome(seq).outcome, host.outcome(seq).version) == ("committed", "1")
    assert sleeper.runs() == "1"


def test_without_an_operators_word_an_older_release_is_refused_by_the_board_itself(sleeper: Sleeper) -> None:
    host = sleeper.host
    assert host.outcome(host.deploy(DEVICE, sleeper.spec("2"))).outcome == "committed"
    outcome = host.outcome(host.deploy(DEVICE, sleeper.spec("1")))
    assert (outcome.outcome, outcome.code) == ("refused", "slots.downgrade")
    assert sleeper.runs() == "2"
