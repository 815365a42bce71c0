"""Tars and tars of tars as a source: offsets, names, what is skipped, what is refused."""

import gzip
import io
import os
import pickle
import tarfile

import pytest
from helpers.archives import pictures, tar_bytes, tar_of
from helpers.images import write_classes, write_flat

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.tars import tar_images
from mimcl.pipeline.sources.folder import image_folder


def names(source, split="train"):
    return [item.name for item in source.splits[split]]


def contents(source, split="train"):
    return {item.name: item.read() for item in source.splits[split]}


def test_flat_tar(tmp_path):
    paths = write_flat(tmp_path / "src", 3)
    source = tar_images(tar_of(tmp_path / "src", tmp_path / "x.tar"))
    assert names(source) == [path.name for path in paths]
    assert [item.label for item in source.splits["train"]] == [-1] * 3
    for item, path in zip(source.splits["train"], paths, strict=True):
        assert pickle.loads(pickle.dumps(item)).read() == path.read_bytes()  # items are read in another process
        assert item.nbytes == path.stat().st_size
    assert source.modified == (tmp_path / "x.tar").stat().st_mtime_ns


def test_a_tar_of_tars_as_imagenet_is_distributed(tmp_path):
    paths = write_classes(tmp_path / "src", {"n02": 2, "n01": 3})
    inner = {f"{name}.tar": tar_bytes({path.name: path.read_bytes() for path in paths[name]}) for name in paths}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    source = tar_images(tmp_path / "ILSVRC2012_img_train.tar")
    assert source.classes == ["n01", "n02"]
    expected = [(name, path) for name in source.classes for path in paths[name]]
    assert names(source) == [f"{name}/{path.name}" for name, path in expected]
    for item, (name, path) in zip(source.splits["train"], expected, strict=True):
        assert item.read() == path.read_bytes()
        assert source.classes[item.label] == name


@pytest.mark.parametrize("around", ["", "./", "imagenet/"])
def test_a_tar_of_tars_with_both_splits(tmp_path, around):
    inner = {
        f"{around}{split}/{name}.tar": tar_bytes({f"{split}.jpg": name.encode()})
        for split, name in (("val", "n01"), ("train", "n01"), ("train", "n02"))
    }
    (tmp_path / "x.tar").write_bytes(tar_bytes(inner))
    source = tar_images(tmp_path / "x.tar")
    assert source.classes == ["n01", "n02"]
    assert names(source) == ["n01/train.jpg", "n02/train.jpg"]
    assert names(source, "val") == ["n01/val.jpg"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, kind):
    long = "class/" + "d" * 90 + "/" + "e" * 90 + ".jpg"
    others = {} if kind == tarfile.USTAR_FORMAT else {"class/" + "x" * 300 + ".jpg": b"2", "class/größe.jpg": b"33"}
    members = {long: b"1", **others, "class/short.jpg": b"4444"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members, format=kind))
    source = tar_images(tmp_path / "x.tar")
    assert {item.name: item.read() for item in source.splits["train"]} == members


def test_sparse_files_are_skipped_completely(tmp_path):
    with open(tmp_path / "holes.bin", "wb") as file:
        for place in range(30):
            file.seek(place * 200_000)
            file.write(b"x" * 700)
    write_flat(tmp_path / "src", 2)
    os.rename(tmp_path / "holes.bin", tmp_path / "src" / "00000.bin")
    os.link(tmp_path / "src" / "00000.bin", tmp_path / "src" / "hard.bin")
    for kind in ("gnu", "posix"):
        path = tmp_path / f"{kind}.tar"
        assert os.system(f"tar --sparse --sort=name --format={kind} -C {tmp_path}/src -cf {path} .") == 0
        source = tar_images(path)
        assert names(source) == ["00000.jpg", "00001.jpg"]
        assert source.splits["train"][1].read() == (tmp_path / "src" / "00001.jpg").read_bytes()
        assert source.notes == [f"skipped in {kind}.tar: 2 sparse files"]


def test_absolute_names_are_refused_with_the_reason(tmp_path):
    write_flat(tmp_path / "src", 2)
    assert os.system(f"tar -cPf {tmp_path}/x.tar {tmp_path}/src") == 0
    with pytest.raises(DataError) as error:
        tar_images(tmp_path / "x.tar")
    assert str(error.value) == (
        f"{tmp_path}/x.tar has no images; skipped in x.tar: 3 names that point outside the archive, such as "
        f"{tmp_path}/src/; make it inside the folder, with relative names (tar without -P)"
    )


def test_the_last_of_several_members_with_one_name_counts(tmp_path):
    both = io.BytesIO(tar_bytes({"1.jpg": b"old"}))
    with tarfile.open(fileobj=both, mode="a") as tar:
        info = tarfile.TarInfo("./1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    (tmp_path / "x.tar").write_bytes(both.getvalue())
    source = tar_images(tmp_path / "x.tar")
    assert contents(source) == {"1.jpg": b"new"}
    assert source.notes == ["x.tar has 1 name more than once, such as 1.jpg; the last one is used, as in unpacking"]


def test_a_folder_around_train_is_removed_from_the_names(tmp_path):
    members = {"imagenet/train/a/1.jpg": b"1", "imagenet/train/b/3.jpg": b"3", "imagenet/val/b/2.jpg": b"2"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    source = tar_images(tmp_path / "x.tar")
    assert (names(source), names(source, "val")) == (["a/1.jpg", "b/3.jpg"], ["b/2.jpg"])
    assert source.classes == ["a", "b"]
    assert "imagenet/" in source.notes[0]


def test_a_folder_around_class_folders_is_removed_from_the_names(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:  # tar -cf x.tar flowers
        write_classes(tmp_path / "flowers", {"rose": 1, "tulip": 2, "none": 0})
        (tmp_path / "flowers/none").mkdir(exist_ok=True)
        (tmp_path / "flowers/LICENSE.txt").write_text("words")
        tar.add(tmp_path / "flowers", "flowers")
    source, folder = tar_images(tmp_path / "x.tar"), image_folder(tmp_path / "flowers")
    assert source.classes == folder.classes == ["none", "rose", "tulip"]
    assert [(item.name, item.label) for item in source.splits["train"]] == [
        (item.name, item.label) for item in folder.splits["train"]
    ]
    assert "all files are in flowers/, which is removed from their names" in source.notes
    (tmp_path / "x.tar").write_bytes(tar_bytes({"rose/1.jpg": b"1", "rose/red/2.jpg": b"2"}))
    assert names(tar_images(tmp_path / "x.tar")) == ["rose/1.jpg", "rose/red/2.jpg"]


INNER = tar_bytes({"1.jpg": b"1"})


def test_other_files_beside_inner_tars_are_named(tmp_path):
    beside = {"._n01.tar": b"rubbish of macOS", "README.txt": b"words"}
    (tmp_path / "x.tar").write_bytes(tar_bytes({"n01.tar": INNER, "n02.TAR": INNER} | beside))
    source = tar_images(tmp_path / "x.tar")
    assert (source.classes, names(source)) == (["n01", "n02"], ["n01/1.jpg", "n02/1.jpg"])
    assert source.notes == ["skipped in x.tar beside its tars: 2 members, such as ._n01.tar"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"n01.tar": INNER, "a/1.jpg": b"1"}, r"x.tar has images \(a/1.jpg\) beside tars \(n01.tar\)"),
        ({"n01.tar": INNER, "n02.tar.gz": b"2"}, r"x.tar has compressed tars \(n02.tar.gz\)"),
        ({"a.tar": tar_bytes({"1.jpg": b"1", "1.cls": b"0"}), "b.tar": INNER}, r"shards of a webdataset \(a/1.cls\)"),
        ({"n01.tgz": b"1", "n02.tgz": b"2"}, r"x.tar has compressed tars \(n01.tgz\)"),
        ({"n01.tar": gzip.compress(INNER)}, r"x.tar: n01.tar is compressed \(gzip\)"),
        ({"n01.tar": b"\x04\x22\x4d\x18" + bytes(600)}, r"x.tar: n01.tar is compressed \(lz4\)"),
    ],
)
def test_a_mixture_of_tars_and_others_is_refused(tmp_path, members, message):
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=message) as error:
        tar_images(tmp_path / "x.tar")
    assert "\n" not in str(error.value)


def test_members_with_labels_are_a_webdataset(tmp_path):
    one, two = pictures(2)
    (tmp_path / "x.tar").write_bytes(tar_bytes({"1.jpg": one, "1.cls": b"1", "2.jpg": two, "2.cls": b"0"}))
    source = tar_images(tmp_path / "x.tar")
    assert [(item.name, item.label, item.read()) for item in source.splits["train"]] == [
        ("x.tar/1.jpg", 1, one),
        ("x.tar/2.jpg", 0, two),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(tar_bytes({"1.jpg": b"1"})), r"is compressed \(gzip\).*decompress it"),
        (b"no tar at all" * 100, "is not a tar"),
        (tar_bytes({"1.jpg": b"1" * 5000})[:3000], "x.tar is truncated within its member '1.jpg'"),
        (tar_bytes({"1.jpg": b"1", "2.jpg": b"2"})[:1100], "truncated within a header"),
        (tar_bytes({"1.jpg": b"1"})[:1024] + b"rubbish" * 400, "is damaged at byte 1,024"),
        (tar_bytes({"a.tar": b"rubbish" * 300}), "a.tar is not a tar"),
        (
            tar_bytes({"a.tar": tar_bytes({"1.jpg": b"1" * 9000})[:4096]}),
            "a.tar is truncated within .*'1.jpg'",
        ),
        (tar_bytes({}), "no images"),
        (b"", "no images"),
    ],
    ids=["gzip", "text", "cut", "cut-header", "damaged", "inner-rubbish", "inner-cut", "empty", "nothing"],
)
def test_invalid_tars_are_refused(tmp_path, content, message):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        tar_images(tmp_path / "x.tar")
    assert "\n" not in str(error.value)


def test_a_missing_tar_is_refused(tmp_path):
    with pytest.raises(DataError, match="x.tar.*No such file"):
        tar_images(tmp_path / "x.tar")


STRAY = {"cat/1.jpg": b"1", "dog/2.jpg": b"2", "notes.cls": b"0"}
PARTLY = {"a/1.jpg": b"1", "a/1.cls": b"0", "a/2.jpg": b"2"}


@pytest.mark.parametrize(("members", "count"), [(STRAY, "2 of 2"), (PARTLY, "1 of 2")])
def test_a_few_labels_among_folders_are_refused(tmp_path, members, count):
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=rf"none for {count} images.*--source-kind webdataset, or tar") as error:
        tar_images(tmp_path / "x.tar")
    assert "\n" not in str(error.value)


def test_a_tar_read_as_unpacked_has_class_folders_whatever_else_is_in_it(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes(STRAY))
    source = tar_images(tmp_path / "x.tar", unpacked=True)
    assert (source.classes, names(source)) == (["cat", "dog"], ["cat/1.jpg", "dog/2.jpg"])
    (tmp_path / "x.tar").write_bytes(tar_bytes({"cat/1.jpg": b"1", "cat/1.cls": b"7"}))
    assert tar_images(tmp_path / "x.tar", unpacked=True).classes == ["cat"]
    assert [item.label for item in tar_images(tmp_path / "x.tar").splits["train"]] == [7]


def test_a_flat_tar_with_labels_for_some_images_is_a_webdataset(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes({"1.jpg": b"1", "1.cls": b"3", "2.jpg": b"2"}))
    assert [item.label for item in tar_images(tmp_path / "x.tar").splits["train"]] == [3, -1]
