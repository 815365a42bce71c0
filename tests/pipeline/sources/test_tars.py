"""Tars and tars of tars as a source: offsets, names, what is skipped, what is refused."""

import gzip
import io
import os
import pickle
import tarfile
import time

import pytest
from helpers.archives import pictures, tar_bytes, tar_of
from helpers.images import encoded, write_classes, write_flat, write_train_val

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.tar_headers import TarReader
from mimcl.pipeline.sources.tars import tar_images


def names(source, split="train"):
    return [item.name for item in source.splits[split]]


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


def test_headers_are_read_as_tarfile_reads_them(tmp_path):
    write_train_val(tmp_path / "src", {"a": 12, "b" * 101: 3}, {"a": 2})
    path = tar_of(tmp_path / "src", tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]
    found = [
        (member.name, member.offset, member.nbytes) for member in TarReader(path).members() if member.kind == "file"
    ]
    assert found == expected


def test_links_and_devices_are_skipped(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (
            ("a/link.jpg", tarfile.SYMTYPE),
            ("a/hard.jpg", tarfile.LNKTYPE),
            ("a/dev", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("a/1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
    (tmp_path / "x.tar").write_bytes(file.getvalue())
    source = tar_images(tmp_path / "x.tar")
    assert names(source) == ["a/1.jpg"]
    assert "x.tar: 3 links" in source.notes[-1]


def test_sparse_files_are_skipped_completely(tmp_path):
    with open(tmp_path / "holes.bin", "wb") as file:
        for place in range(30):
            file.seek(place * 200_000)
            file.write(b"x" * 700)
    write_flat(tmp_path / "src", 2)
    os.rename(tmp_path / "holes.bin", tmp_path / "src" / "00000.bin")
    for kind in ("gnu", "posix"):
        path = tmp_path / f"{kind}.tar"
        assert os.system(f"tar --sparse --format={kind} -C {tmp_path}/src -cf {path} .") == 0
        source = tar_images(path)
        assert names(source) == ["00000.jpg", "00001.jpg"]
        assert source.splits["train"][1].read() == (tmp_path / "src" / "00001.jpg").read_bytes()
        assert f"{kind}.tar: 1 links, devices and sparse files" in source.notes[0]


def test_the_last_of_several_members_with_one_name_counts(tmp_path):
    both = io.BytesIO(tar_bytes({"1.jpg": b"old"}))
    with tarfile.open(fileobj=both, mode="a") as tar:
        info = tarfile.TarInfo("./1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    (tmp_path / "x.tar").write_bytes(both.getvalue())
    (item,) = tar_images(tmp_path / "x.tar").splits["train"]
    assert item.read() == b"new"


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
    assert "everything is in flowers/, removed from the names" in source.notes
    (tmp_path / "x.tar").write_bytes(tar_bytes({"rose/1.jpg": b"1", "rose/red/2.jpg": b"2"}))
    assert names(tar_images(tmp_path / "x.tar")) == ["rose/1.jpg", "rose/red/2.jpg"]


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


def test_listing_is_quick(tmp_path):
    """A million members take less than a minute, far less than reading them."""
    image = encoded("baseline", 1, 24, 16)
    (tmp_path / "x.tar").write_bytes(tar_bytes({f"c{n % 10}/{n}.jpg": image for n in range(4000)}))
    started = time.process_time()
    assert sum(1 for _ in TarReader(tmp_path / "x.tar").members()) == 4000
    assert (time.process_time() - started) / 4000 < 60e-6
