"""--dedup skips and lists items with the same bytes as an earlier one of their split."""

import json

import pytest
from helpers.images import encoded, write_flat

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.packing.duplicates import hash_jobs
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.verify import verify


class Estimated(FileItem):
    exact = False


def listed(out) -> list[tuple]:
    rows = [json.loads(line) for line in (out / "duplicates.jsonl").read_text().splitlines()]
    return [tuple(row[name] for name in ("split", "path", "of_split", "of", "dropped")) for row in rows]


@pytest.fixture
def source(tmp_path):
    """Train has a b c b a a; val has a x x and two empty files."""
    a, b, c, x = (encoded("baseline", seed) for seed in range(4))
    c = c + bytes(len(b) - len(c)) if len(c) < len(b) else c  # the same size, but another image
    files = {"train": {"1a": a, "2b": b, "3c": c, "4b": b, "5a": a, "6a": a}, "val": {"1a": a, "2x": x, "3x": x}}
    for split, named in files.items():
        (tmp_path / "src" / split).mkdir(parents=True)
        for name, data in named.items():
            (tmp_path / "src" / split / name).write_bytes(data)
    for name in ("4", "5"):
        (tmp_path / "src" / "val" / name).write_bytes(b"")
    return image_folder(tmp_path / "src")


@pytest.mark.parametrize("exact", [True, False])
def test_duplicates_are_left_out_and_listed(source, tmp_path, exact):
    if not exact:
        source.splits = {
            split: [Estimated(item.name, -1, 1 + place % 2, item.file) for place, item in enumerate(items)]
            for split, items in source.splits.items()
        }
    out = tmp_path / "out"
    counts = []
    packed = pack(source, out, PackConfig(dedup=True, workers=1), on_progress=counts.append)["packed"]
    assert sum(counts) == 2 * source.num_items
    assert listed(out)[:3] == [
        ("train", "4b", "train", "2b", True),
        ("train", "5a", "train", "1a", True),
        ("train", "6a", "train", "1a", True),
    ]
    assert listed(out)[3:5] == [("val", "1a", "train", "1a", False), ("val", "3x", "val", "2x", True)]
    assert listed(out)[5:] == ([] if exact else [("val", "5", "val", "4", True)])
    assert (packed["dedup"], packed["duplicates"], packed["across_splits"]) == (True, 4 + (not exact), 1)
    train, val = ShardIndex.load(out), ShardIndex.load(out, "val")
    assert [train.path(row) for row in range(train.samples)] == ["1a", "2b", "3c"]
    assert train.keys() == ["000000000", "000000001", "000000002"]  # positions among the kept items
    assert [val.path(row) for row in range(val.samples)] == ["1a", "2x"]
    assert verify(out, True, 1, lambda count: None) == []


def test_only_candidates_are_hashed(tmp_path):
    write_flat(tmp_path / "src", 11)
    items = image_folder(tmp_path / "src").splits["train"]
    sizes = [item.nbytes for item in items]
    expected = [place for place, size in enumerate(sizes) if sizes.count(size) > 1]
    jobs = hash_jobs({"train": items}, tmp_path)
    assert [position for job in jobs for position in job.positions] == expected
    twice = hash_jobs({"train": items, "val": items[:1]}, tmp_path)
    assert sorted({0, 11, *expected}) == [position for job in twice for position in job.positions]


def test_without_duplicates_the_option_does_not_change_the_shards(tmp_path):
    write_flat(tmp_path / "src", 12)
    source = image_folder(tmp_path / "src")
    for dedup in (False, True):
        pack(source, tmp_path / str(dedup), PackConfig(dedup=dedup), on_progress=lambda count: None)
    assert (tmp_path / "True" / "duplicates.jsonl").read_bytes() == b""
    assert not (tmp_path / "False" / "duplicates.jsonl").exists()
    for name in ("train-000000.tar", "train-000000.idx", "train.arrow"):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()


def test_overwriting_without_the_option_removes_the_list(tmp_path):
    write_flat(tmp_path / "src", 3)
    for dedup in (True, False):
        config = PackConfig(dedup=dedup)
        pack(image_folder(tmp_path / "src"), tmp_path / "out", config, overwrite=True, on_progress=lambda count: None)
    assert not (tmp_path / "out" / "duplicates.jsonl").exists()


def test_unreadable_items_are_not_duplicates(tmp_path):
    write_flat(tmp_path / "src", 2)
    gone = [FileItem(name, -1, 500, tmp_path / name) for name in "ab"]
    source = Source({"train": [*image_folder(tmp_path / "src").splits["train"], *gone]})
    packed = pack(source, tmp_path / "out", PackConfig(dedup=True), on_progress=lambda count: None)["packed"]
    assert (packed["duplicates"], packed["rejected"]) == (0, 2)
