"""Images that are not packed, read by a Stream as if they were in shards."""

import numpy as np
import pytest
import torch
from helpers.bad_samples import broken_png
from helpers.images import write_classes

from mimcl.pipeline.augment import central_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.item_index import ItemIndex
from mimcl.pipeline.item_store import ItemStore
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import Defect
from mimcl.pipeline.stream import ReadOptions, Stream


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / "images", {"ant": 9, "bee": 8})
    return tmp_path


def indexed(folder) -> ItemIndex:
    source = image_folder(folder / "images")
    return ItemIndex.of(folder / "images", source.splits["train"], source.classes)


def batches(index: ShardIndex):
    plan, options = InOrderPlan(np.arange(index.samples)), ReadOptions(keep_bad=True)
    return list(Stream(plan, index, ReferenceDecoder(16, 1), central_crops, BatchShares(4, 4), options, seed=0))


def test_pixels_keys_paths_and_labels_are_those_of_the_packed_images(folder):
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(), on_progress=lambda count: None)
    items, packed = indexed(folder), ShardIndex.load(folder / "shards")
    assert items.names(0, items.samples) == packed.names(0, packed.samples)
    assert items.classes == packed.classes == ["ant", "bee"]
    for one, other in zip(batches(items), batches(packed), strict=True):
        assert torch.equal(one.images, other.images)
        assert one.labels.tolist() == other.labels.tolist()
        assert not one.bad
    assert np.array_equal(items.width, packed.width)
    assert np.array_equal(items.height, packed.height)


def test_what_packing_rejects_is_bad_for_the_same_reason(folder):
    names = sorted((folder / "images" / "ant").iterdir())
    names[1].write_text("no image")
    names[3].write_bytes(names[3].read_bytes()[:-100])
    names[5].write_bytes(broken_png(1))  # only a decoder notices
    index = indexed(folder)
    names[7].unlink()
    found = [(bad.sample_id, bad.reason) for batch in batches(index) for bad in batch.bad]
    assert [row for row, _ in found] == [1, 3, 5, 7]
    for (_, reason), expected in zip(
        found, ("not a JPEG", "truncated", "does not decode", "No such file"), strict=True
    ):
        assert expected in reason
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(), on_progress=lambda count: None)
    rejected = (folder / "shards" / "rejected.jsonl").read_text()
    assert all(f'"reason": "{reason}"' in rejected for row, reason in found if row in (1, 3))
    for batch in batches(index):
        for bad in batch.bad:
            assert not batch.images[bad.draw - int(batch.draws[0])].any()


def test_the_fingerprint_is_of_names_sizes_and_labels(folder):
    before = indexed(folder).fingerprint
    assert indexed(folder).fingerprint == before
    (folder / "images" / "ant").rename(folder / "images" / "cow")
    renamed = indexed(folder).fingerprint
    (folder / "images" / "cow" / "00000.jpg").write_bytes(b"shorter")
    assert len({before, renamed, indexed(folder).fingerprint}) == 3


def test_the_store_can_be_used_again_after_it_was_closed(folder):
    store = open_store(indexed(folder))
    assert isinstance(store, ItemStore)
    first = store.read(np.arange(17))
    store.close()
    again = store.read(np.array([16, 3]))
    assert not any(isinstance(data, Defect) for data in first)
    assert np.array_equal(again[0], first[16])
    assert np.array_equal(again[1], first[3])
    assert "reading " in store.activity()
    assert store.read(np.arange(0)) == []
