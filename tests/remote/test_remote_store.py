"""Remote samples have the bytes of local files despite injected faults; the index is hashed once."""

import gc
import os
import threading

import numpy as np
import pytest
from helpers.few_descriptors import descriptors_of

from mimcl.pipeline import index, verify_cache
from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.read_pool import READ_THREADS
from mimcl.pipeline.remote import metadata_cache
from mimcl.pipeline.store import ShardStore

pytestmark = pytest.mark.slow


def same_bytes(url, shards, ids=None):
    index, local = ShardIndex.load(url), ShardIndex.load(shards)
    ids = np.arange(local.samples) if ids is None else ids
    store = open_store(index)
    found = store.read(ids)
    assert [data.tobytes() for data in found] == [data.tobytes() for data in ShardStore(local).read(ids)]
    return store


def refused(url, ids=(0,)) -> str:
    with pytest.raises(DataError) as error:
        open_store(ShardIndex.load(url)).read(np.array(ids))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_remote_samples_have_the_bytes_of_local_ones(server, shards):
    rng = np.random.default_rng(0)
    same_bytes(server.root, shards, rng.integers(0, 40, 100))


def test_shards_in_the_cache_are_closed_after_each_read(web, shards):
    store = same_bytes(web.root, shards)
    same = store.read(np.arange(40))
    gc.collect()
    assert len(same) == 40
    assert len(list((cache_dir() / "shards").glob("*.shard"))) >= 3
    assert descriptors_of(cache_dir() / "shards") == 0


def test_cached_samples_are_read_in_parallel(web, shards, monkeypatch):
    store, ids = same_bytes(web.root, shards), np.arange(40)
    pread, waited, barrier = os.pread, threading.local(), threading.Barrier(READ_THREADS)

    def first_together(*what):
        if not hasattr(waited, "done"):
            waited.done = barrier.wait(30)
        return pread(*what)

    monkeypatch.setattr(os, "pread", first_together)
    assert [len(data) for data in store.read(ids)] == store._index.nbytes[ids].tolist()


def test_an_index_is_hashed_once_and_not_at_each_start(web, monkeypatch):
    monkeypatch.setattr(verify_cache, "_CLOCK_RESOLUTION_S", -60.0)  # remember a check at once, however new the file is
    for notes in (1, 2):  # first the check of its content, then that of its checksum
        ShardIndex.load(web.root)
        assert len(list((cache_dir() / "checked").iterdir())) == notes
    web.inject()
    monkeypatch.setattr(metadata_cache.xxhash, "xxh128", pytest.fail)
    monkeypatch.setattr(index, "_check", pytest.fail)
    ShardIndex.load(web.root)
    assert not web.requests("arrow")


FAULTS = [
    dict(what="status", value=500, times=2),
    dict(what="status", value=429, times=1),
    dict(what="reset", times=2),
    dict(what="truncate", times=2),
    dict(what="short", times=2),
    dict(what="delay", value=0.3),
    dict(what="corrupt", times=1),
    dict(what="whole"),
]


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: "-".join(str(fault[key]) for key in ("what", "value") if key in fault)
)
def test_bytes_are_right_despite_faults(server, shards, fault):
    server.inject(dict(path=r"\.tar", **fault) | ({} if fault["what"] in ("status", "delay") else {"method": "GET"}))
    same_bytes(server.root, shards)
