"""Image folders as a source: layouts, labels, links, names."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers.images import write_classes, write_flat, write_train_val

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources import item as items
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.splits import find_files


def names(source, split="train"):
    return [item.name for item in source.splits[split]]


def labels(source, split="train"):
    return [item.label for item in source.splits[split]]


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_class_folders(tmp_path):
    write_classes(tmp_path, {"zebra": 2, "ant": 1, "Bee": 3})
    source = image_folder(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.classes == ["Bee", "ant", "zebra"]
    assert labels(source) == [0, 0, 0, 1, 2, 2]
    assert names(source)[2:5] == ["Bee/00002.jpg", "ant/00000.jpg", "zebra/00000.jpg"]
    for item in source.splits["train"]:
        assert item.read() == (tmp_path / item.name).read_bytes()
    assert source.notes == []


def test_flat_folder_has_no_labels(tmp_path):
    paths = write_flat(tmp_path, 4)
    source = image_folder(tmp_path)
    assert source.classes == []
    assert names(source) == [path.name for path in paths]
    assert labels(source) == [-1] * 4


def test_train_alone(tmp_path):
    write_classes(tmp_path / "train", {"b": 1, "a": 2})
    source = image_folder(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.classes == ["a", "b"]
    assert names(source) == ["a/00000.jpg", "a/00001.jpg", "b/00000.jpg"]


def test_classes_are_the_union_of_both_splits(tmp_path):
    write_train_val(tmp_path, {"b": 1, "d": 2}, {"a": 1, "d": 1})
    (tmp_path / "test").mkdir()
    source = image_folder(tmp_path)
    assert list(source.splits) == ["train", "val"]
    assert source.classes == ["a", "b", "d"]
    assert (labels(source), labels(source, "val")) == ([1, 2, 2], [0, 2])
    (note,) = source.notes
    assert note == "skipped: test/, the test split"


def test_a_val_split_without_class_folders_has_no_labels_and_a_note(tmp_path):
    write_classes(tmp_path / "train", {"a": 1})
    write_flat(tmp_path / "val", 2)
    source = image_folder(tmp_path)
    assert labels(source, "val") == [-1, -1]
    assert "val/" in source.notes[0]


def test_nested_folders_belong_to_their_class(tmp_path):
    write_flat(tmp_path / "a" / "deep" / "er", 2)
    write_flat(tmp_path / "a-b", 1)
    write_flat(tmp_path / "a", 1)
    source = image_folder(tmp_path)
    assert source.classes == ["a", "a-b"]
    assert names(source) == ["a/00000.jpg", "a/deep/er/00000.jpg", "a/deep/er/00001.jpg", "a-b/00000.jpg"]
    assert labels(source) == [0, 0, 0, 1]


def test_files_beside_class_folders_are_skipped_and_named(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 0})
    write_flat(tmp_path, 3)
    source = image_folder(tmp_path)
    assert names(source) == ["a/00000.jpg", "a/00001.jpg", "a/00002.jpg"]
    (note,) = source.notes
    assert "train: 00000.jpg, 00001.jpg, 00002.jpg" in note


def test_links_are_followed(tmp_path):
    write_flat(tmp_path / "elsewhere", 2)
    root = tmp_path / "root"
    write_classes(root, {"a": 1})
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "z.jpg").symlink_to(tmp_path / "elsewhere" / "00001.jpg")
    source = image_folder(root)
    assert names(source) == ["a/00000.jpg", "a/z.jpg", "b/00000.jpg", "b/00001.jpg"]
    assert source.splits["train"][1].read() == source.splits["train"][3].read()


def test_link_loops_end(tmp_path):
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "here").symlink_to(".", target_is_directory=True)
    (tmp_path / "a" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "a" / "over").symlink_to("../b", target_is_directory=True)
    (tmp_path / "b" / "over").symlink_to("../a", target_is_directory=True)
    (tmp_path / "b" / "self").symlink_to("self")
    (tmp_path / "itself").symlink_to("itself")
    source = image_folder(tmp_path)
    assert source.classes == ["a", "b"]
    assert names(source) == [
        "a/00000.jpg",
        "a/over/00000.jpg",
        "a/over/self",
        "b/00000.jpg",
        "b/over/00000.jpg",
        "b/self",
    ]


def test_unreadable_files_raise_os_error(tmp_path, monkeypatch):
    write_flat(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would block
    (tmp_path / "nowhere.jpg").symlink_to("missing.jpg")
    source = image_folder(tmp_path)
    assert names(source) == ["00000.jpg", "nowhere.jpg", "pipe.jpg"]
    image, nowhere, pipe = source.splits["train"]
    with pytest.raises(OSError, match="No such file"):
        nowhere.read()
    with pytest.raises(OSError, match="not a regular file"):
        pipe.read()
    monkeypatch.setattr(items, "MAX_BYTES", image.file.stat().st_size - 1)
    with pytest.raises(OSError, match="larger than"):
        image.read()


def test_names_that_are_not_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xff.jpg"), "wb") as file:
        file.write(b"bytes")
    source = image_folder(tmp_path)
    (item,) = source.splits["train"]
    assert item.name == "caf\\xe9/\\xff.jpg"
    assert source.classes == ["caf\\xe9"]
    assert item.read() == b"bytes"


def test_missing_folder_and_file(tmp_path):
    (tmp_path / "file.jpg").write_bytes(b"x")
    for root in (tmp_path / "missing", tmp_path / "file.jpg"):
        with pytest.raises(DataError, match="not a folder") as error:
            image_folder(root)
        assert str(root) in one_line(error)


def test_empty_folders(tmp_path):
    with pytest.raises(DataError, match="no images") as error:
        image_folder(tmp_path)
    one_line(error)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no images.*in: a") as error:
        image_folder(tmp_path)
    one_line(error)


@contextmanager
def without_root():
    """Lose the privilege to list every folder while the block runs; nothing changes for other users."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("place", ["b", "train/b", "a/deep/er", "val"])
def test_a_folder_that_cannot_be_listed_is_named_itself(place):
    with TemporaryDirectory(dir="/tmp") as name:  # whose parents other users may pass
        folder = Path(name)
        folder.chmod(0o755)
        write_classes(folder / "train" if place.startswith(("train", "val")) else folder, {"a": 1, "c": 1})
        write_flat(folder / place, 1)
        (folder / place).chmod(0)
        with without_root(), pytest.raises(DataError) as error:
            image_folder(folder)
        assert one_line(error) == f"{folder / place} cannot be listed: Permission denied"
        with without_root(), pytest.raises(DataError, match=f"{folder / place} cannot be listed: Permission denied"):
            find_files(folder, ".tar")
