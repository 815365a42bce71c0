"""Chunks in several threads: results in order, the first error, no leftover threads."""

import gc
import multiprocessing
import threading
import time

import pytest

from mimcl.pipeline import read_pool
from mimcl.pipeline.read_pool import READ_THREADS, ReadPool

TIMEOUT = 30  # seconds; nothing here takes that long unless it fails


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read"]


def ended(threads) -> bool:
    for thread in threads:
        thread.join(TIMEOUT)
    return not any(thread.is_alive() for thread in threads)


@pytest.fixture(autouse=True)
def no_threads_of_other_tests():
    gc.collect()
    assert ended(pool_threads())


@pytest.mark.parametrize("samples", [0, 1, 7, 8, 31, 32, 33, 1000])
def test_chunks_cover_all_samples_in_order(samples):
    chunks = ReadPool().run(samples, lambda start, stop: (start, stop, threading.get_ident()))
    assert [number for start, stop, _ in chunks for number in range(start, stop)] == list(range(samples))
    sizes = [stop - start for start, stop, _ in chunks]
    assert max(sizes) - min(sizes) <= 1
    assert len(chunks) == max(1, min(READ_THREADS, samples // 4))
    assert chunks[0][2] == threading.get_ident()


def test_all_chunks_run_at_once():
    barrier = threading.Barrier(READ_THREADS)
    pool = ReadPool()
    for _ in range(3):
        assert sorted(pool.run(100, lambda start, stop: barrier.wait(TIMEOUT))) == list(range(READ_THREADS))
    assert len(pool_threads()) == READ_THREADS - 1


def test_one_thread(monkeypatch):
    monkeypatch.setattr(read_pool, "READ_THREADS", 1)
    assert ReadPool().run(1000, lambda start, stop: (start, stop)) == [(0, 1000)]
    assert not pool_threads()


def test_the_error_of_the_first_chunk_in_order_although_a_later_one_was_faster():
    later = threading.Event()

    def read(start, stop):
        if start == 25:
            assert later.wait(TIMEOUT)
            raise ValueError("first")
        if start == 62:
            later.set()
            raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        ReadPool().run(100, read)


def test_an_error_does_not_wait_for_a_later_chunk_that_hangs():
    gate = threading.Event()

    def read(start, stop):
        if start == 25:
            raise ValueError("first")
        if start == 62:
            gate.wait()
        return start

    pool = ReadPool()
    with pytest.raises(ValueError, match="first"):
        pool.run(100, read)
    assert not gate.is_set()
    assert pool.run(100, lambda start, stop: stop)[-1] == 100  # by the other threads
    gate.set()


def test_threads_end_with_close_and_start_again():
    pool = ReadPool()
    pool.run(100, lambda start, stop: None)
    before = pool_threads()
    assert all(thread.daemon for thread in before)
    pool.close()
    assert not pool_threads()
    assert sum(pool.run(100, lambda start, stop: stop - start)) == 100
    pool.close()


def test_close_leaves_a_thread_that_hangs_behind(monkeypatch):
    monkeypatch.setattr(read_pool, "CLOSE_TIMEOUT_S", 0.2)
    gate, pool = threading.Event(), ReadPool()

    def read(start, stop):
        if start == 0:
            raise ValueError
        if start == 62:
            gate.wait()

    with pytest.raises(ValueError):
        pool.run(100, read)
    pool.close()
    assert pool_threads()
    assert len(pool.run(100, lambda start, stop: start)) == READ_THREADS  # by other threads
    pool.close()
    gate.set()


def test_threads_end_with_the_pool():
    pool = ReadPool()
    pool.run(100, lambda start, stop: None)
    before = pool_threads()
    assert len(before) == READ_THREADS - 1
    del pool
    gc.collect()
    assert ended(before)


def test_idle_threads_keep_no_samples():
    class Data:
        pass

    def alive() -> int:
        gc.collect()
        return sum(type(found) is Data for found in gc.get_objects())

    pool = ReadPool()
    found = pool.run(100, lambda start, stop: Data())
    assert alive() == len(found)
    del found
    deadline = time.monotonic() + TIMEOUT
    while alive() and time.monotonic() < deadline:  # a thread may not have returned from its task yet
        time.sleep(0.01)
    assert not alive()
    pool.close()


def test_a_forked_process_starts_threads_of_its_own():
    pool = ReadPool()
    pool.run(100, lambda start, stop: None)
    child = multiprocessing.get_context("fork").Process(target=pool.run, args=(100, lambda start, stop: None))
    child.start()
    child.join(TIMEOUT)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
    pool.close()
