"""Edge light, cloud heavy, with real processes: agent, pipeline, serve and the model's process, over a real broker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from brokers import until
from cascade_site import BOTH, CASCADE, DEVICE, FRAMES, CascadeSite, cascade_site, f1

from jetfleet_contract import topics
from jetfleet_contract.crops import Answer, Crop
from jetfleet_contract.messages import Envelope, decode
from jetfleet_host.compress.dataset import load_data

pytestmark = pytest.mark.slow


def answers(site: CascadeSite) -> list[Answer]:
    return [decode(bytes(decode(body, Envelope).signed), Answer) for body in site.spy.on(topics.answer(DEVICE))]


def test_the_hosts_model_makes_results_better_and_what_leaves_is_sealed_counted_and_kept(tmp_path: Path) -> None:
    with cascade_site(tmp_path) as site:
        site.begin(BOTH + CASCADE, fps=4.0)
        until(lambda: len(site.spy.results(amended=True)) >= FRAMES, f"amended results; {site.agent.said()[-3000:]}", 120)
        plain, amended = site.spy.results(amended=False), site.spy.results(amended=True)
        assert f1(amended) > f1(plain) + 0.2
        assert {result.frame for result in amended} <= {result.frame for result in site.spy.results(amended=False)}
        crops = [decode(bytes(decode(body, Envelope).signed), Crop) for body in site.crops()]
        assert crops
        assert all(crop.answer and crop.keep for crop in crops)
        for body in site.crops():  # a hostile broker sees closed boxes
            assert b"\xff\xd8\xff" not in body
            assert b"/9j/" not in body[:200]
        assert any(answer.model == "good:1" and not answer.code for answer in answers(site))

        audit = subprocess.run([sys.executable, "-m", "jetfleet_agent.daemon", "audit", "--config", str(site.agent.config), "--json",
                                "--last", "100000"], capture_output=True, text=True, check=True)
        lines = json.loads(audit.stdout)
        sent = [line for line in lines if line["what"] == "sent"]
        assert {crop.id for crop in crops} <= {line["id"] for line in sent}  # the line is written first
        assert {line["receiver"] for line in sent} == {site.fleet.cli("harvest", "key")["receiver"]}
        assert lines[0]["what"] == "policy"

        stats = site.fleet.cli("harvest", "stats")["apps"]
        assert stats[0]["app"] == "reader"
        assert stats[0]["answered"] > 0
        site.roll_out("")
        until(lambda: "policy" in (site.folder / "board/state/audit/privacy.jsonl").read_text().splitlines()[-1], "the policy's end", 60)
        assert not list((site.folder / "board/state/crops").glob("[0-9]*.json"))

        out = tmp_path / "hard"
        done = site.fleet.cli("harvest", "export", "--app", "reader", "--out", str(out))
        assert done["images"] > 0
        data = load_data(out)  # what `jetfleet build --data` does first
        assert data.truth is not None
        assert any(item.label == "text" for answer in data.truth for item in answer)
        assert any(not answer for answer in data.truth)  # a blue bar: nothing to see
        purged = site.fleet.cli("harvest", "purge", "--device", DEVICE)
        assert purged["pictures"] > 0
        assert not list((site.fleet.dir / "harvest").rglob("*.jpg"))


@pytest.mark.parametrize("settings", [CASCADE, 'privacy = { purposes = ["snapshot"] }\n' + CASCADE, BOTH, ""])
def test_nothing_leaves_unless_a_signed_policy_says_so(tmp_path: Path, settings: str) -> None:
    with cascade_site(tmp_path) as site:
        site.begin(settings)
        assert site.crops() == []
        assert site.spy.results(amended=True) == []
        assert not (site.folder / "board/state/audit/privacy.jsonl").exists()


def test_bytes_stay_within_the_hours_budget(tmp_path: Path) -> None:
    budget = 12_000
    with cascade_site(tmp_path) as site:
        site.begin(BOTH + CASCADE + f"bytes_per_hour = {budget}\n")
        until(lambda: len(site.spy.results(amended=False)) >= 2 * FRAMES, "more results", 120)
        assert site.crops()
        assert sum(map(len, site.crops())) <= budget


def test_a_host_that_is_down_changes_nothing_for_the_edge(tmp_path: Path) -> None:
    with cascade_site(tmp_path) as site:
        site.begin(BOTH + CASCADE)
        site.fleet.kill()
        seen = len(site.spy.results(amended=False))
        until(lambda: len(site.spy.results(amended=False)) >= seen + FRAMES, "results without a host", 60)
        late = [result.frame for result in site.spy.results(amended=False)][seen:]
        assert late == list(range(late[0], late[0] + len(late)))  # none is missing
