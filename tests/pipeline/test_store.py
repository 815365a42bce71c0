"""Bytes of samples: the right ones, not copied, and never damaged ones."""

import gc
import os
import shutil

import numpy as np
import pytest

from mimcl.pipeline import store
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.sources import image_folder
from mimcl.pipeline.store import ShardStore


@pytest.fixture
def copy(labelled, tmp_path):
    shutil.copytree(labelled[1], tmp_path / "copy")
    return tmp_path / "copy"


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


def test_views_are_not_copies(labelled):
    index = ShardIndex.load(labelled[1])
    views = ShardStore(index).read(np.array([3, 3, 4]))
    for view in views:
        assert view.dtype == np.uint8
        assert not view.flags.owndata
        assert not view.flags.writeable
    assert views[0].ctypes.data == views[1].ctypes.data
    assert views[2].ctypes.data - views[0].ctypes.data == index.offset[4] - index.offset[3]


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_damaged_byte_names_key_and_shard(copy, where):
    index = ShardIndex.load(copy)
    sample_id = first_of_shard(index, 1)
    place = int(index.offset[sample_id]) + (0 if where == "first" else int(index.nbytes[sample_id]) - 1)
    path = copy / index.shards[1]["name"]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    reader = ShardStore(index)
    message = refused(reader, [0, sample_id])
    assert index.key(sample_id) in message
    assert path.name in message
    assert len(reader.read(np.array([0, sample_id + 1]))) == 2  # its neighbours are not affected


@pytest.mark.parametrize("size", [0, 512, -1])
def test_a_truncated_shard(copy, size):
    index = ShardIndex.load(copy)
    path = copy / index.shards[1]["name"]
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    message = refused(ShardStore(index), [0, first_of_shard(index, 1)])
    assert path.name in message
    assert "bytes" in message


def test_a_missing_shard(copy):
    index = ShardIndex.load(copy)
    (copy / index.shards[1]["name"]).unlink()
    message = refused(ShardStore(index), [first_of_shard(index, 1)])
    assert index.shards[1]["name"] in message
    assert "No such file" in message


def test_an_index_that_names_no_shard(copy):
    index = ShardIndex.load(copy)
    del index.shards[1:]
    assert "damaged" in refused(ShardStore(index), [first_of_shard(index, 2)])


def open_maps(folder) -> int:
    with open("/proc/self/maps") as maps:
        return sum(f"{folder}/train-" in line and ".tar" in line for line in maps)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="maps are counted in /proc")
def test_more_shards_than_are_kept_open(copy, labelled, monkeypatch):
    monkeypatch.setattr(store, "_OPEN_SHARDS", 2)
    index = ShardIndex.load(copy)
    assert len(index.shards) > 2
    items = image_folder(labelled[0]).splits["train"]
    reader = ShardStore(index)
    held = reader.read(np.array([0]))[0]
    for sample_id in np.random.default_rng(1).permutation(np.tile(np.arange(index.samples), 3)):
        assert reader.read(np.array([sample_id]))[0].tobytes() == items[sample_id].read()
    for sample_id in np.flatnonzero(index.shard > 0):  # the first shard leaves the cache for good
        reader.read(np.array([sample_id]))
    gc.collect()
    assert open_maps(copy) == 3  # two in the cache, one held by a view
    assert held.tobytes() == items[0].read()
    del held
    gc.collect()
    assert open_maps(copy) == 2
