"""From the words of `rollout start` to a plan: which boards, in which order, with which settings, and every way to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from jetfleet_contract.errors import InputError
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import AppSpec, Birth, Capability, Deployment, Source
from jetfleet_contract.rollout_plan import Selector
from jetfleet_host.rollout_plans import Bundle, Wish, read_apps, request_for
from jetfleet_host.store import fleet, journal, tags
from jetfleet_host.store.database import Database
from jetfleet_host.store.journal import StartRequest
from jetfleet_host.store.models import Device

BUNDLE = Bundle("ocr", "2", "22" * 32)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")) as opened:
        with opened.session() as session:
            for name, kind in (("dock-1", "cpu-x86"), ("dock-2", "cpu-x86"), ("gate-1", "orin-nano"), ("gate-2", "orin-nano")):
                fleet.save_birth(session, None, Birth(name, 1, "0.1", 1, "ab" * 32, Capability(kind, kind, "x")), name.encode(), 1.0)
            journal.save_deployment(session, Deployment("dock-1", 3, 1e10, (AppSpec("reader", "11" * 32, "ocr", "1"),)), b"", 1.0)
        yield opened


ALL = Selector()


def request(database: Database, select: Selector | tuple[str, ...] | None, *, apps: Path | None = None, app: str = "reader",
            **more: object) -> StartRequest:
    wish = Wish(app, BUNDLE, entry=read_apps(apps)[app] if apps else None, gates=Gates())
    chosen = {"devices": select} if isinstance(select, tuple) else {"select": select}
    with database.reading() as session:
        return request_for(session, msgspec.structs.replace(wish, **chosen, **more), "abc123")


@pytest.fixture
def apps(tmp_path: Path) -> Path:
    path = tmp_path / "apps.toml"
    path.write_text("""
[reader]
sources = [{ name = "front", uri = "local:front" }]
options = { threshold = 0.3 }
trial = { frames = 5 }
""")
    return path


def test_settings_come_from_the_file(database: Database, apps: Path) -> None:
    made = request(database, ALL, apps=apps)
    assert made.spec.sources == (Source("front", "local:front"),)
    assert (made.spec.config.options, made.spec.trial.frames, made.keep) == ({"threshold": 0.3}, 5, False)
    assert made.plan.before == {"dock-1": "1"}
    assert made.plan.id == "reader-2-abc123"


def test_boards_that_were_named_keep_their_order(database: Database, apps: Path) -> None:
    made = request(database, ("gate-2", "dock-1", "dock-2", "gate-2"), apps=apps)
    assert made.plan.waves == (("gate-2",), ("dock-1", "dock-2"))


def test_a_canary_of_two_sees_two_classes_and_offline_boards_come_last(database: Database, apps: Path) -> None:
    with database.session() as session:
        for name in ("dock-1", "gate-1"):
            session.get_one(Device, name).online = False
    made = request(database, ALL, apps=apps, canary=2)
    assert set(made.plan.waves[0]) == {"dock-2", "gate-2"}


def test_shares_are_rounded_up_and_what_is_left_is_a_last_wave(database: Database, apps: Path) -> None:
    sizes = [len(wave) for wave in request(database, ALL, apps=apps, canary="10%", waves=("40%",)).plan.waves]
    assert sizes == [1, 2, 1]
    sizes = [len(wave) for wave in request(database, ALL, apps=apps, canary=2, wave_size="1%").plan.waves]
    assert sizes == [2, 1, 1]


def test_tags_select_and_the_plan_remembers_how(database: Database, apps: Path) -> None:
    with database.session() as session:
        tags.put(session, "dock-1", {"site": "berlin-2", "line": "3"})
        tags.put(session, "gate-1", {"site": "berlin-1"})
    rule = Selector(tags={"site": ("berlin*",)}, exclude=("line=3",))
    made = request(database, rule, apps=apps, follow=True)
    assert made.plan.waves == (("gate-1",),)
    assert (made.plan.select, made.plan.follow) == (rule, True)
    with pytest.raises(InputError, match=r"rollout\.devices"):
        request(database, ("dock-1",), apps=apps, follow=True)


def test_without_a_file_boards_keep_what_they_have(database: Database) -> None:
    assert request(database, ("dock-1",)).keep
    with pytest.raises(InputError, match=r"rollout\.no-settings"):
        request(database, ALL)


@pytest.mark.parametrize(("selection", "code", "hint"), [
    (None, "rollout.devices", "--all"),
    (("dock-9",), "rollout.unknown-device", "did you mean dock-"),
    (Selector(classes=("cpu-x68",)), "rollout.no-device", "did you mean cpu-x86"),
    (Selector(names=("doc-1",)), "rollout.no-device", "did you mean dock-1"),
    (Selector(tags={"line": ("3",)}), "rollout.no-device", "jetfleet devices"),
    (Selector(exclude=("*",)), "rollout.no-device", "jetfleet devices"),
])
def test_boards_that_are_not_there(database: Database, apps: Path, selection: Selector | tuple[str, ...] | None, code: str,
                                   hint: str) -> None:
    with pytest.raises(InputError) as caught:
        request(database, selection, apps=apps)
    assert caught.value.code == code
    assert hint in caught.value.remedy


@pytest.mark.parametrize(("content", "code"), [
    ("[reader", "apps.syntax"),
    ("\xff", "apps.value"),
    ("reader = 1", "apps.value"),
    ("[reader]\nsourcs = []", "apps.value"),
    ("[reader]\nsources = [{ name = 'a b', uri = 'x' }]", "apps.value"),
    ("[Reader]\n", "apps.value"),
    ("[reader]\nsources = [{ name = 'front', uri = 'rtsp://admin:geheim@10.0.0.1/1' }]", "apps.secret"),
    ("[reader]\nsinks = [{ type = 'jsonl', name = '../up' }]", "apps.value"),
    ("[reader]\nsinks = [{ type = 'socket' }, { type = 'socket' }]", "sink.twice"),
    ("[reader]\nsinks = [{ type = 'webhook', url = 'ftp://host/' }]", "webhook.url"),
    ("[reader]\nsinks = [{ type = 'webhook', url = 'https://ada:geheim@host/' }]", "webhook.secret"),
    ("[reader]\nsinks = [{ type = 'webhook', url = 'https://host/?key=geheim' }]", "webhook.secret"),
    ("[reader]\nsinks = [{ type = 'preview', token = 'geheim' }]", "preview.token"),
    ("x = '" + "a" * 300_000 + "'", "apps.syntax"),
])
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, content: str, code: str) -> None:
    path = tmp_path / "apps.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_apps(path)
    assert caught.value.code in (code, "apps.syntax")
    assert "geheim" not in str(caught.value)
    with pytest.raises(InputError, match=r"apps\.unreadable"):
        read_apps(tmp_path / "none.toml")


def test_the_trial_of_the_documentation_is_what_an_app_can_have(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trials.md").read_text()
    (tmp_path / "apps.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    policy = read_apps(tmp_path / "apps.toml")["gate"].trial
    assert (policy.min_iou, policy.max_score_distance, policy.share, policy.mode, policy.keep_s) == (0.8, 0.1, 0.25, "auto", 60.0)


@pytest.mark.parametrize("line", ["share = 1.5", 'mode = "sideways"', "shar = 0.2", "max_age_ms = -1"])
def test_a_trial_that_makes_no_sense_is_refused_by_its_key(tmp_path: Path, line: str) -> None:
    path = tmp_path / "apps.toml"
    path.write_text(f"[gate.trial]\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_apps(path)
    assert line.split(maxsplit=1)[0] in str(caught.value)
