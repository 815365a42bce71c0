"""Bytes of samples: never damaged ones; a bad sample is reported from a missing shard."""

import errno
import gc
import os
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from helpers.bad_samples import flip_byte, reading_can_fail, unreadable

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_shards import OPEN_SHARDS
from mimcl.pipeline.read_pool import READ_THREADS
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import Defect, ShardStore


@pytest.fixture
def copy(labelled, tmp_path):
    shutil.copytree(labelled[1], tmp_path / "copy")
    return tmp_path / "copy"


def plain(found) -> list[bytes | Defect]:
    return [data if isinstance(data, Defect) else data.tobytes() for data in found]


def refused(store, sample_ids) -> str:
    with pytest.raises(DataError) as error:
        store.read(np.asarray(sample_ids))
    assert "\n" not in str(error.value)
    return str(error.value)


def first_of_shard(index, shard) -> int:
    return int(np.flatnonzero(index.shard == shard)[0])


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_sample_in_any_order(labelled, split):
    src, out = labelled
    index = ShardIndex.load(out, split)
    ids = np.random.default_rng(0).integers(0, index.samples, 200)
    items = image_folder(src).splits[split]
    for sample_id, view in zip(ids, ShardStore(index).read(ids), strict=True):
        assert view.tobytes() == items[sample_id].read()
    assert ShardStore(index).read(ids[:0]) == []


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_damaged_byte_makes_its_sample_bad(copy, labelled, where):
    index = ShardIndex.load(copy)
    sample_id = first_of_shard(index, 1)
    flip_byte(index, sample_id, 0 if where == "first" else int(index.nbytes[sample_id]) - 1)
    before, defect, after = ShardStore(index).read(np.array([0, sample_id, sample_id + 1]))
    assert defect[:2] == (index.key(sample_id), index.shards[1]["name"])
    assert "do not match the index" in defect.reason
    items = image_folder(labelled[0]).splits["train"]
    assert (before.tobytes(), after.tobytes()) == (items[0].read(), items[sample_id + 1].read())


@pytest.mark.skipif(not reading_can_fail(), reason="no file here fails to be read")
def test_a_sample_that_the_system_does_not_read_is_bad(labelled):
    index = unreadable(ShardIndex.load(labelled[1]), 7)
    before, defect, after = ShardStore(index).read(np.array([6, 7, 8]))
    assert defect[:2] == (index.key(7), "speed")
    assert "Invalid argument" in defect.reason
    assert [len(before), len(after)] == index.nbytes[[6, 8]].tolist()


def test_a_shard_replaced_by_an_intact_copy_is_read_from_there(copy, labelled):
    index = ShardIndex.load(copy)
    sample_id, path = first_of_shard(index, 1), copy / index.shards[1]["name"]
    flip_byte(index, sample_id)
    reader = ShardStore(index)
    assert isinstance(reader.read(np.array([sample_id]))[0], Defect)
    shutil.copy(labelled[1] / path.name, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)
    assert xxhash.xxh64_intdigest(reader.read(np.array([sample_id]))[0]) == index.xxh64[sample_id]


@pytest.mark.parametrize("size", [0, 512, -1])
def test_a_truncated_shard(copy, size):
    index = ShardIndex.load(copy)
    path = copy / index.shards[1]["name"]
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    message = refused(ShardStore(index), [0, first_of_shard(index, 1)])
    assert path.name in message
    assert "bytes" in message


@pytest.mark.parametrize("kept", [0, 1000])
def test_a_shard_truncated_after_it_was_opened(copy, kept):
    index = ShardIndex.load(copy)
    reader, path = ShardStore(index), copy / index.shards[1]["name"]
    last = int(np.flatnonzero(index.shard == 1)[-1])
    reader.read(np.array([last]))
    os.truncate(path, kept)
    message = refused(reader, [last])
    assert f"{path.name} has {kept:,} bytes" in message
    assert f"{index.shards[1]['bytes']:,}" in message


@pytest.mark.parametrize("opened", [False, True])
def test_a_missing_shard(copy, opened):
    index = ShardIndex.load(copy)
    reader, path, sample_id = ShardStore(index), copy / index.shards[1]["name"], first_of_shard(index, 1)
    if opened:
        reader.read(np.array([sample_id]))
        flip_byte(index, sample_id)  # else it would be read from the open file
    path.unlink()
    message = refused(reader, [sample_id])
    assert index.shards[1]["name"] in message
    assert "No such file" in message


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_shard_that_is_not_a_file(copy, make):
    index = ShardIndex.load(copy)
    path = copy / index.shards[1]["name"]
    path.unlink()
    make(path)
    message = refused(ShardStore(index), [first_of_shard(index, 1)])
    assert f"{path} is not a regular file" in message


@pytest.mark.parametrize("change", [{"offset": -1}, {"offset": 1 << 40}, {"nbytes": -5}, {"nbytes": 1 << 40}], ids=str)
def test_an_index_that_points_outside_its_shard(labelled, change):
    index = ShardIndex.load(labelled[1])
    columns = {name: getattr(index, name).copy() for name in change}
    for name, value in change.items():
        columns[name][3] = value
    message = refused(ShardStore(replace(index, **columns)), [3])
    assert "index is damaged" in message
    assert index.shards[0]["name"] in message


def test_an_index_row_in_no_shard(copy):
    index = ShardIndex.load(copy)
    del index.shards[1:]
    assert "damaged" in refused(ShardStore(index), [first_of_shard(index, 2)])


def open_shards(folder) -> int:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(f"{folder}/train-") for link in links if os.path.islink(link))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="descriptors are counted in /proc")
def test_more_shards_than_stay_open(copy, labelled, monkeypatch):
    monkeypatch.setattr(OPEN_SHARDS, "_limit", lambda: 2)
    index = ShardIndex.load(copy)
    assert len(index.shards) > 2
    items = image_folder(labelled[0]).splits["train"]
    reader = ShardStore(index)
    for sample_id in np.random.default_rng(1).permutation(np.tile(np.arange(index.samples), 3)):
        assert reader.read(np.array([sample_id]))[0].tobytes() == items[sample_id].read()
    gc.collect()  # readers of other tests
    assert open_shards(copy) == 2
    flip_byte(index, 0)
    for _ in range(5):  # each opens the shard again
        reader.read(np.array([0]))
    assert open_shards(copy) == 2
    for seed in range(5):  # the same shards by several threads at once
        reader.read(np.random.default_rng(seed).integers(0, index.samples, 200))
    gc.collect()
    assert open_shards(copy) == 2
    del reader
    gc.collect()
    assert open_shards(copy) == 0


def test_many_samples_at_once_are_the_same_as_one_by_one(copy):
    index = ShardIndex.load(copy)
    bad = [0, first_of_shard(index, 1), first_of_shard(index, 2) + 1, index.samples - 1]
    for sample_id in bad:
        flip_byte(index, sample_id)
    if reading_can_fail():
        index = unreadable(index, 7)
        bad.append(7)
    ids = np.random.default_rng(2).integers(0, index.samples, 300)
    assert np.isin(bad, ids).all()
    many, one_by_one = ShardStore(index), ShardStore(index)
    expected = [one_by_one.read(ids[place : place + 1])[0] for place in range(len(ids))]
    assert [isinstance(data, Defect) for data in expected] == np.isin(ids, bad).tolist()
    for _ in range(3):
        assert plain(many.read(ids)) == plain(expected)


@pytest.fixture
def nothing_cached(monkeypatch):
    """The page cache holds nothing, so that every sample comes from the device."""

    def not_now(*what):
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_now)


def test_samples_from_the_device_equal_those_from_the_page_cache(labelled, monkeypatch):
    index, real = ShardIndex.load(labelled[1]), os.preadv
    ids = np.random.default_rng(3).integers(0, index.samples, 200)
    expected = plain(ShardStore(index).read(ids))
    for every in (1, 2, 50):  # all samples are missing there, half of them, a few

        def missing(descriptor, buffers, offset, flags, every=every):
            if offset // 512 % every == 0:
                raise BlockingIOError
            return real(descriptor, buffers, offset, flags)

        monkeypatch.setattr(os, "preadv", missing)
        assert plain(ShardStore(index).read(ids)) == expected


def test_a_partly_cached_sample_is_read_from_the_device(labelled, monkeypatch):
    index, real = ShardIndex.load(labelled[1]), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at, how: real(fd, [to[0][:100]], at, how))
    assert [len(data) for data in ShardStore(index).read(np.arange(20))] == index.nbytes[:20].tolist()


def test_a_file_system_without_nowait_is_asked_once_per_shard(labelled, monkeypatch):
    index, asked = ShardIndex.load(labelled[1]), []
    expected = plain(ShardStore(index).read(np.arange(index.samples)))

    def unsupported(descriptor, *what):
        asked.append(descriptor)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "preadv", unsupported)
    assert plain(ShardStore(index).read(np.arange(index.samples))) == expected
    assert len(asked) == len(set(asked)) == len(index.shards)


def test_cached_samples_are_read_without_waiting_in_the_calling_thread(labelled, monkeypatch):
    index, real, reads = ShardIndex.load(labelled[1]), os.preadv, []

    def noted(descriptor, buffers, offset, flags):
        reads.append((threading.current_thread(), flags))
        return real(descriptor, buffers, offset, flags)

    ShardStore(index).read(np.arange(index.samples))  # now it does
    monkeypatch.setattr(os, "preadv", noted)
    ShardStore(index).read(np.arange(index.samples))
    assert set(reads) == {(threading.current_thread(), os.RWF_NOWAIT)}
    assert len(reads) == index.samples


def test_the_first_of_several_errors_is_raised(copy):
    index = ShardIndex.load(copy)
    ids = np.zeros(100, np.int64)
    ids[[50, 55, 90]] = [first_of_shard(index, shard) for shard in (1, 2, 2)]
    os.truncate(copy / index.shards[1]["name"], 512)
    (copy / index.shards[2]["name"]).unlink()
    assert f"{index.shards[1]['name']} has 512 bytes" in refused(ShardStore(index), ids)
    ids[50] = 0
    assert f"{index.shards[2]['name']} cannot be read" in refused(ShardStore(index), ids)


def test_several_reads_are_in_flight_at_once(labelled, monkeypatch, nothing_cached):
    index, pread, waited = ShardIndex.load(labelled[1]), os.pread, threading.local()
    barrier = threading.Barrier(READ_THREADS)

    def first_together(*what):
        if not hasattr(waited, "done"):
            waited.done = barrier.wait(30)
        return pread(*what)

    monkeypatch.setattr(os, "pread", first_together)
    ids = np.arange(64) % index.samples
    assert [len(data) for data in ShardStore(index).read(ids)] == index.nbytes[ids].tolist()


def test_a_hanging_read_is_named_and_delays_only_its_chunk(labelled, monkeypatch, nothing_cached):
    index, pread, gate, done = ShardIndex.load(labelled[1]), os.pread, threading.Event(), []
    ids, hangs = np.arange(40), 21  # one thread reads 20 to 24; so 36 are read

    def hang(descriptor, nbytes, offset):
        if offset == index.offset[hangs] and nbytes == index.nbytes[hangs]:
            gate.wait(60)
        data = pread(descriptor, nbytes, offset)
        done.append(offset)
        return data

    monkeypatch.setattr(os, "pread", hang)
    reader, found = ShardStore(index), []
    assert f"sample {index.key(0)} " in reader.activity()
    thread = threading.Thread(target=lambda: found.extend(reader.read(ids)))
    thread.start()
    deadline, expected = time.monotonic() + 30, f"reading sample {index.key(hangs)} of {index.shards[0]['name']}"
    while not (reader.activity() == expected and len(done) == 36) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (reader.activity(), len(done)) == (expected, 36)
    gate.set()
    thread.join(30)
    assert [len(data) for data in found] == index.nbytes[ids].tolist()
    assert f"sample {index.key(ids[-1])} " in reader.activity()


def test_few_samples_are_read_in_the_calling_thread(labelled, monkeypatch, nothing_cached):
    index, pread, threads = ShardIndex.load(labelled[1]), os.pread, []
    monkeypatch.setattr(os, "pread", lambda *what: (threads.append(threading.current_thread()), pread(*what))[1])
    reader = ShardStore(index)
    for count in (1, 2, 7):
        assert len(reader.read(np.arange(count))) == count
    assert set(threads) == {threading.current_thread()}
    assert not reader._pool._threads
    reader.read(np.arange(40))
    assert len(set(threads)) > 1
