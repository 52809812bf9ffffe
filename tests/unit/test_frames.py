"""The queue in front of inference: newest wins for live, every frame for files, fair between sources, drops handed back."""

from __future__ import annotations

import threading

import numpy as np

from jetfleet_agent.pipeline.frames import Frame, FrameQueue

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(source: str, number: int) -> Frame:
    return Frame(source, number, number, IMAGE, 0.0, 0.0)


def drain(queue: FrameQueue) -> list[tuple[str, int]]:
    taken = []
    while found := queue.take(0.0):
        taken += [(one.source, one.number) for one in found]
    return taken


def test_newest_live_frame_wins_and_the_old_one_comes_back() -> None:
    queue = FrameQueue()
    assert queue.offer(frame("a", 0)) is None
    dropped = [queue.offer(frame("a", n)) for n in range(1, 5)]
    assert [d.number for d in dropped if d] == [0, 1, 2, 3]
    assert drain(queue) == [("a", 4)]


def test_a_deeper_queue_drops_its_oldest() -> None:
    queue = FrameQueue()
    dropped = [queue.offer(frame("a", n), depth=3) for n in range(5)]
    assert [d.number for d in dropped if d] == [0, 1]
    assert drain(queue) == [("a", 2), ("a", 3), ("a", 4)]


def test_put_waits_for_room_and_loses_nothing() -> None:
    queue = FrameQueue(depth=2)
    done = threading.Event()

    def fill() -> None:
        for number in range(50):
            assert queue.put(frame("file", number))
        done.set()

    threading.Thread(target=fill, daemon=True).start()
    taken: list[int] = []
    while len(taken) < 50:
        (found,) = queue.take(5.0)
        assert len(queue) <= 2
        assert found.ordinal == found.number
        taken.append(found.number)
    assert taken == list(range(50))
    assert done.wait(5)


def test_a_busy_source_does_not_starve_another() -> None:
    queue = FrameQueue(depth=4)
    for number in range(4):
        queue.put(frame("busy", number))
    queue.offer(frame("camera", 0))
    assert ("camera", 0) in drain(queue)[:5]


def test_close_frees_a_waiting_producer_and_the_consumer() -> None:
    queue = FrameQueue(depth=1)
    queue.put(frame("a", 0))
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(queue.put(frame("a", 1))))
    waiting.start()
    queue.close()
    waiting.join(5)
    assert answers == [False]
    assert drain(queue) == [("a", 0)], "what was taken in is still answered"
    assert queue.is_drained
    assert queue.take(5.0) == []


def test_wake_ends_a_wait_without_a_frame() -> None:
    queue = FrameQueue()
    queue.wake()
    assert queue.take(60.0) == []


def test_remove_takes_out_one_source_only() -> None:
    queue = FrameQueue()
    for number in range(2):
        queue.put(frame("a", number))
        queue.put(frame("b", number))
    assert [f.number for f in queue.remove("a")] == [0, 1]
    assert drain(queue) == [("b", 0), ("b", 1)]
