"""Class lists, and label files of val images in the formats in which ImageNet's are distributed."""

from pathlib import Path

import pytest

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.class_list import read_class_list
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.labels import apply_class_list, classes_without_train, join_val, label_items
from mimcl.pipeline.sources.val_labels import label_val

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


def val_labels(tmp_path, text, given=None, has_class_list=True):
    return label_val(given or source(), text.encode(), "val.txt", has_class_list)


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


@pytest.mark.parametrize(
    "text",
    [
        f"{VAL[1]} bee\n{VAL[0]} cat\n{VAL[3]} cat\n{VAL[2]} ant\n",
        f"{VAL[1]}\tbee\n{VAL[0]}\tcat\n{VAL[3]}\tcat\n{VAL[2]}\tant\n",
        "cat\nbee\nant\ncat\n",
        "2\n1\n0\n2\n",
        "3\n2\n1\n3\n",
        f"{VAL[0]} 2\n{VAL[1]} 1\n{VAL[2]} 0\n{VAL[3]} 2\n",
        # Kaggle's: no ending, headings, boxes after the class and after them more of the same.
        "ImageId,PredictionString\n"
        + "".join(
            f"{name[:-5]},{word} 1 2 3 4 {word} 5 6 7 8 \n"
            for name, word in zip(VAL, ("cat", "bee", "ant", "cat"), strict=True)
        ),
    ],
    ids=["names", "tabs", "order", "from-0", "from-1", "names-numbers", "kaggle"],
)
def test_forms_of_label_files(tmp_path, text):
    found = val_labels(tmp_path, text)
    assert labels(found) == [2, 1, 0, 2]
    assert found.classes == ["ant", "bee", "cat"]
    if text[0] in "23":
        (note,) = found.notes
        assert note.startswith("val.txt")
        assert note.endswith(f"from {int(text[0]) - 2}")


def test_classes_of_a_source_without_any(tmp_path):
    given = Source({"train": items("ab"), "val": items(VAL)})
    found = val_labels(tmp_path, "emu\ncat\nemu\ndog\n", given, has_class_list=False)
    assert (found.classes, labels(found), labels(found, "train")) == (["cat", "dog", "emu"], [2, 0, 2, 1], [-1, -1])


def test_paths_and_names_that_several_images_have(tmp_path):
    given = source(val=["a/1.jpg", "b/1.jpg", "c/2.jpg"])
    assert labels(val_labels(tmp_path, "a/1.jpg ant\nb/1.jpg bee\n2 cat\n", given)) == [0, 1, 2]
    with pytest.raises(DataError, match=r"line 1: '1.jpg' names several val images"):
        val_labels(tmp_path, "1.jpg ant\n1.jpg bee\n2.jpg cat\n", given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n3\n", "has 3 labels for 4 val images"),
        ("1\n2\n3\n4\n", " 4 is not .* 3 lines"),
        ("0\n1\n2\n3\n", " 3 is not .* 3 lines"),
        ("ant\nbee\nemu\nant\n", "'emu' is not one of the 3 classes"),
        (f"{VAL[0]} ant\n", "no label for 3 val images.* 'ILSVRC2012_val_00000002.JPEG'"),
        (f"{VAL[0]} ant\nother.JPEG ant\n", "line 2: 'other.JPEG'"),
        (f"{VAL[0]} ant\n{VAL[0]} ant\n{VAL[0]} bee\n", "line 3: 'ILSVRC2012_val_00000001.JPEG'.*'ant'"),
        (f"{VAL[0]} ant\n{VAL[1]}\n", "line 2: 'ILSVRC2012_val_00000002.JPEG' has no class"),
        ("", "is empty"),
        ("9" * 5000 + "\n1\n1\n1\n", "number that is too large"),
    ],
    ids=["count", "above", "above-0", "unknown", "without", "other", "twice", "no-class", "empty", "digits"],
)
def test_label_files_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        val_labels(tmp_path, text)
    assert "\n" not in str(error.value)


def test_numbers_need_a_class_list(tmp_path):
    with pytest.raises(DataError, match="--classes"):
        val_labels(tmp_path, "1\n2\n3\n1\n", has_class_list=False)


def test_no_val_split(tmp_path):
    given = Source({"train": items("ab")})
    with pytest.raises(DataError, match="val.txt needs a val split.*--val"):
        val_labels(tmp_path, "ant\n", given)
