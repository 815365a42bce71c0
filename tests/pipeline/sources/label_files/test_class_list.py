"""Class lists: which reading of the lines is taken, and what is refused rather than shifted."""

from pathlib import Path

import pytest

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.label_files.class_list import read_class_list
from mimcl.pipeline.sources.labels import apply_class_list, label_items


def source(classes=("ant", "bee", "cat")):
    """One image of each class."""
    return Source(
        {"train": [FileItem(name, label, 1, Path(name)) for label, name in enumerate(classes)]}, list(classes)
    )


def numbered(*labels):
    items = [FileItem(str(label), -1, 1, Path("x")) for label in labels]
    return label_items({"train": items}, {"train": labels}, "x")


def class_list(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return read_class_list(path)


def labels(found):
    return [item.label for item in found.splits["train"]]


def test_a_class_list_gives_the_order_of_labels(tmp_path):
    found = apply_class_list(source(), class_list(tmp_path, "cat a small tiger\nnone\nemu, a bird\nant x\nbee\n"))
    assert found.classes == ["cat", "none", "emu", "ant", "bee"]
    assert labels(found) == [3, 4, 0]


def test_names_of_several_words(tmp_path):
    whole = ["tench, Tinca tinca", "goldfish, Carassius", "great white shark"]
    found = apply_class_list(source(whole), class_list(tmp_path, "\n".join(reversed(whole))))
    assert found.classes == whole[::-1]
    assert labels(found) == [2, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\ncat\n", "'bee'.*classes.txt"),
        ("\n", "is empty"),
        ("ant\nbee\nant\n", "'ant' twice"),
    ],
)
def test_class_lists_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        apply_class_list(source(), class_list(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_class_list(tmp_path):
    with pytest.raises(DataError, match=r"classes.txt.*No such file"):
        read_class_list(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_class_list(tmp_path / "classes.txt")


TENCH = ["tench", "goldfish", "great white shark"]
WNIDS = ["n01440764", "n01443537", "n01484850"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 great white shark\n", WNIDS),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n\n \nn01484850 great white shark\n\n", WNIDS),
        ("n01440764\ttench\r\nn01443537\tgoldfish\r\nn01484850\tgreat white shark\r\n", WNIDS),
        ("n01440764,tench\nn01443537,goldfish\nn01484850,great white shark", WNIDS),
        (b"\xef\xbb\xbfn01440764\rn01443537\rn01484850\r", WNIDS),
        ("tench\ngoldfish\ngreat white shark\n", TENCH),
        ("tench, Tinca tinca\ngoldfish, Carassius\ngreat white shark, white shark\n", TENCH),
        ("tench\tTinca tinca\ngoldfish\tCarassius\ngreat white shark\twhite\n", TENCH),
        ('"tench","Tinca"\n"goldfish","Carassius"\n"great white shark","a, b"\n', TENCH),
        ("0 tench\n1 goldfish\n2 great white shark\n", TENCH),
        ("1 tench\n2 goldfish\n3 great white shark\n", TENCH),
        ("0: tench\n1: goldfish\n2: great white shark\n", TENCH),
        ("0,tench\n1,goldfish\n2,great white shark\n", TENCH),
        ("1. tench\n2. goldfish\n3. great white shark\n", TENCH),
        ("2 great white shark\n0 tench\n1 goldfish\n", TENCH),
        ("tench 0\ngoldfish 1\ngreat white shark 2\n", TENCH),
        ("tench: 0\ngoldfish: 1\ngreat white shark: 2\n", TENCH),
        ("tench,0\ngoldfish,1\ngreat white shark,2\n", TENCH),
        ("0 n01440764 tench\n1 n01443537 goldfish\n2 n01484850 shark\n", WNIDS),
        ("1 001.Albatross\n2 002.Auk\n3 003.Bunting\n", ["001.Albatross", "002.Auk", "003.Bunting"]),
        ("10 cars\n7 cars\n3 cars\n", ["10 cars", "7 cars", "3 cars"]),
        ("digit 0\ndigit 1\ndigit 2\n", ["digit 0", "digit 1", "digit 2"]),
        ("7\n3\n5\n", ["7", "3", "5"]),
    ],
)  # fmt: skip
def test_lists_as_they_are_distributed(tmp_path, text, found):
    """Each list gives the labels that are meant, whichever of its classes the source has."""
    for some in (found, found[-1:], found[::-1]):
        listed = apply_class_list(source(some), class_list(tmp_path, text))
        assert [listed.classes[label] for label in labels(listed)] == some
        assert labels(listed) == [found.index(name) for name in some]


@pytest.mark.parametrize(
    ("text", "found", "message"),
    [
        ("tench 1\ngoldfish 0\n", ["tench"], "'tench' is 1 if .* before the numbers, 0 if .*first words of its lines"),
        ("shark\t1\ntench\t0\n", ["shark"], "'shark' is 1 if .* before the numbers, 0 if .*first columns of its lines"),
        ("tench, goldfish\ngoldfish\n", ["shark"], "'shark' is not in"),
        ("class_name\ntench\ngoldfish\n", ["tench"], r"heading \('class_name'\); remove it"),
        ("id,name\n0,tench\n1,goldfish\n", ["tench"], "heading"),
        ("# my classes\ntench\n", ["tench"], "heading"),
        ("1 person\n3 car\n4 tree\n", ["car"], "numbers in its lines are not 0 to 2 or 1 to 3"),
        ('{"0": "tench",\n"1": "goldfish"}\n', ["tench"], "is JSON"),
        (b"\xff\xfet\x00e\x00", ["tench"], "UTF-16"),
        (b"t\0e\0n\0", ["tench"], "UTF-16"),
        (b"caf\xe9\n", ["cafe"], r"not UTF-8 text \(byte 3\); convert"),
    ],
)  # fmt: skip
def test_lists_that_would_shift_labels_are_refused(tmp_path, text, found, message):
    with pytest.raises(DataError, match=message) as error:
        apply_class_list(source(found), class_list(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "classes.txt" in str(error.value)


@pytest.mark.parametrize(
    ("text", "given", "expected", "names", "note"),
    [
        ("ant\nbee\ncat\n", [0, 2], [0, 2], "ant bee cat", None),
        ("ant\nbee\ncat\n", [1, 2], [1, 2], "ant bee cat", "no label is 0: labels are positions"),
        ("n1 ant\nn2 bee, wasp\n", [0, 1], [0, 1], "n1 n2", "first words of its lines: 'n1', not 'n1 ant'"),
        ("0 ant\n1 bee\n2 cat\n", [1, 2], [1, 2], "ant bee cat", "after the numbers: 'ant', not '0 ant'"),
        ("1 ant\n2 bee\n3 cat\n", [1, 3], [0, 2], "ant bee cat", "labels are the numbers in the lines"),
        ("1 ant\n2 bee\n3 cat\n", [0, 2, -1], [0, 2, -1], "ant bee cat", "after the numbers"),
        ("cat 3\nant 1\nbee 2\n", [3, 2], [2, 1], "ant bee cat", "before the numbers"),
    ],
)
def test_labels_that_are_numbers(tmp_path, text, given, expected, names, note):
    found = apply_class_list(numbered(*given), class_list(tmp_path, text))
    assert (labels(found), found.classes) == (expected, names.split())
    assert [text for text in found.notes if note and note in text] or not note
    assert note or not found.notes


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("1 ant\n2 bee\n3 cat\n", [1, 2], "labels 1 to 2 may be positions .* from 0, or the numbers in"),
        ("1 ant\n2 bee\n3 cat\n", [0, 3], "label 3 is not in"),
        ("1 ant\n3 bee\n", [1], "numbers in its lines are not 0 to 1 or 1 to 2"),
        ("ant\n\nbee\n", [0, 1], "line 2 is empty"),
        ("name\nant\nbee\n", [0, 1], "heading"),
    ],
)  # fmt: skip
def test_numbers_whose_line_is_unclear_are_refused(tmp_path, text, given, message):
    with pytest.raises(DataError, match=message):
        apply_class_list(numbered(*given), class_list(tmp_path, text))


def test_a_note_names_the_reading_if_another_fits(tmp_path):
    found = apply_class_list(source(["cat", "dog"]), class_list(tmp_path, "cat\ndog\ngreat white shark\n"))
    assert (found.classes, labels(found)) == (["cat", "dog", "great"], [0, 1])
    (note,) = found.notes
    assert note.endswith("classes are the first words of its lines: 'great', not 'great white shark'")


def test_a_first_class_that_reads_like_a_heading(tmp_path):
    assert labels(apply_class_list(source(["label", "name"]), class_list(tmp_path, "name\nlabel\n"))) == [1, 0]
    assert apply_class_list(numbered(0, 1), class_list(tmp_path, "class 0\nclass 1\n")).classes == [
        "class 0",
        "class 1",
    ]
