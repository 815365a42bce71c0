"""Label files of val images in the formats in which they are distributed; two readings are refused."""

from pathlib import Path

import pytest

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.label_files.val_labels import label_val

VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
TIGERS = ["ant, a", "tiger", "tiger shark", "shark"]


def items(names, labels=None):
    return [
        FileItem(name, label, 1, Path(name)) for name, label in zip(names, labels or [-1] * len(names), strict=True)
    ]


def source(classes=("ant", "bee", "cat"), val=VAL):
    return Source({"train": items(["a", "b", "c"], [0, 1, 2]), "val": items(val)}, list(classes))


def val_labels(text, given=None, has_class_list=True):
    return label_val(given or source(), text.encode() if isinstance(text, str) else text, "val.txt", has_class_list)


def labels(found, split="val"):
    return [item.label for item in found.splits[split]]


def names(found):
    return [found.classes[item.label] for item in found.splits["val"]]


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
def test_forms_of_label_files(text):
    found = val_labels(text)
    assert labels(found) == [2, 1, 0, 2]
    assert found.classes == ["ant", "bee", "cat"]
    if text[0] in "23":
        (note,) = found.notes
        assert note.startswith("val.txt")
        assert note.endswith(f"from {int(text[0]) - 2}")


def test_classes_of_a_source_without_any():
    given = Source({"train": items("ab"), "val": items(VAL)})
    found = val_labels("emu\ncat\nemu\ndog\n", given, has_class_list=False)
    assert (found.classes, labels(found), labels(found, "train")) == (["cat", "dog", "emu"], [2, 0, 2, 1], [-1, -1])


def test_paths_and_names_that_several_images_have():
    given = source(val=["a/1.jpg", "b/1.jpg", "c/2.jpg"])
    assert labels(val_labels("a/1.jpg ant\nb/1.jpg bee\n2 cat\n", given)) == [0, 1, 2]
    with pytest.raises(DataError, match=r"line 1: '1.jpg' names several val images"):
        val_labels("1.jpg ant\n1.jpg bee\n2.jpg cat\n", given)


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
def test_label_files_that_are_refused(text, message):
    with pytest.raises(DataError, match=message) as error:
        val_labels(text)
    assert "\n" not in str(error.value)


def test_numbers_need_a_class_list():
    with pytest.raises(DataError, match="--classes"):
        val_labels("1\n2\n3\n1\n", has_class_list=False)


def test_no_val_split():
    given = Source({"train": items("ab")})
    with pytest.raises(DataError, match="val.txt needs a val split.*--val"):
        val_labels("ant\n", given)


@pytest.mark.parametrize(
    "text",
    [
        "v0.jpg\ttiger shark\nv1.jpg\ttiger\nv2.jpg\tshark\n",
        "v0.jpg\ttiger shark\t0\t32\nv1.jpg\ttiger\t1\t2\nv2.jpg\tshark\t3\t4\n",
        "v0.jpg \t tiger shark\t\nv1.jpg\ttiger\t\nv2.jpg\tshark\n",
        'v0.jpg\t"tiger shark"\n"v1.jpg"\ttiger\nv2.jpg\tshark\n',
        "v0.jpg,tiger shark\nv1.jpg,tiger\nv2.jpg,shark\n",
        "v0.jpg, tiger shark ,\r\n\r\nv1.jpg, tiger,\r\nv2.jpg, shark,,\r\n\r\n",
        'v0.jpg,"tiger shark",0\n"v1.jpg",tiger,1\n"v2.jpg","shark",2\n',
        "file,label\nv0.jpg,tiger shark\nv1.jpg,tiger\nv2.jpg,shark\n",
        "\ufeffFileName\tLabel\nv0.jpg\ttiger shark\nv1.jpg\ttiger\nv2.jpg\tshark\n",
        "filename,width,class\nv0.jpg,640,tiger shark\nv1.jpg,480,tiger\nv2.jpg,480,shark\n",
        ",filename,label\n0,v0.jpg,tiger shark\n1,v1.jpg,tiger\n2,v2.jpg,shark\n",
        "tiger shark\tv0.jpg\ntiger\tv1.jpg\nshark\tv2.jpg\n",
        "v0.jpg tiger shark\nv1.jpg   tiger\nv2.jpg shark\n",
        "image class\nv0 tiger shark\nv1 tiger\nv2 shark",
        "val/v0.jpg tiger shark\n./v1.jpg tiger\nv2.jpg shark\n",
        "tiger shark\ntiger\nshark\n",
        "\ntiger shark \r\n tiger\r\n\r\nshark\r\n",
        b"\xef\xbb\xbfv0.jpg tiger shark\rv1.jpg tiger\rv2.jpg shark\r",
    ],
)
def test_classes_of_several_words_stay_whole(text):
    found = val_labels(text, source(TIGERS, ["v0.jpg", "v1.jpg", "v2.jpg"]), has_class_list=False)
    assert names(found) == ["tiger shark", "tiger", "shark"]
    assert found.notes == []


@pytest.mark.parametrize(
    ("text", "classes", "expected", "note"),
    [
        ("v0.JPEG\tn1\t0\t0\t62\t62\nv1.JPEG\tn2\t7\t8\t9\t9\n", "n1 n2", "n1 n2", None),  # Tiny-ImageNet's
        ("v0.JPEG n1 0 0 62 62\nv1.JPEG n2 7 8 9 9\n", "n1 n2", "n1 n2", "'n1' of 'n1 0 0 62 62'"),
        ("ImageId,PredictionString\nv0,n1 0 0 62 62 \nv1,n2 1 2 3 4 n2 5 6 7 8 \n", "n1 n2", "n1 n2", "'n1' of 'n1 0"),
        ("ImageId,PredictionString\nv0,n1 0 0 62 62 \nv1,n2 1 2 3 4 n2 5 6 7 8 \n", "", "n1 n2", "'n1' of 'n1 0"),
        ("v0 n1 tench, Tinca\nv1 n2\n", "n1 n2", "n1 n2", "in 1 of 2 lines, such as 'n1' of 'n1 tench, Tinca'"),
        ("v0 Boeing 737\nv1 Boeing 737\n", "Boeing_737|Boeing 737", "Boeing 737|Boeing 737", None),
        ("v0\t3\t0\t9\nv1\t0\t5\t7\n", "0 1 2 3", "3 0", None),
        ("v0 3 0 9\nv1 0 5 7\n", "0 1 2 3", "3 0", "'3' of '3 0 9'"),
        ("v0,tench, Tinca\nv1,goldfish\n", "tench, Tinca|goldfish", "tench, Tinca|goldfish", None),
        ('v0,"tench, Tinca",1\nv1,"say ""hi""",2\n', 'tench, Tinca|say "hi"', 'tench, Tinca|say "hi"', None),
        ("v0\ttench, Tinca\nv1\tgoldfish\n", "tench, Tinca|goldfish", "tench, Tinca|goldfish", None),
        ("v0\tant\nv1\tbee\n", " ant|bee ", " ant|bee ", None),
        ("v0\ttiger shark\nv1\tbee\n", "", "tiger shark|bee", "in the order of their names: bee, tiger shark"),
    ],
)  # fmt: skip
def test_what_follows_the_class(text, classes, expected, note):
    classes, expected = (given.split("|" if "|" in given else None) for given in (classes, expected))
    found = val_labels(text, source(classes, ["v0.JPEG", "v1.JPEG"]), has_class_list=False)
    assert names(found) == expected
    assert not note or note in found.notes[0]
    assert note or not found.notes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my cat.jpg tiger shark\nmy dog.jpg tiger\n", ["tiger shark", "tiger"]),
        ("my cat tiger\nmy dog tiger shark\n", ["tiger", "tiger shark"]),
        ("my cat.jpg,tiger shark\nmy dog.jpg,tiger\n", ["tiger shark", "tiger"]),
        ("name label\nmy cat.jpg  tiger\nmy dog.jpg  tiger\n", ["tiger", "tiger"]),
    ],
)
def test_file_names_with_spaces(text, expected):
    assert names(val_labels(text, source(TIGERS, ["my cat.jpg", "my dog.jpg"]))) == expected


@pytest.mark.parametrize(
    ("text", "classes", "val", "message"),
    [
        ("v0 tiger shark\nv1 tiger 1 2\n", TIGERS, "v0 v1", "line 1 is ambiguous: class 'tiger shark', or 'tiger'"),
        ("v0\ttiger shark\nv1\tant, a\nv2\tshark 3\n", TIGERS, "v0 v1 v2", "line 1 is ambiguous"),
        ("v0,tiger,shark\nv1,bee\n", ["tiger", "tiger,shark", "bee"], "v0 v1", "us: 'v0' is 'tiger' if .*commas"),
        ("my cat ant\n", ["cat ant", "ant"], "my|my cat", "is ambiguous: 'my' .* 'cat ant', or 'my cat' .* 'ant'"),
        ("v0 tiger shark\nv1 bee\n", [], "v0 v1", "is ambiguous: class 'tiger shark', or 'tiger'.*--classes"),
        ("v0 1 2 3 4\nv1 b 1\n", [], "v0 v1", "line 1 is ambiguous"),
        ("v0,n1 0 0 62 62 n2 1 2 3 4\n", ["n1", "n2"], "v0", "line 1 has several classes"),
        ("v0 tiger, shark\n", ["tiger", "shark"], "v0", "line 1: 'tiger, shark' is not one of the 2"),
        ("v0 tiger (a shark)\nv1 tiger shark\n", ["tiger", "shark"], "v0 v1", "line 2 has several classes"),
        ("v0\tant\n", ["ant", " ant"], "v0", "cannot tell the classes 'ant' and ' ant' apart"),
        ("v0.png tiger\nv1.png tiger\n", TIGERS, "v0.jpg v1.jpg", "line 2: 'v1.png' is not a val image|'v0.png'"),
        ("v0\nv1\n", [], "v0 v1", "'v0' has no class"),
        ("tiger v0\nshark v1\n", TIGERS, "v0 v1", "line 1: 'tiger' is not a val image"),
        ("shark a tiger\ntiger b\n", TIGERS, "v0 v1", "line 1: 'shark' is not a val image"),
        ("v0;tiger\nv1;tiger\n", TIGERS, "v0 v1", "'v0;tiger' is not"),
        ("v0,\nv1,tiger\n", TIGERS, "v0 v1", "line 1: 'v0' has no class"),
        ("v0 tiger\n\n\nv1 tigger\n", TIGERS, "v0 v1", "line 4: 'tigger' is not one of the 4 classes"),
        ("v0 tiger shrk\nv1 shark\nv0 tiger shark\n", TIGERS, "v0 v1", "line 3 is ambiguous"),
        ("\ufefft".encode("utf-16"), TIGERS, "v0", "not UTF-8 text but UTF-16"),
        ("v0 ant".encode("utf-16-be"), TIGERS, "v0", "not UTF-8 text but UTF-16"),
        ("v0 caf\xe9".encode("latin-1"), TIGERS, "v0", "not UTF-8 text .byte 6"),
    ],
)  # fmt: skip
def test_lines_that_are_refused(text, classes, val, message):
    val = val.split("|" if "|" in val else None)
    with pytest.raises(DataError, match=message) as error:
        val_labels(text, source(classes, val), has_class_list=False)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("val.txt", "the label file val.txt"))
