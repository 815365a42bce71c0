"""A list of files as a source: paths and classes, without listing any folder."""

import os

import pytest
from helpers.images import write_classes, write_train_val

from mimcl.pipeline.files import DataError
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.listed import listed_images, read_list


def listed(root, text):
    path = root.parent / "list.txt"
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return listed_images(root, read_list(path, root))


def labels(source, split="train"):
    return [(item.name, item.label) for item in source.splits[split]]


def test_no_folder_is_listed(tmp_path, monkeypatch):
    paths = write_classes(tmp_path / "src", {"a": 3, "b": 2})
    monkeypatch.setattr(os, "scandir", None)
    source = listed(tmp_path / "src", "b/00001.jpg\na/00000.jpg\n\n")
    assert labels(source) == [("a/00000.jpg", 0), ("b/00001.jpg", 1)]
    assert source.splits["train"][1].read() == paths["b"][1].read_bytes()


def test_classes_beside_the_paths(tmp_path):
    write_train_val(tmp_path / "src", {"x": 2}, {"y": 1})
    source = listed(tmp_path / "src", "train/x/00001.jpg\tbee\ntrain/x/00000.jpg\tant\nval/y/00000.jpg\tbee\n")
    assert source.classes == ["ant", "bee"]
    assert labels(source) == [("x/00000.jpg", 0), ("x/00001.jpg", 1)]
    assert labels(source, "val") == [("y/00000.jpg", 1)]
    source = listed(tmp_path / "src", "val/y/00000.jpg\t7\ntrain/x/00001.jpg\t3\r\n")
    assert (source.classes, labels(source), labels(source, "val")) == (
        [],
        [("x/00001.jpg", 3)],
        [("y/00000.jpg", 7)],
    )


def test_absolute_paths_in_the_folder(tmp_path):
    write_classes(tmp_path / "src", {"a": 1})
    source = listed(tmp_path / "src", f"{tmp_path}/src/a/00000.jpg\n")
    assert labels(source) == [("a/00000.jpg", 0)]


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "src").mkdir()
    with open(os.fsencode(tmp_path) + b"/src/\xff.jpg", "wb") as file:
        file.write(b"bytes")
    (item,) = listed(tmp_path / "src", b"\xff.jpg\n").splits["train"]
    assert (item.name, item.read()) == ("\\xff.jpg", b"bytes")


def test_a_path_that_does_not_exist_is_rejected_when_it_is_read(tmp_path):
    write_classes(tmp_path / "src", {"a": 1})
    source = listed(tmp_path / "src", "a/00000.jpg\na/none.jpg\n")
    description = pack(source, tmp_path / "out", PackConfig(workers=1), on_progress=lambda count: None)
    assert description["splits"]["train"]["samples"] == 1
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "a/none.jpg" in rejected
    assert "No such file or directory" in rejected


def test_classes_and_paths_with_spaces_stay_whole(tmp_path):
    write_classes(tmp_path / "src", {"my cats": 2})
    lines = "my cats/00000.jpg\ttiger shark\r\n\n my cats/00001.jpg \t tiger, a cat\t\n"
    source = listed(tmp_path / "src", b"\xef\xbb\xbf" + lines.encode())
    assert source.classes == ["tiger shark", "tiger, a cat"]
    assert labels(source) == [("my cats/00000.jpg", 0), ("my cats/00001.jpg", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/00000.jpg 0\na/00001.jpg 0\n", r"line 1: write a tab between 'a/00000.jpg' and '0'"),
        ("a/00000.jpg,my cat\n", r"line 1: write a tab between 'a/00000.jpg' and 'my cat'"),
        ("path\tlabel\na/00000.jpg\tcat\n", r"line 1: 'path' is not in .*heading, remove"),
        ("image\na/00000.jpg\n", r"line 1: 'image' is not in .*heading, remove"),
        ("a/00000.jpg\tcat\t0\n", r"line 1 has 3 columns; keep the path and the class"),
        ("a/00000.jpg".encode("utf-16"), r"line 1 has a NUL character \(UTF-16\?\)"),
    ],
)
def test_lists_in_other_formats_are_refused(tmp_path, text, message):
    """They would make no image readable, or classes of what is none."""
    write_classes(tmp_path / "src", {"a": 2})
    with pytest.raises(DataError, match=message) as error:
        listed(tmp_path / "src", text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n../b.jpg\n", r"line 2: '../b.jpg'"),
        ("/etc/passwd\n", r"line 1: '/etc/passwd'"),
        ("a.jpg\nb.jpg\tant\n", "line 2: some lines have a class"),
        ("a.jpg\n./a.jpg\n", "line 2: 'a.jpg' is listed twice"),
        ("\n\n", "list.txt is empty"),
        ("x" * 100_000, "over 65,536 bytes"),
        ("a\0b\n", "line 1 has a NUL"),
    ],
    ids=["above", "elsewhere", "mixed", "twice", "empty", "long", "zero"],
)
def test_invalid_lists_are_refused(tmp_path, text, message):
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match=message) as error:
        listed(tmp_path / "src", text)
    assert "\n" not in str(error.value)


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="list.txt.*No such file"):
        read_list(tmp_path / "list.txt", tmp_path)
