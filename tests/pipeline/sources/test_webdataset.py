"""Shards of a webdataset as a source: keys, labels, splits, what is skipped."""

import io
import json
import tarfile

import pytest
from helpers.archives import pictures, tar_bytes, write_shard, write_shards
from webdataset.tariterators import base_plus_ext

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.tars import tar_images
from mimcl.pipeline.sources.webdataset import sample_key, webdataset_images


def test_every_sample_with_its_label(tmp_path):
    samples = write_shards(tmp_path, {"set-train-000.tar": 4, "set-train-001.tar": 3, "set-validation-000.tar": 2})
    source = webdataset_images(sorted(tmp_path.glob("*.tar")))
    items = source.splits["train"] + source.splits["val"]
    assert {split: len(found) for split, found in source.splits.items()} == {"train": 7, "val": 2}
    assert [item.read() for item in items] == [sample["jpg"] for sample in samples]
    assert [item.label for item in items] == [sample["cls"] for sample in samples]
    assert items[0].name == "set-train-000.tar/part/set-train-000_picture_0000.jpg"
    assert source.modified == max(path.stat().st_mtime_ns for path in tmp_path.glob("*.tar"))


def test_keys_are_those_of_webdataset():
    names = ["a/b.c/d.seg.png", "./0001.jpg", "._0001.jpg", "./._0001.jpg", "a.b/._0001.jpg", "a.b/README", "x"]
    assert [sample_key(name) for name in names] == [base_plus_ext(name)[0] for name in names]


def test_members_without_a_key_do_not_separate_an_image_from_its_label(tmp_path):
    members = {}
    for number, image in enumerate(pictures(2)):
        for name, content in ((f"{number}.cls", b"%d" % (number + 3)), (f"{number}.jpg", image)):
            members |= {f"./._{name}": b"\0\5\x16\7", f"./{name}": content}  # as tar packs on macOS
    (tmp_path / "x.tar").write_bytes(tar_bytes(members | {"README": b"words"}))
    source = webdataset_images([tmp_path / "x.tar"])
    assert [(item.read(), item.label) for item in source.splits["train"]] == [
        (image, number + 3) for number, image in enumerate(pictures(2))
    ]
    assert source.notes == []


def test_labels_in_json(tmp_path):
    images = pictures(3)
    labels = [{"label": "zebra"}, {"label": "ant", "more": [1]}, {"other": 1}]
    samples = [
        {"__key__": f"{number}", "jpg": image, "json": label}
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    path = write_shard(tmp_path / "x.tar", samples)
    source = webdataset_images([path])
    assert source.classes == ["ant", "zebra"]
    assert [item.label for item in source.splits["train"]] == [1, 0, -1]
    source = webdataset_images([path], "other")
    assert [item.label for item in source.splits["train"]] == [-1, -1, 1]


def test_classes_of_several_words_stay_whole(tmp_path):
    classes = [b"tiger shark\n", b"tiger", b" tench, Tinca tinca \r\n"]
    members = {f"{n}.{end}": data for n, name in enumerate(classes) for end, data in (("jpg", b"1"), ("cls", name))}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    source = webdataset_images([tmp_path / "x.tar"])
    names = [source.classes[item.label] for item in source.splits["train"]]
    assert names == ["tiger shark", "tiger", "tench, Tinca tinca"]


def test_a_given_label_key_takes_precedence_over_cls(tmp_path):
    samples = [
        {"__key__": str(number), "jpg": image, "cls": number, "json": {"label": 7, "animal": animal}}
        for number, (image, animal) in enumerate(zip(pictures(2), ("zebra", "ant"), strict=True))
    ]
    path = write_shard(tmp_path / "x.tar", samples)
    assert [item.label for item in webdataset_images([path]).splits["train"]] == [0, 1]
    source = webdataset_images([path], "animal")
    assert (source.classes, [item.label for item in source.splits["train"]]) == (["ant", "zebra"], [1, 0])


def test_a_tar_is_read_as_a_shard_if_a_label_key_is_given(tmp_path):
    samples = [{"__key__": str(n), "jpg": image, "json": {"animal": "ant"}} for n, image in enumerate(pictures(2))]
    path = write_shard(tmp_path / "x.tar", samples)
    source = tar_images(path, "animal")
    assert (source.classes, [item.label for item in source.splits["train"]]) == (["ant"], [0, 0])


@pytest.mark.parametrize(("label", "classes"), [(b"ant", ["ant"]), (b"0", [])])
def test_an_empty_label_is_no_label(tmp_path, label, classes):
    members = {f"{n}.{end}": content for n in range(3) for end, content in (("jpg", b"1"), ("cls", label))}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members | {"1.cls": b"\n", "2.cls": b""}))
    source = webdataset_images([tmp_path / "x.tar"])
    assert (source.classes, [item.label for item in source.splits["train"]]) == (classes, [0, -1, -1])
    (note,) = source.notes
    assert "2 images" in note


def test_every_extension_of_an_image_in_any_case(tmp_path):
    endings = ["jpg", "JPEG", "png", "webp"]
    (tmp_path / "x.tar").write_bytes(tar_bytes({f"{n}.{end}": b"%d" % n for n, end in enumerate(endings)}))
    assert [item.read() for item in webdataset_images([tmp_path / "x.tar"]).splits["train"]] == [b"0", b"1", b"2", b"3"]


def test_unusable_samples_are_skipped_with_a_note(tmp_path):
    members = {"1.jpg": b"1", "1.cls": b"0", "2.txt": b"words", "3.jpg": b"3", "3.json": b"{", "4.seg.png": b"mask"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members | {"5.jpg": b""}))
    source = webdataset_images([tmp_path / "x.tar"])
    assert [item.read() for item in source.splits["train"]] == [b"1"]
    (note,) = source.notes
    assert "4 samples" in note
    assert "x.tar/2.txt: no image" in note


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"1", "1.cls": b"0", "2.jpg": b"2", "2.cls": b"ant"}, "some labels are numbers and some are names"),
        ({"1.jpg": b"1", "1.cls": b"99999999999"}, "label 99999999999 is too large"),
        ({"1.txt": b"1"}, "no samples with images"),
    ],
)
def test_invalid_shards_are_refused(tmp_path, members, message):
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=message) as error:
        webdataset_images([tmp_path / "x.tar"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [b"9" * 5000, json.dumps([1]).encode(), b"\xff\xfe", b"[" * 100_000])
def test_hostile_labels_are_skipped(tmp_path, label):
    members = {"1.jpg": b"1", "1.cls": b"0", "2.jpg": b"2", "2.json": b'{"label": ' + label + b"}"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    assert len(webdataset_images([tmp_path / "x.tar"]).splits["train"]) == 1


@pytest.mark.parametrize(
    ("names", "extensions"),
    [
        (["img_0.image.jpg"], "image.jpg"),
        (["img_0.cls", "img_0.IMAGE.JPG", "img_0.json"], "cls, image.jpg, json"),
        (["v1.0/img_0.seg.png"], "seg.png"),
        ([f"img_0.{number}" for number in range(9)], "0, 1, 2, 3, 4"),
    ],
)
def test_extensions_are_named_as_they_were_read(tmp_path, names, extensions):
    (tmp_path / "x.tar").write_bytes(tar_bytes(dict.fromkeys(names, b"1") | {"other.jpg": b"2"}))
    note = webdataset_images([tmp_path / "x.tar"]).notes[0]
    assert note == (
        f"skipped: 1 samples, for example x.tar/{names[0]}: no image in the sample: after the first dot its names have "
        f"{extensions}, not jpg, jpeg, png, webp"
    )


def test_joined_shards_are_read_completely_with_a_note(tmp_path):
    samples = write_shards(tmp_path, {"a.tar": 2, "b.tar": 3, "c.tar": 1})
    joined = b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "abc")
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(joined)
    source = webdataset_images([tmp_path / f"{name}.tar" for name in "abc"])
    assert [item.read() for item in source.splits["train"]] == [sample["jpg"] for sample in samples] * 3
    (note,) = source.notes
    assert note.startswith(f"{tmp_path}/a.tar and 2 more tars: several tars joined; all are read")


def test_links_are_the_files_or_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind, target in (
            ("1.jpg", tarfile.REGTYPE, ""),
            ("2.jpg", tarfile.LNKTYPE, "1.jpg"),
            ("3.jpg", tarfile.SYMTYPE, "1.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 0 if target else 5
            tar.addfile(info, None if target else io.BytesIO(b"image"))
    source = webdataset_images([tmp_path / "x.tar"])
    assert {item.name: item.read() for item in source.splits["train"]} == {
        "x.tar/1.jpg": b"image",
        "x.tar/2.jpg": b"image",
    }
    assert source.notes[0] == "skipped: 1 samples, for example x.tar/3.jpg: a symbolic link, not a file"


def test_a_missing_shard_is_refused(tmp_path):
    write_shards(tmp_path, {"a.tar": 1})
    with pytest.raises(DataError, match=r"b.tar not found"):
        webdataset_images([tmp_path / "a.tar", tmp_path / "b.tar"])
