"""Shards are cut by sizes that are known before anything is read; headers and json members of a shard."""

import tarfile
from itertools import pairwise

import numpy as np
import pytest
from helpers.images import write_flat
from hypothesis import given, settings
from hypothesis import strategies as st

from mimcl.pipeline.packing.cuts import find_cuts
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.item import FileItem, Item, Source
from mimcl.pipeline.writer import ShardWriter, end_of_archive, members_of, tar_header


class NullFile:
    """A file that discards what is written."""

    def write(self, data):
        return len(data)


def shard_bytes(items) -> int:
    writer = ShardWriter(NullFile())
    for item in items:
        writer.add(members_of("000000000", "jpg", item.label, bytes(item.nbytes), item.json))
    writer.end()
    return writer.nbytes


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 700_000), st.integers(-1, 10**9), st.sampled_from([b"", b"{}", bytes(600)])),
        min_size=1,
        max_size=30,
    )
)
def test_no_shard_exceeds_the_size_and_none_has_room_for_the_next_item(kinds):
    items = [Item("name", label, nbytes, json=json) for nbytes, label, json in kinds]
    places = find_cuts(items, PackConfig(shard_mb=1))
    assert (places[0], places[-1]) == (0, len(items))
    for first, end in pairwise(places):
        assert shard_bytes(items[first:end]) <= 1_000_000
        if end < len(items):
            assert shard_bytes(items[first : end + 1]) > 1_000_000


def test_an_item_larger_than_a_shard_gets_its_own():
    items = [Item("name", -1, nbytes) for nbytes in (10, 5_000_000, 10, 10)]
    assert find_cuts(items, PackConfig(shard_mb=1)) == [0, 1, 2, 4]


def test_with_a_short_side_shards_have_about_the_requested_size(tmp_path):
    write_flat(tmp_path / "src", 22, width=250, height=200)
    one = image_folder(tmp_path / "src").splits["train"]
    source = Source({"train": one * 10})
    pack(source, tmp_path / "out", PackConfig(shard_mb=1, short_side=150, workers=1), on_progress=lambda count: None)
    sizes = np.array([path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))])
    assert len(sizes) > 2
    assert (np.abs(sizes[:-1] / 1e6 - 1) < 0.15).all()


@pytest.mark.parametrize("name", ["000000000.jpg", "0.cls", "n" * 100])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 8**6, 2**31 - 1, 8**11 - 1])
def test_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_json_is_packed_beside_the_image(tmp_path):
    (path,) = write_flat(tmp_path / "src", 1)
    item = FileItem("name", 3, path.stat().st_size, path, json=b'{"a": 1}')
    source = Source({"train": [item]}, list("abcd"))
    description = pack(source, tmp_path / "out", PackConfig(), on_progress=lambda count: None)
    assert description["packed"]["json"] is True
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == ["000000000.jpg", "000000000.cls", "000000000.json"]
        assert tar.extractfile("000000000.json").read() == b'{"a": 1}'
    assert (tmp_path / "out" / "train-000000.idx").read_text().split()[-1] == "000000000.json"
    assert end_of_archive(0) == 10240
