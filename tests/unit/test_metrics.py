"""The metrics page: read back with Prometheus's own parser, exact against the samples it is made of, served over a real socket."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.metrics import BOUNDS, MAX_SERIES, Metrics
from jetfleet_agent.supervisor.metrics_server import MetricsServer
from jetfleet_contract.errors import TransportError
from jetfleet_contract.messages import Alarm, AppState, Series
from jetfleet_contract.sketch import edge, sketch_of

parser = pytest.importorskip("prometheus_client.parser")

TIMES = [0.07, 0.9, 3.0, 3.1, 12.0, 480.0, 61_000.0]


def series(source: str = "cam", *, version: str = "1", times: list[float] | None = None) -> Series:
    return Series("gate", "a" * 64, version, "v@x:fp32", source, 10, 7, {"fps-cap": 2, "age": 1}, {"infer": sketch_of(times or TIMES)})


def page(metrics: Metrics) -> dict[str, Any]:
    return {family.name: family for family in parser.text_string_to_metric_families(metrics.text().decode())}


def filled() -> Metrics:
    metrics = Metrics()
    metrics.add("gate", ipc.Window(0.0, 10.0, (series(),), {"cpu_s": 3.5}))
    metrics.add("gate", ipc.Window(10.0, 10.0, (series(times=[5.0]),), {"cpu_s": 4.5}))
    app = AppState("gate", "a" * 64, "m", "1", "v@x:fp32", "trial")
    gauges = {"temperature_c": 51.5, "gate.rss_mb": 120.0, "refused.mqtt.large": 2.0}
    metrics.board(gauges, (app,), (Alarm("gate", "", "governor", "rung 2"),), connected=True)
    return metrics


def test_counters_sum_over_windows() -> None:
    families = page(filled())
    assert families["jetfleet_frames_seen"].samples[0].value == 20
    assert families["jetfleet_frames_done"].samples[0].value == 14
    dropped = {s.labels["cause"]: s.value for s in families["jetfleet_frames_dropped"].samples}
    assert dropped == {"fps-cap": 4, "age": 2}
    assert families["jetfleet_frames_seen"].samples[0].labels == {
        "app": "gate", "source": "cam", "version": "1", "bundle": "a" * 12, "candidate": "v@x:fp32"}


def test_state_gauges_and_alarms() -> None:
    families = page(filled())
    assert families["jetfleet_broker_connected"].samples[0].value == 1
    assert families["jetfleet_app_info"].samples[0].labels["phase"] == "trial"
    assert families["jetfleet_alarm"].samples[0].labels == {"app": "gate", "source": "", "code": "governor"}
    assert families["jetfleet_board_temperature_celsius"].samples[0].value == 51.5
    assert [(s.labels, s.value) for s in families["jetfleet_app_rss_bytes"].samples] == [({"app": "gate"}, 120e6)]
    assert families["jetfleet_app_cpu_seconds"].samples[0].value == 4.5
    assert families["jetfleet_board_refused_mqtt_large"].samples[0].value == 2


@given(st.lists(st.floats(0.01, 100_000.0), min_size=1, max_size=60))
def test_histograms_are_exact(times: list[float]) -> None:
    metrics = Metrics()
    metrics.add("gate", ipc.Window(0.0, 10.0, (series(times=times),)))
    samples = page(metrics)["jetfleet_stage_seconds"].samples
    buckets = [s.value for s in samples if s.name.endswith("_bucket")]
    assert buckets[:-1] == [sum(time <= edge(bound) for time in times) for bound in BOUNDS]
    assert buckets[-1] == len(times)
    assert next(s.value for s in samples if s.name.endswith("_count")) == len(times)
    assert next(s.value for s in samples if s.name.endswith("_sum")) == pytest.approx(sum(times) / 1e3)


def test_bounds_are_near_one_two_five() -> None:
    wanted = [scale * step for scale in (0.1, 1, 10, 100, 1000, 10000) for step in (1, 2, 5)] + [60000]
    assert [edge(bound) for bound in BOUNDS] == pytest.approx(wanted, rel=0.011)


def test_series_are_bounded_and_the_silent_go_first() -> None:
    metrics = Metrics()
    metrics.add("gate", ipc.Window(0.0, 10.0, (series("old"), series("kept"))))
    metrics.add("gate", ipc.Window(0.0, 10.0, (series("kept"),)))
    for number in range(MAX_SERIES - 1):
        metrics.add("gate", ipc.Window(0.0, 10.0, (series(f"s{number}"),)))
    sources = {s.labels["source"] for s in page(metrics)["jetfleet_frames_seen"].samples}
    assert len(sources) == MAX_SERIES
    assert "old" not in sources
    assert "kept" in sources


def test_names_cannot_break_out_of_their_label() -> None:
    metrics = Metrics()
    metrics.board({'x"} 1\n': 1.0}, (AppState('a"b\\c\nd'),), (), connected=False)
    families = page(metrics)
    assert families["jetfleet_app_info"].samples[0].labels["app"] == 'a"b\\c\nd'


def test_served_over_http() -> None:
    server = MetricsServer("127.0.0.1", 0, filled().text)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"jetfleet_frames_done_total" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/secrets", timeout=30)
        error.value.close()
        assert error.value.code == 404
        with pytest.raises(TransportError) as refused:
            MetricsServer("127.0.0.1", server.port, lambda: b"")
        assert refused.value.code == "metrics.listen"
    finally:
        server.stop()
