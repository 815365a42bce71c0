"""Files of a model hub are read within its limit: each address is asked for once, and reused until it expires."""

import multiprocessing
import shutil
import threading
import time

import numpy as np
import pytest
from helpers.hub import started_hub, use_hub

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.store import ShardStore

pytestmark = pytest.mark.slow

URL = "hf://datasets/user/set"


def expected(shards, rows):
    return [data.tobytes() for data in ShardStore(ShardIndex.load(shards)).read(rows)]


def read(store, rows):
    return [data.tobytes() for data in store.read(rows)]


def forget_samples():
    shutil.rmtree(cache_dir() / "shards", ignore_errors=True)


def shards_of(index):
    return sorted(shard["name"] for shard in index.shards)


def test_each_shard_is_resolved_once_for_all_threads_and_stores(hub, shards):
    index = ShardIndex.load(URL)
    rows = np.arange(index.samples)
    for ids in (rows[::3], rows, rows):
        store = open_store(index)
        store.prefetch(store.plan_reads(ids))
        assert read(store, ids) == expected(shards, ids)
        forget_samples()
    assert sorted(line["path"] for line in hub.resolved(r"train.*\.tar")) == shards_of(index)
    assert len(hub.stored(r"train.*\.tar")) > 2 * len(index.shards)


def test_whole_shards_are_fetched_once_where_the_cache_has_room_for_all(hub, shards):
    index = ShardIndex.load(URL)
    store = open_store(index, whole_shards=True)
    few = np.flatnonzero(np.diff(index.shard, prepend=-1))[1:]  # one of each shard but the first
    planned = store.plan_reads(few)
    np.testing.assert_array_equal(planned.sample_ids, np.flatnonzero(index.shard > 0))
    store.prefetch(planned)
    deadline = time.monotonic() + 60
    while len(store._read_cached(planned.sample_ids)) < len(planned.sample_ids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(hub.stored()) == len(planned.start)
    assert read(store, planned.sample_ids) == expected(shards, planned.sample_ids)
    assert len(hub.stored()) == len(planned.start)
    assert len(hub.resolved()) == len(index.shards) - 1


def test_threads_that_need_a_shard_at_once_resolve_it_once(hub, shards):
    index = ShardIndex.load(URL)
    rows = np.flatnonzero(index.shard == 0)[::5]
    hub.set(delay_s=0.5)
    threads = [
        threading.Thread(target=open_store(index).read, args=(rows[number : number + 1],)) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.stored()) == 3
    assert len(hub.resolved()) == 1


def read_all(url):
    """Read every sample in random order; runs in its own process."""
    index = ShardIndex.load(URL)
    store = open_store(index)
    for ids in np.array_split(np.random.default_rng(0).permutation(index.samples), 5):
        store.read(ids)
        forget_samples()


@pytest.mark.parametrize("limit", [3000, 2])
def test_processes_share_addresses_and_wait_together(hub, limit):
    hub.set(limit=limit, window_s=2, counted=r"\.tar")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=read_all, args=(hub.url,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    index = ShardIndex.load(URL)
    granted = hub.resolved(r"train.*\.tar", status=302)
    assert sorted(line["path"] for line in granted) == shards_of(index)
    refused = hub.resolved(r"train.*\.tar", status=429)
    assert bool(refused) == (limit == 2)
    assert len(refused) < len(index.shards)  # within one window, no file is asked for twice


def test_a_limit_is_waited_for(hub, shards, caplog):
    index = ShardIndex.load(URL)
    hub.set(limit=1, window_s=2, counted=r"\.tar")
    rows = np.arange(index.samples)
    assert read(open_store(index), rows) == expected(shards, rows)
    assert len(hub.resolved(status=302)) == len(index.shards)
    assert hub.resolved(status=429)
    (line,) = {record.getMessage() for record in caplog.records if record.name.startswith("mimcl")}
    assert line.startswith(f"{hub.url} asks to wait ")


def test_addresses_are_renewed_when_they_expire(hub, shards):
    index = ShardIndex.load(URL)
    hub.set(life_s=2)
    store, rows = open_store(index), np.array([0, 1])
    assert read(store, rows) == expected(shards, rows)
    for _ in range(2):
        forget_samples()
        time.sleep(3.1)
        assert read(store, rows) == expected(shards, rows)
    assert len(hub.resolved()) == 3
    assert {line["status"] for line in hub.stored()} == {200}  # none was refused


def test_an_address_that_the_storage_refuses_is_asked_for_once_more(hub, shards):
    index = ShardIndex.load(URL)
    store, rows = open_store(index), np.array([0])
    for _ in range(2):
        assert read(store, rows) == expected(shards, rows)
        hub.revoke()
        forget_samples()
    assert read(store, rows) == expected(shards, rows)
    assert len(hub.resolved()) == 3
    assert [line["status"] for line in hub.stored()] == [200, 403, 200, 403, 200]


def test_a_storage_that_refuses_every_address_is_an_error_of_one_line(hub, monkeypatch):
    index = ShardIndex.load(URL)
    hub.set(life_s=-10)  # expired from the start
    with pytest.raises(DataError) as error:
        open_store(index).read(np.array([0]))
    assert "HTTP 403" in str(error.value)
    assert "Signature" not in str(error.value)
    assert len(hub.resolved()) <= 2


def test_the_token_is_sent_to_the_hub_only(hub, shards, monkeypatch):
    hub.set(token="hf_secret")
    with pytest.raises(DataError, match="HF_TOKEN"):
        ShardIndex.load(URL)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    index = ShardIndex.load(URL)
    rows = np.arange(index.samples)
    assert read(open_store(index), rows) == expected(shards, rows)
    assert {line["authorization"] for line in hub.resolved(".", status=302)} == {"Bearer hf_secret"}
    assert {line["authorization"] for line in hub.stored(".")} == {""}
    kept = [path for path in cache_dir().rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert kept == []
    for path in cache_dir().glob("addresses/*"):
        assert path.stat().st_mode & 0o077 == 0  # a signed address needs no token


def test_a_pause_of_the_storage_is_waited_for(hub, shards):
    index = ShardIndex.load(URL)
    hub.set(pauses=10)
    rows = np.arange(index.samples)
    assert read(open_store(index), rows) == expected(shards, rows)
    assert len(hub.resolved()) == len(index.shards)


def test_files_that_the_hub_sends_itself_need_a_request_each(hub, shards):
    index = ShardIndex.load(URL)
    hub.set(sent_by_hub=".")
    rows = np.arange(index.samples)
    store = open_store(index)
    planned = store.plan_reads(rows)
    assert read(store, rows) == expected(shards, rows)
    assert len(hub.resolved()) == len(planned.start)
    assert not hub.stored()


def test_the_description_is_fetched_anew_although_addresses_are_kept(shards, tmp_path, monkeypatch):
    here = tmp_path / "hub"
    shutil.copytree(shards, here)
    with started_hub(here) as other:
        other.set(sent_by_hub="nothing")  # the description is redirected too
        use_hub(monkeypatch, other.url)
        ShardIndex.load(URL)
        (here / "dataset.json").write_text("{}")
        with pytest.raises(DataError):
            ShardIndex.load(URL)


def test_a_shard_that_changed_is_refused(shards, tmp_path, monkeypatch):
    here = tmp_path / "hub"
    shutil.copytree(shards, here)
    path = here / "train-000000.tar"
    with started_hub(here) as other:
        use_hub(monkeypatch, other.url)
        store = open_store(ShardIndex.load(URL))
        assert read(store, np.array([0])) == expected(shards, np.array([0]))
        path.write_bytes(bytes(path.stat().st_size))
        assert read(store, np.array([1])) == expected(shards, np.array([1]))  # its address is of the old version
        other.revoke()
        forget_samples()
        with pytest.raises(DataError, match=f"shard {URL}/train-000000.tar changed"):
            store.read(np.array([1]))
