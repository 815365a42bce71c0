"""The held-out share: in proportion to the classes, an image of each in train, the same for every kind of source."""

import os
from collections import Counter

import numpy as np
import pytest
from helpers.archives import list_of, tar_of, zip_of
from helpers.images import write_classes, write_flat, write_train_val

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources import folder as folders
from mimcl.pipeline.sources.archives.tars import tar_images
from mimcl.pipeline.sources.archives.zips import zip_images
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.holdout import hold_out
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.listed import listed_images, read_list


def made(sizes: dict[int, int], share: float) -> Source:
    """Hold out of a source with so many images of each label."""
    items = [Item(f"{label}/{n}.jpg", label, 1) for label, count in sizes.items() for n in range(count)]
    return hold_out(Source({"train": items}, [str(n) for n in range(max(sizes) + 1)]), share, "x")


def names(source: Source, split: str = "train") -> list[str]:
    return [item.name for item in source.splits[split]]


def sizes_of(source: Source, split: str) -> Counter[int]:
    return Counter(item.label for item in source.splits[split])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.5, 0.73])
@pytest.mark.parametrize(
    "sizes",
    [
        dict.fromkeys(range(10), 50),
        {0: 400, 1: 100, 2: 57},
        {n: 1 + n % 60 for n in range(1, 200)},
        dict.fromkeys(range(300), 2) | {300: 1000},
        {-1: 90, 0: 60, 1: 50},
    ],
    ids=["equal", "unequal", "many", "pairs", "some without a label"],
)
def test_every_class_gives_its_share_and_the_whole_is_exact(sizes, share):
    found = made(sizes, share)
    total, val = sum(sizes.values()), sizes_of(found, "val")
    room = sum(max(count - 1, 0) if label >= 0 else count for label, count in sizes.items())
    assert val.total() == min(round(share * total), room)
    # The same share t of all of them, one image more or less; t is a little above `share` where small classes are full.
    shares = [val[label] / count for label, count in sizes.items() if count > 40]
    assert all(abs(a - b) < 1.01 / 40 * 2 for a in shares for b in shares)
    for label, count in sizes.items():
        assert label < 0 or val[label] < count
    assert sizes_of(found, "train") + val == Counter(sizes)


def test_classes_of_one_image_stay_in_train_and_others_make_up_for_them():
    found = made({0: 60, 1: 20} | dict.fromkeys(range(2, 22), 1), 0.2)
    assert len(found.splits["val"]) == 20
    assert sizes_of(found, "val") == {0: 15, 1: 5}
    assert found.notes == ["classes of one image, which stays in train: 20 of 22"]


@pytest.mark.parametrize(
    ("sizes", "share", "val", "said"),
    [
        # 0.2 of the classes that have several images, twice.
        ({0: 100} | dict.fromkeys(range(1, 901), 1), 0.2, 40, "0.2 reduced to 0.04: 40 of 1,000 images"),
        (dict.fromkeys(range(50), 2), 0.9, 50, "0.9 reduced to 0.5: 50 of 100 images"),
        ({0: 3} | dict.fromkeys(range(1, 198), 1), 0.05, 1, "0.05 reduced to 0.005: 1 of 200 images"),
    ],
)
def test_a_share_that_cannot_be_had_is_said(sizes, share, val, said):
    found = made(sizes, share)
    assert len(found.splits["val"]) == val
    assert found.notes[-1] == f"--holdout {said}, so that every class keeps images in train"


def test_classes_of_one_image_alone_are_refused():
    with pytest.raises(DataError, match=r"^each class of x has a single image.*; leave out --holdout, or .* --val$"):
        made(dict.fromkeys(range(30), 1), 0.2)


def test_of_many_small_classes_only_some_give_an_image():
    found = made(dict.fromkeys(range(1000), 3), 0.1)
    assert len(found.splits["val"]) == 300
    assert set(sizes_of(found, "val").values()) == {1}
    assert found.notes == []
    given = np.array(sorted(sizes_of(found, "val")))
    assert 400 < given.mean() < 600  # not only the first


@pytest.mark.parametrize("sizes", [{-1: 40}, {0: 30, 1: 9, 2: 1}, dict.fromkeys(range(40), 2), {0: 9, 1: 1, 2: 1}])
def test_a_larger_holdout_contains_a_smaller_one(sizes):
    smaller: set[str] = set()
    for share in (0.1, 0.25, 0.3, 0.5, 0.8):
        held = set(names(made(sizes, share), "val"))
        assert smaller <= held
        smaller = held


def test_every_kind_of_source_holds_out_the_same_images(tmp_path):
    write_classes(tmp_path / "src", {"a": 9, "b": 7, "c": 1, "d": 2})
    tar_of(tmp_path / "src", tmp_path / "x.tar")
    zip_of(tmp_path / "src", tmp_path / "x.zip")
    listing = read_list(list_of(tmp_path / "src", tmp_path / "x.txt"), tmp_path / "src")
    sources = [
        tar_images(tmp_path / "x.tar"),
        zip_images(tmp_path / "x.zip"),
        listed_images(tmp_path / "src", listing),
    ]
    expected = image_folder(tmp_path / "src", 0.3)
    assert len(names(expected, "val")) == round(0.3 * 19)
    for source in (hold_out(source, 0.3, "x") for source in sources):
        assert (sorted(names(source)), sorted(names(source, "val"))) == (names(expected), names(expected, "val"))


def test_only_the_names_decide(tmp_path, monkeypatch):
    write_classes(tmp_path / "one", {"a": 30, "b": 27})
    write_classes(tmp_path / "two", {"a": 30, "b": 27}, seed=99)
    source = image_folder(tmp_path / "one", 0.3)
    train, val = names(source), names(source, "val")
    assert len(val) == round(0.3 * 57)
    assert sorted(train + val) == names(image_folder(tmp_path / "one"))
    assert (train, val) == (sorted(train), sorted(val))
    assert [source.classes[item.label] for item in source.splits["val"]] == [name[0] for name in val]
    assert val != sorted(train + val)[: len(val)]

    scandir = os.scandir

    class Backwards:
        def __init__(self, folder):
            self.entries = list(scandir(folder))[::-1]

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(folders.os, "scandir", Backwards)
    again = image_folder(tmp_path / "two", 0.3)
    assert (names(again), names(again, "val")) == (train, val)


def test_holdout_beside_val_is_refused(tmp_path):
    write_train_val(tmp_path, {"a": 2}, {"a": 1})
    with pytest.raises(DataError, match="val/.*--holdout") as error:
        image_folder(tmp_path, 0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_holdout_out_of_range_is_refused(tmp_path, share):
    write_flat(tmp_path, 2)
    with pytest.raises(DataError, match="--holdout"):
        image_folder(tmp_path, share)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_holdout_that_leaves_a_split_empty_is_refused(tmp_path, share):
    write_flat(tmp_path, 4)
    with pytest.raises(DataError, match=f"--holdout {share}.*empty"):
        image_folder(tmp_path, share)
