"""The cache is shared by the processes of a machine, limited in size, and consistent after a kill."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.remote.range_plan import MAX_GAP
from mimcl.pipeline.remote.remote_folder import Stat
from mimcl.pipeline.remote.remote_store import RemoteStore
from mimcl.pipeline.remote.shard_cache import ShardCache
from mimcl.pipeline.store import ShardStore

pytestmark = pytest.mark.slow

spawn = multiprocessing.get_context("spawn")


def read_all(url, shards, expected, times):
    """Read every sample in random order, `times` times, and compare with the local ones; runs in its own process."""
    index = ShardIndex.load(url)
    store, local = open_store(index), ShardStore(ShardIndex.load(shards))
    if expected:
        store.prefetch(store.plan_reads(np.arange(index.samples)))
    for seed in range(times):
        for ids in np.array_split(np.random.default_rng(seed).permutation(index.samples), 7):
            found = [data.tobytes() for data in store.read(ids)]
            assert found == [data.tobytes() for data in local.read(ids)]


def fetch_all(url):
    """Fetch index and prototype set; runs in its own process."""
    ShardIndex.load(url).prototypes_folder("default")


def started(url, shards, expected=True, times=2):
    process = spawn.Process(target=read_all, args=(url, str(shards), expected, times))
    process.start()
    return process


def used() -> int:
    return sum(path.stat().st_blocks * 512 for path in (cache_dir() / "shards").glob("*.shard"))


@pytest.mark.parametrize("expected", [True, False])
def test_two_processes_fetch_every_byte_about_once(server, shards, expected):
    index = ShardIndex.load(server.root)
    total = int(index.nbytes.sum())
    server.inject(dict(path=r"\.tar", what="delay", value=0.05))
    processes = [started(server.root, shards, expected) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert total <= server.sent() < 1.3 * total
    server.inject()
    assert len(RemoteStore(index).read(np.arange(index.samples))) == index.samples
    assert server.sent() == 0  # all of it is cached


def test_threads_of_one_process_share_the_cache_too(web, shards):
    index = ShardIndex.load(web.root)
    web.inject(dict(path=r"\.tar", what="delay", value=0.1))
    threads = [threading.Thread(target=lambda: open_store(index).read(np.arange(index.samples))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web.sent() < 1.3 * index.nbytes.sum()


def test_prefetched_samples_are_cached_when_they_are_read(web, shards):
    index = ShardIndex.load(web.root)
    store = open_store(index)
    few = np.flatnonzero(index.shard == 0)[::7]
    store.prefetch(store.plan_reads(few))
    deadline = time.monotonic() + 60
    while len(store._read_cached(few)) < len(few):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    asked = len(web.requests())
    store.read(few)
    assert len(web.requests()) == asked
    store.close()


def test_exactly_the_planned_shards_and_ranges_are_fetched(web, shards):
    index = ShardIndex.load(web.root)
    large = int(index.nbytes.argmax())  # a megabyte beside it is worth a request
    apart = np.flatnonzero(index.nbytes > MAX_GAP)[::2]  # gaps between them exceed MAX_GAP
    for number, rows in enumerate((np.array([large]), apart, np.arange(index.samples))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIMCL_CACHE", f"{cache_dir()}{number}")
            store = open_store(index)
            planned = store.plan_reads(rows)
            web.inject()
            store.prefetch(planned)
            store.read(rows)  # waits for requests in progress
            deadline = time.monotonic() + 60
            while web.sent() < planned.fetched and time.monotonic() < deadline:
                time.sleep(0.01)
        gets = [line for line in web.requests() if line["method"] == "GET"]
        assert len(gets) == len(planned.start)
        assert web.sent() == planned.fetched
        assert planned.needed == index.nbytes[rows].sum()
        if rows is not apart:
            assert planned.fetched <= (1.2 if len(rows) == 1 else 1.3) * planned.needed


def test_a_server_without_ranges_is_asked_once_for_each_shard(web, shards):
    index = ShardIndex.load(web.root)
    web.inject(dict(path=r"\.tar", what="whole"))
    store = open_store(index)
    for ids in np.array_split(np.random.default_rng(0).permutation(index.samples), 5):
        store.read(ids)
    assert web.sent() <= 1.5 * sum(shard["bytes"] for shard in index.shards)


@pytest.mark.parametrize("gigabytes", ["0.0009", "0.000001"])
def test_a_limit_smaller_than_the_data(web, shards, monkeypatch, gigabytes):
    monkeypatch.setenv("MIMCL_CACHE_GB", gigabytes)
    local, index = ShardStore(ShardIndex.load(shards)), ShardIndex.load(web.root)
    store, sent = open_store(index), []
    for seed in range(3):
        for ids in np.array_split(np.random.default_rng(seed).permutation(index.samples), 4):
            store.prefetch(store.plan_reads(ids))
            assert [d.tobytes() for d in store.read(ids)] == [d.tobytes() for d in local.read(ids)]
        sent.append(web.sent())
    store.close()
    assert used() <= float(gigabytes) * 1e9 + 200_000 + index.nbytes.max()
    assert sent[-1] > sent[0]


def test_threads_that_write_at_once_keep_the_limit(tmp_path):
    cache, data = ShardCache(tmp_path / "shards", 40_000), b"x" * 24_576

    def keep(key, before=lambda: None):
        file = cache.open(key, len(data), 1)
        cache.store(len(data), lambda: (before(), file.write(0, 0, data)))

    keep("old")
    keep("first", before=lambda: keep("second"))  # the second writes after room for the first was made
    assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "shards").iterdir()) <= 40_000
    assert cache.find("first", len(data), 1).is_cached(0, 1).all()
    keep("third")  # finished writes no longer count as being written
    assert cache.find("third", len(data), 1).is_cached(0, 1).all()


def test_a_process_that_hangs_while_it_makes_room_does_not_block_others_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("mimcl.pipeline.remote.shard_cache._REMOVE_LOCK_TIMEOUT_S", 0.2)
    cache, start = ShardCache(tmp_path / "shards", 40_000), time.monotonic()
    file, held = cache.open("key", 8, 1), os.open(tmp_path / "shards", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        writing = threading.Thread(target=cache.store, args=(8, lambda: file.write(0, 0, b"x" * 8)), daemon=True)
        writing.start()
        writing.join(60)
        assert not writing.is_alive()
        assert time.monotonic() - start >= 0.2
        assert file.is_cached(0, 1).all()
    finally:
        os.close(held)


def test_where_open_files_have_no_locks_nobody_waits(tmp_path, monkeypatch):
    cache = ShardCache(tmp_path / "shards", 40_000)
    first, second = cache.open("key", 8, 1), cache.open("key", 8, 1)
    with first.locked(0, 8, 0), second.locked(0, 8, 0) as acquired:
        assert not acquired
    monkeypatch.setattr("mimcl.pipeline.remote.shard_cache._F_OFD_SETLK", None)
    with first.locked(0, 8, 0) as acquired, second.locked(0, 8, 0) as also:
        assert acquired
        assert also


def test_the_least_recently_used_shard_is_removed_first(tmp_path):
    cache = ShardCache(tmp_path / "shards", 40_000)
    data = b"x" * 8192
    for number in range(3):
        file = cache.open(f"key{number}", len(data), 1)
        cache.store(len(data), lambda file=file: file.write(0, 0, data))
        os.utime(tmp_path / "shards" / f"key{number}.shard", (number, number))
        del file
    cache.touch("key0")
    file = cache.open("key3", len(data), 1)
    cache.store(len(data), lambda: file.write(0, 0, data))
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "key0.shard",
        "key2.shard",
        "key3.shard",
    ]
    assert cache.find("key1", len(data), 1) is None
    assert cache.find("key0", len(data), 1).is_cached(0, 1).all()


def test_the_folder_of_the_cache_may_be_removed_at_any_time(web, shards, monkeypatch):
    monkeypatch.setenv("MIMCL_CACHE_GB", "0.0009")  # so that shards are removed again and again
    local, index = ShardStore(ShardIndex.load(shards)), ShardIndex.load(web.root)
    store, ended = open_store(index), threading.Event()

    def remove():
        while not ended.wait(0.01):
            shutil.rmtree(cache_dir() / "shards", ignore_errors=True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for seed in range(3):
            for ids in np.array_split(np.random.default_rng(seed).permutation(index.samples), 4):
                store.prefetch(store.plan_reads(ids))
                assert [d.tobytes() for d in store.read(ids)] == [d.tobytes() for d in local.read(ids)]
    finally:
        ended.set()
        remover.join()


def test_another_etag_or_size_gives_another_file():
    keys = {ShardCache.key(url, Stat(size, etag)) for url in "ab" for size in (1, 2) for etag in ("", "x")}
    assert len(keys) == 8


def test_a_kill_leaves_neither_a_lock_nor_wrong_bytes(web, shards):
    web.inject(dict(path=r"\.tar", what="delay", value=0.2))
    process = started(web.root, shards)
    deadline = time.monotonic() + 30
    while not web.sent() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    web.inject()
    index = ShardIndex.load(web.root)
    start = time.monotonic()
    found = open_store(index).read(np.arange(index.samples))
    assert [d.tobytes() for d in found] == [
        d.tobytes() for d in ShardStore(ShardIndex.load(shards)).read(np.arange(index.samples))
    ]
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("what", "left"), [(r"train\.arrow", ".train.arrow.*.tmp"), ("default/train", ".default.*.tmp")]
)
def test_partial_downloads_of_a_killed_process_are_removed(web, what, left):
    web.inject(dict(path=what, what="delay", value=60, method="GET"))
    process = spawn.Process(target=fetch_all, args=(web.root,))
    process.start()
    deadline = time.monotonic() + 30
    while not list(cache_dir().rglob(left)) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(cache_dir().rglob(left))
    web.inject()
    fetch_all(web.root)
    assert not list(cache_dir().rglob("*.tmp"))


def test_damaged_bytes_in_the_cache_are_fetched_again(web):
    index = ShardIndex.load(web.root)
    good = open_store(index).read(np.arange(index.samples))
    web.inject()
    for path in (cache_dir() / "shards").glob("*.shard"):
        with open(path, "r+b") as file:
            file.seek(int(index.offset[0]))
            file.write(b"damage")
    again = open_store(index).read(np.arange(index.samples))
    assert [d.tobytes() for d in again] == [d.tobytes() for d in good]
    assert 0 < web.sent() < index.nbytes.sum()
