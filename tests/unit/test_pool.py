"""Memory of frames: used again once nobody refers to it, never before, and a buffer that is never let go costs only itself."""

from __future__ import annotations

import sys
import threading

import numpy as np

from jetfleet_agent.pipeline.pool import STALE, FramePool


def test_a_buffer_comes_back_by_itself() -> None:
    pool = FramePool()
    first = pool.take(48, 64)
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    where = first.ctypes.data
    del first
    assert pool.take(48, 64).ctypes.data == where
    assert pool.allocated == 1


def test_whoever_keeps_a_frame_or_a_part_of_it_keeps_its_memory() -> None:
    pool = FramePool()
    kept = pool.take(48, 64)
    part = pool.take(48, 64)[10:20, 5:15]
    part[...] = 7
    for _ in range(20):
        other = pool.take(48, 64)
        other[...] = 9
        assert other is not kept
        assert not np.shares_memory(other, part)
    assert part.min() == part.max() == 7
    del kept, part, other
    before = pool.allocated
    taken = [pool.take(48, 64) for _ in range(3)]
    assert pool.allocated == before, "three were made, three are free"
    assert len(taken) == 3


def test_buffers_that_are_never_let_go_cost_memory_and_never_a_wait() -> None:
    pool = FramePool(most=4)
    lost = [pool.take(8, 8) for _ in range(10)]
    assert pool.allocated == 10
    assert pool.held == 4, "it keeps no more than it may"
    assert len({image.ctypes.data for image in lost}) == 10


def test_other_sizes_grow_the_pool_once_and_old_ones_are_given_up() -> None:
    pool = FramePool()
    for _ in range(5):
        pool.take(48, 64)
    assert pool.counts() == (1, 0)
    for _ in range(STALE + 10):
        pool.take(96, 128)
    assert pool.counts() == (1, 0)
    pool.take(10, 10)
    assert pool.held == 2, "the first size is gone"


def test_steady_state_allocates_nothing() -> None:
    pool = FramePool()
    for _ in range(100):
        pool.take(48, 64)[0, 0, 0] = 1
    before = sys.getallocatedblocks()
    for _ in range(10_000):
        pool.take(48, 64)[0, 0, 0] = 1
    assert sys.getallocatedblocks() - before < 50
    assert pool.allocated == 1


def test_strays_are_counted_and_views_of_ours_are_none() -> None:
    pool = FramePool()
    image = pool.take(48, 64)
    pool.saw(image)
    pool.saw(image[:10])
    assert pool.counts() == (1, 0)
    pool.saw(np.zeros((48, 64, 3), np.uint8))
    assert pool.counts() == (0, 1)
    assert pool.counts() == (0, 0)


def test_threads_never_get_the_same_buffer() -> None:
    pool = FramePool()
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(300):
            image = pool.take(16, 16)
            image[...] = mark
            part = image[4:8]
            if image.min() != mark or part.max() != mark:
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.allocated <= 16
