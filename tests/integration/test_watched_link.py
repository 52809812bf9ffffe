"""A link to a real broker whose thread really hangs, or dies: another takes its place, and the one left behind says nothing more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from brokers import LOOPBACK, Mosquitto, mosquitto, until

from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
from jetfleet_agent.supervisor.watched_link import WatchedLink

STUCK_S = 1.0


class Board:
    """A watched link whose handler of messages hangs on demand, and another client that says what it is told to."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        self.ups = 0
        self.downs: list[str] = []
        self.release = threading.Event()
        self.hung = threading.Event()
        self.made: list[MqttLink] = []
        self.link = WatchedLink(lambda: self._make(port), self.downs.append, time.monotonic, STUCK_S)
        self.other = MqttLink(BrokerSettings(LOOPBACK, port), "other", lambda _topic, _payload: None, lambda: None, lambda _reason: None)
        self.link.subscribe("jf/board", 1)
        self.link.start()
        self.other.start()
        until(lambda: self.link.connected and self.other.connected, "both links")

    def _make(self, port: int) -> MqttLink:
        self.made.append(MqttLink(BrokerSettings(LOOPBACK, port), "board", self.take, self.count, self.downs.append))
        return self.made[-1]

    def take(self, _topic: str, payload: bytes) -> None:
        self.heard.append(payload)
        if payload == b"hang":
            self.hung.set()
            self.release.wait(60)
        if payload == b"die":
            raise SystemExit  # no Exception: what ends a thread whatever its handlers catch

    def count(self) -> None:
        self.ups += 1

    def ticked(self) -> bool:
        self.link.tick()
        return len(self.made) > 1

    def say(self, payload: bytes) -> None:
        assert self.other.publish("jf/board", payload)


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as one:
        yield one


@pytest.fixture
def board(broker: Mosquitto) -> Iterator[Board]:
    made = Board(broker.port)
    yield made
    made.release.set()
    made.link.stop()
    made.other.stop()


def test_a_thread_that_hangs_is_left_behind_and_the_next_link_hears_what_comes(board: Board) -> None:
    for _ in range(20):
        assert not board.ticked(), "a link that works is left alone"
    board.say(b"hang")
    until(board.hung.is_set, "the thread to hang")
    until(board.ticked, "another link")
    assert board.link.gauges == {"link_hangs": 1.0}
    assert "hangs" in board.downs[-1]
    until(lambda: board.ups == 2, "the other link to be up")
    board.say(b"after")
    until(lambda: b"after" in board.heard, "what comes after")
    assert board.link.publish("jf/answer", b"x")

    board.release.set()
    old = board.made[0]
    until(lambda: not old.is_alive, "the old thread to end")
    downs = len(board.downs)
    board.say(b"once")
    until(lambda: b"once" in board.heard, "another message")
    assert board.heard.count(b"once") == 1, "the old link hears nothing"
    assert len(board.downs) == downs
    assert board.link.connected, "the old one did not take the connection away"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(board: Board) -> None:
    board.say(b"die")
    until(lambda: not board.made[0].is_alive, "the thread to die")
    until(board.ticked, "another link")
    assert "is dead" in board.downs[-1]
    until(lambda: board.ups == 2, "the other link to be up")


class StillLink(MqttLink):
    """A link whose thread stands still for as long as the test says."""

    still_s = 0.0

    def __init__(self) -> None:
        super().__init__(BrokerSettings(LOOPBACK, 1), "still", lambda _topic, _payload: None, lambda: None, lambda _reason: None)

    def start(self) -> None: ...

    @property
    def is_alive(self) -> bool:
        return True

    def stuck_s(self, now: float) -> float:
        return self.still_s


def test_each_hang_is_given_twice_the_time_until_it_has_been_well_for_long() -> None:
    made: list[StillLink] = []

    def make() -> StillLink:
        made.append(StillLink())
        return made[-1]

    now = 1000.0
    link = WatchedLink(make, lambda _reason: None, lambda: now, STUCK_S)
    made[-1].still_s = 5.0
    link.tick()
    assert len(made) == 1, "not started yet"
    link.start()
    counts = []
    for still_s in (1.5, 1.5, 2.5, 2.5):
        made[-1].still_s = still_s
        link.tick()
        counts.append(len(made))
    assert counts == [2, 2, 3, 3], "1 s, then 2, then 4"
    now += 100.0
    made[-1].still_s = 0.0
    link.tick()
    made[-1].still_s = 1.5
    link.tick()
    assert len(made) == 4, "as if it were the first"
    link.stop()
    made[-1].still_s = 1e6
    link.tick()
    assert len(made) == 4, "stopped"


def test_a_link_that_was_stopped_or_never_started_is_no_hang(broker: Mosquitto) -> None:
    link = MqttLink(BrokerSettings(LOOPBACK, broker.port), "idle", lambda _topic, _payload: None, lambda: None, lambda _reason: None)
    assert link.stuck_s(time.monotonic() + 1000.0) == 0.0
    link.start()
    until(lambda: link.connected, "the link")
    assert link.stuck_s(time.monotonic() + 1000.0) > 900.0
    link.stop()
    assert link.stuck_s(time.monotonic() + 1000.0) == 0.0
