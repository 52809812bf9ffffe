"""A class shares one engine: one of its builders builds it, a second board tries it, all others fetch it and run it. Real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_class import engine_class

pytest.importorskip("openvino")


@pytest.mark.timeout(300)
def test_one_builds_the_other_tries_fetches_and_runs_it(tmp_path: Path) -> None:
    with engine_class(tmp_path, "b1", "c1") as site:
        site.name_builders("b1")
        site.roll_out()
        work = site.until_state("certified")
        assert (work.by, work.second) == ("b1", "c1")
        assert work.agreement >= 0.95
        assert work.p50_ms > 0
        site.load_it("b1", "c1")
        assert site.built() == ["b1"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_five_one_builds_and_four_fetch_and_run_it(tmp_path: Path) -> None:
    names = ("b1", "b2", "c1", "c2", "c3")
    with engine_class(tmp_path, *names) as site:
        site.name_builders("b1", "b2")
        site.roll_out()
        work = site.until_state("certified")
        site.load_it(*names)
        assert site.built() == [work.by]
        assert len(site.works) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_builder_gives_way_to_another(tmp_path: Path) -> None:
    with engine_class(tmp_path, "b1", "b2", "c1") as site:
        site.roll_out()  # first: a canary that is killed holds the rollout
        site.name_builders("b1", "b2")
        first = site.until_state("building").by
        site.agents[first].kill()
        work = site.until_state("certified")
        assert {first, work.by} == {"b1", "b2"}
        site.load_it("c1")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_second_board_nobody_else_may_run_it(tmp_path: Path) -> None:
    with engine_class(tmp_path, "b1") as site:
        site.name_builders("b1")
        site.roll_out()
        assert site.until_state("uncertified").code == "engine.uncertified"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_where_nobody_is_named_the_host_says_what_to_do(tmp_path: Path) -> None:
    with engine_class(tmp_path, "c1") as site:
        site.roll_out()
        work = site.until_state("wanted")
        assert work.code == "engine.nobody"
        assert "jetfleet keys delegate" in work.detail
