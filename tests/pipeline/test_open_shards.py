"""The shards that a process has open: few for all stores together, and never closed while they are read."""

import gc
import os
import resource
import shutil
import signal
import threading

import numpy as np
import pytest
from helpers.few_descriptors import descriptors_of

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_shards import OPEN_SHARDS, OpenShard, OpenShards, open_shards_limit
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import ShardStore


@pytest.mark.parametrize(
    ("limit", "most"), [(256, 64), (1024, 256), (4096, 512), (1 << 20, 512), (3, 1), (resource.RLIM_INFINITY, 512)]
)
def test_a_quarter_of_the_limit_of_open_files(monkeypatch, limit, most):
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_NOFILE: (limit, limit)}.get)
    assert open_shards_limit() == most


@pytest.fixture
def files(tmp_path):
    """50 shards of 1,000 bytes, each of its own number."""
    paths = [tmp_path / f"{number}.tar" for number in range(50)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return paths


def test_reads_are_right_while_shards_are_closed_under_many_threads_and_owners(files, tmp_path):
    shards, most, wrong = OpenShards(lambda: 4), [], []

    def read(owner: int) -> None:
        for number in np.random.default_rng(owner).integers(0, len(files), 2000).tolist():
            shard = shards.get(owner % 3, number, lambda number: OpenShard(files[number], 1000))
            if os.pread(shard._descriptor, 1000, 0) != bytes([number]) * 1000:
                wrong.append(number)
            most.append(len(shards._shards))

    threads = [threading.Thread(target=read, args=(owner,)) for owner in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(most) == 12_000
    assert max(most) == 4
    assert descriptors_of(tmp_path) == 4
    for owner in range(3):
        shards.close(owner)
    assert descriptors_of(tmp_path) == 0


def test_a_shard_is_closed_only_when_its_reader_is_done(files, tmp_path):
    shards = OpenShards(lambda: 1)
    held = shards.get(0, 7, lambda number: OpenShard(files[number], 1000))
    shards.get(0, 8, lambda number: OpenShard(files[number], 1000))
    shards.close(0)
    assert descriptors_of(tmp_path) == 1
    assert os.pread(held._descriptor, 1000, 0) == bytes([7]) * 1000
    del held
    assert descriptors_of(tmp_path) == 0


def test_the_least_recently_used_is_closed_first(files):
    opened = []

    def open_shard(number: int) -> OpenShard:
        opened.append(number)
        return OpenShard(files[number], 1000)

    shards = OpenShards(lambda: 2)
    for number in (1, 2, 1, 3, 1, 2):
        shards.get(0, number, open_shard)
    assert opened == [1, 2, 3, 2]


def test_the_limit_may_rise_and_fall(files, tmp_path):
    limit = [5]
    shards = OpenShards(lambda: limit[0])
    for most in (5, 20, 3):
        limit[0] = most
        for number in range(len(files)):
            shards.get(0, number, lambda number: OpenShard(files[number], 1000))
        assert descriptors_of(tmp_path) == most


def test_all_stores_of_a_process_share_the_limit(labelled, monkeypatch):
    monkeypatch.setattr(OPEN_SHARDS, "_limit", lambda: 2)
    gc.collect()  # stores of other tests
    index, items = ShardIndex.load(labelled[1]), image_folder(labelled[0]).splits["train"]
    stores = [ShardStore(index) for _ in range(3)]
    before = descriptors_of(labelled[1])
    for sample_id in np.random.default_rng(1).permutation(index.samples):
        for store in stores:
            assert store.read(np.array([sample_id]))[0].tobytes() == items[sample_id].read()
    assert descriptors_of(labelled[1]) <= max(before, 2)
    for store in stores:
        store.close()
    assert descriptors_of(labelled[1]) <= before
    assert stores[0].read(np.array([0]))[0].tobytes() == items[0].read()


def test_a_collected_store_closes_its_shards(labelled, tmp_path):
    shutil.copytree(labelled[1], tmp_path / "copy")
    index = ShardIndex.load(tmp_path / "copy")
    store, other = ShardStore(index), ShardStore(index)
    for reader in (store, other):
        reader.read(np.arange(index.samples))
    assert descriptors_of(tmp_path / "copy") == 2 * len(index.shards)
    del store, reader
    other.close()
    gc.collect()
    assert descriptors_of(tmp_path / "copy") == 0


def test_a_forked_process_opens_its_own_and_closes_none_of_its_parent(labelled):
    index = ShardIndex.load(labelled[1])
    store, everything = ShardStore(index), np.arange(index.samples)
    wanted = [data.tobytes() for data in store.read(everything)]
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with OPEN_SHARDS._lock:
            taken.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    child = os.fork()  # while another thread has the lock
    if child == 0:
        signal.alarm(60)
        same = [data.tobytes() for data in store.read(everything)] == wanted
        store.close()
        os._exit(0 if same else 1)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [data.tobytes() for data in store.read(everything)] == wanted
