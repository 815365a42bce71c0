"""Labels and classes: numbers and names, sources that are joined, classes that train lacks."""

from pathlib import Path

import pytest

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.label_files.class_list import read_class_list
from mimcl.pipeline.sources.labels import apply_class_list, classes_without_train, join_val, label_items

VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]


def items(names, labels=None):
    return [
        FileItem(name, label, 1, Path(name)) for name, label in zip(names, labels or [-1] * len(names), strict=True)
    ]


def source(classes=("ant", "bee", "cat"), val=VAL):
    return Source({"train": items(["a", "b", "c"], [0, 1, 2]), "val": items(val)}, list(classes))


def class_list(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    return read_class_list(tmp_path / "classes.txt")


def labels(found, split="val"):
    return [item.label for item in found.splits[split]]


def test_numbers_are_positions_in_the_list_or_names(tmp_path):
    numbers = label_items({"train": items("ab")}, {"train": [2, 0]}, "x")
    assert apply_class_list(numbers, class_list(tmp_path, "ant\nbee\ncat\n")).classes == ["ant", "bee", "cat"]
    numbers = label_items({"train": items("ab")}, {"train": [2, 0]}, "x")
    assert apply_class_list(numbers, None).classes == ["0", "1", "2"]
    numbers = label_items({"train": items("ab")}, {"train": [2, 0]}, "x")
    with pytest.raises(DataError, match=r"label 2 .*classes.txt.* 2 lines"):
        apply_class_list(numbers, class_list(tmp_path, "ant\nbee\n"))


def test_joined_sources_share_their_classes():
    train = Source({"train": items("ab", [0, 1])}, ["ant", "cat"], ["one"], 5)
    val = Source({"train": items("cd", [1, 0])}, ["bee", "cat"], ["two"], 9)
    found = join_val(train, val, "val.tar")
    assert found.classes == ["ant", "bee", "cat"]
    assert (labels(found, "train"), labels(found)) == ([0, 2], [2, 1])
    assert (found.notes, found.modified) == (["one", "two"], 9)


def test_joined_sources_read_the_class_list_in_one_way(tmp_path):
    """With names of several words beside numbers, the first words must not become further classes."""
    listed = class_list(tmp_path, "great white shark\ntench, Tinca tinca\ngoldfish\n")
    for val, expected in ((["great white shark"], 0), (["goldfish"], 2)):
        numbers = label_items({"train": items("ab")}, {"train": [0, 2]}, "x")
        joined = apply_class_list(join_val(numbers, Source({"train": items("c", [0])}, val), "x", listed), listed)
        assert len(joined.classes) == 3
        assert {item.name: joined.classes[item.label] for item in joined.splits["val"]} == {"c": val[0]}
        assert (labels(joined, "train"), labels(joined)) == ([0, 2], [expected])


@pytest.mark.parametrize(
    ("classes", "train", "val", "note"),
    [
        (["ant", "bee", "tiger shark"], [0, -1], [0, 2, 1], "bee, tiger shark (2 of 3 in val)"),
        ([], [4, 5], [5, 7], "7 (1 of 2 in val)"),
        ([f"c{n}" for n in range(9)], [0], range(9), "c1, c2, c3, c4, c5, ... (8 of 9 in val)"),
        (["ant", "bee"], [0, 1], [1, -1], None),
        (["ant", "bee"], [-1], [1, 0], None),
    ],
    ids=["names", "numbers", "many", "none", "no-labels"],
)
def test_classes_of_val_that_no_train_image_has(classes, train, val, note):
    splits = {
        name: items([str(n) for n in range(len(found))], list(found))
        for name, found in (("train", train), ("val", val))
    }
    expected = [f"classes without train images: {note}"] if note else []
    assert classes_without_train(Source(splits, classes)) == expected


def test_sources_that_do_not_join(tmp_path):
    train = Source({"train": items("ab", [0, 1])}, ["ant", "cat"])
    with pytest.raises(DataError, match="--val x has train and val"):
        join_val(train, source(), "x")
    with pytest.raises(DataError, match="already has a val split.*--val x"):
        join_val(source(), train, "x")
    numbers = label_items({"train": items("cd")}, {"train": [1, 0]}, "x")
    with pytest.raises(DataError, match="--classes"):
        join_val(train, numbers, "x")
    found = join_val(train, numbers, "x", class_list(tmp_path, "cat\nant\n"))
    assert sorted(found.classes) == ["ant", "cat"]
    assert [found.classes[label] for label in labels(found)] == ["ant", "cat"]
