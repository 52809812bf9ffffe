"""Webhooks against real web servers: each batch once in the server's book, whatever it answers; and what the board drops, counted."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import LOOPBACK, free_port, until
from web_mirrors import Shop, tls_files

from jetfleet_agent.supervisor.results import ResultDelivery
from jetfleet_agent.supervisor.webhooks import Address, Poster, Webhook
from jetfleet_contract.app_config import MqttResults, WebhookSink
from jetfleet_contract.errors import InputError, TransportError
from jetfleet_contract.messages import AppConfig, Result


@pytest.fixture
def shop() -> Iterator[Shop]:
    with contextlib.closing(Shop()) as running:
        yield running


def hook(url: str, *, most: int = 10, wait_s: float = 0.05, ca: str = "", timeout_s: float = 10.0) -> Webhook:
    keys = iter(range(1_000_000))
    address = Address(url)
    return Webhook("app webhook-0", address, Poster(address, ca, timeout_s), {"Jetfleet-Device": "dock-1"}, most=most, wait_s=wait_s,
                   fresh_key=lambda: f"{next(keys):032x}", unit=lambda: 0.0, base_s=0.02)


def body(frame: int) -> bytes:
    return b'{"frame":%d}' % frame


def test_results_come_in_arrays_in_order_with_their_headers(shop: Shop) -> None:
    webhook = hook(shop.url + "/a?kind=seen", most=10)
    for frame in range(95):
        webhook.offer(body(frame))
    until(lambda: webhook.counts()["sent"] == 95, "all sent")
    assert shop.frames == list(range(95))
    assert max(len(batch) for _, _, batch in shop.asked) == 10
    path, headers, _ = shop.asked[0]
    assert path == "/hook/a?kind=seen"
    assert (headers["Content-Type"], headers["Jetfleet-Device"]) == ("application/json", "dock-1")
    assert len({headers["Idempotency-Key"] for _, headers, _ in shop.asked}) == len(shop.asked)
    webhook.close(10)


@pytest.mark.parametrize("way", [500, 503, 429, 408, "hang up", "nonsense"])
def test_what_may_pass_is_tried_again_under_the_same_key(shop: Shop, way: int | str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shop.ways = [way] * 6
    webhook = hook(shop.url)
    for frame in range(3):
        webhook.offer(body(frame))
    until(lambda: webhook.counts()["sent"] == 3, "all sent")
    webhook.close(10)
    keys = [headers["Idempotency-Key"] for _, headers, _ in shop.asked]
    assert len(keys) >= 7
    assert shop.frames == [0, 1, 2]
    assert sum("[webhook." in line for line in caplog.messages) == 1, "said once"
    assert caplog.messages[-1] == "app webhook-0: works again"


@pytest.mark.parametrize(("way", "code"), [(400, "webhook.status"), (413, "webhook.status"), (302, "webhook.redirect"),
                                           (308, "webhook.redirect")])
def test_a_refused_batch_is_counted_and_the_next_goes_on(shop: Shop, way: int, code: str, caplog: pytest.LogCaptureFixture) -> None:
    shop.ways = [way]
    webhook = hook(shop.url, most=2)
    for frame in range(2):
        webhook.offer(body(frame))
    until(lambda: webhook.counts()["refused"] == 2, "refused")
    webhook.offer(body(7))
    until(lambda: webhook.counts()["sent"] == 1, "the next")
    webhook.close(10)
    assert {path for path, _, _ in shop.asked} == {"/hook"}, "nobody went elsewhere"
    assert f"[{code}]" in caplog.text


def test_a_server_that_is_gone_costs_the_oldest_and_gets_the_rest_when_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetfleet_agent.supervisor.webhooks.MAX_WAITING", 20)
    port = free_port()
    webhook = hook(f"http://{LOOPBACK}:{port}/hook", most=5)
    for frame in range(100):
        webhook.offer(body(frame))
    with contextlib.closing(Shop(port)) as shop:
        until(lambda: webhook.counts()["sent"] + webhook.counts()["overflow"] == 100, "the rest")
        assert shop.frames[-20:] == list(range(80, 100))
        assert shop.frames == sorted(shop.frames)
        webhook.close(10)


def test_a_server_that_never_answers_holds_up_nobody() -> None:
    with socket.create_server((LOOPBACK, 0)) as deaf:
        webhook = hook(f"http://{LOOPBACK}:{deaf.getsockname()[1]}/", timeout_s=0.3)
        for frame in range(10):
            webhook.offer(body(frame))
        until(lambda: webhook._trouble == "webhook.slow", "the time-out")
        webhook.close(10)
        assert not webhook._thread.is_alive()
        assert webhook.counts()["unsent"] == 10


def test_tls_is_verified(tmp_path: Path) -> None:
    files = tls_files(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["server.pem"], files["server.key"])
    with contextlib.closing(Shop(tls=context)) as shop:
        stranger = Poster(Address(shop.url))
        with pytest.raises(TransportError) as caught:
            stranger.post(b"[]", {})
        assert caught.value.code == "webhook.tls"
        assert shop.asked == []
        webhook = hook(shop.url, ca=str(files["ca.pem"]))
        webhook.offer(body(1))
        until(lambda: webhook.counts()["sent"] == 1, "sent")
        webhook.close(10)
    with pytest.raises(InputError) as bad:
        Poster(Address("https://host/"), str(tmp_path / "none.pem"))
    assert bad.value.code == "webhook.tls"


def test_passwords_and_queries_reach_the_server_and_no_log(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shop.ways = [503, 400]
    address = Address(shop.url.replace("://", "://us%40er:hunter2@") + "?key=s3cret")
    webhook = hook(address.url)
    for frame in range(2):
        webhook.offer(body(frame))
        until(lambda want=frame + 2: len(shop.asked) >= want, "asked")  # type: ignore[misc]
    until(lambda: sum(webhook.counts().values()) == 2, "done")
    webhook.close(10)
    path, headers, _ = shop.asked[0]
    assert path == "/hook?key=s3cret"
    assert headers["Authorization"] == "Basic dXNAZXI6aHVudGVyMg=="
    for secret in ("hunter2", "s3cret", "dXNA", "us%40er"):
        assert secret not in caplog.text + repr(address)


@pytest.mark.parametrize("url", ["", "ftp://host/", "https://", "http://ho st/", "https://host:99999/", "http://[::1/", "https://h/\x00"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Address(url)
    assert caught.value.code == "webhook.url"


# --- the supervisor's part -----------------------------------------------------------------------------------------


class Broker:
    def __init__(self) -> None:
        self.connected = True
        self.full = False
        self.sent: list[tuple[int, int]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        assert topic == "jf/1/d/dock-1/result"
        if self.full:
            return False
        self.sent.append((json.loads(payload)["frame"], qos))
        return True


class Safe:
    def __init__(self, **secrets: str) -> None:
        self.secrets = secrets

    def reveal(self, name: str) -> str:
        if name not in self.secrets:
            raise InputError("secret.unknown", f"no secret {name}")
        return self.secrets[name]


class Board:
    def __init__(self, config: AppConfig, **secrets: str) -> None:
        self.configs: dict[str, AppConfig] = {"app": config}
        self.link, self.safe, self.now = Broker(), Safe(**secrets), 0.0
        self.delivery = ResultDelivery("dock-1", self.link, self.configs.get, self.safe, "", lambda: self.now, lambda: 0.0)

    def say(self, *frames: int, fps: float = 10.0) -> None:
        self.delivery.send("app", [Result("app", "front", n, 1e9 + n / fps, 1.0, "1", "v@x:fp32") for n in frames])


@pytest.mark.parametrize("qos", [0, 1])
def test_results_go_to_the_broker_with_the_qos_of_the_settings(qos: Any) -> None:
    board = Board(AppConfig(results=MqttResults(qos=qos)))
    board.say(0, 1)
    assert board.link.sent == [(0, qos), (1, qos)]
    board.link.connected = False
    board.say(2)
    board.link.connected, board.link.full = True, True
    board.say(3)
    assert board.delivery.gauges == {"app.sink.mqtt.link": 2.0}, "nothing is queued without a broker, whatever the QoS"


def test_a_source_is_thinned_by_its_frames_own_time() -> None:
    board = Board(AppConfig(results=MqttResults(per_second=2.0)))
    board.say(*range(30))
    assert [frame for frame, _ in board.link.sent] == [0, 5, 10, 15, 20, 25]
    assert board.delivery.gauges == {"app.sink.mqtt.thinned": 24.0}


def test_a_metered_link_is_not_flooded() -> None:
    board = Board(AppConfig(results=MqttResults(bytes_per_hour=3_600_000)))
    size = len(json.dumps(json.loads(b'{"app":"app","source":"front","frame":100,"at":1000000010.0,"age_ms":1.0,"version":"1"}')))
    for second in range(600):
        board.now = float(second)
        board.say(*range(second * 100, second * 100 + 100))
    sent, dropped = len(board.link.sent), board.delivery.gauges["app.sink.mqtt.budget"]
    assert sent + dropped == 60_000
    assert sent * size < 1.05 * 3_600_000 * (600 + 64) / 3600
    assert sent * size > 0.6 * 3_600_000 * 600 / 3600


def test_a_webhook_is_opened_on_the_board_only_and_follows_its_secret(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    config = AppConfig(publish_results=False, sinks=(WebhookSink("secret:hook", most=5, wait_s=0.0),))
    board = Board(config)
    board.say(0)
    assert "secret.unknown" in caplog.text
    board.safe.secrets["hook"] = shop.url
    board.configs["app"] = AppConfig(publish_results=False, sinks=config.sinks)  # the supervisor makes it anew when a secret was set
    board.say(1, 2)
    until(lambda: board.delivery.gauges.get("app.sink.webhook-0.sent") == 2.0, "sent")
    assert board.link.sent == [], "what is not published stays off MQTT"
    (webhook,) = [webhook for _, webhook in board.delivery._apps["app"].webhooks.values()]
    board.configs["app"] = AppConfig(publish_results=True, sinks=config.sinks)
    board.delivery.tick()
    assert [one for _, one in board.delivery._apps["app"].webhooks.values()] == [webhook], "unchanged, it runs on"
    del board.configs["app"]
    board.delivery.tick()
    webhook._thread.join(20)
    assert not webhook._thread.is_alive()
    board.delivery.close()
