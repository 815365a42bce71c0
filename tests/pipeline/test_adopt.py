"""Adopted shards: unchanged, indexed exactly, indexed again only after changes, verified."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from helpers.archives import pictures, tar_bytes, write_shard, write_shards
from helpers.damage import flip
from helpers.images import encoded, write_flat

from mimcl.pipeline.adopt import adopt
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.label_files.class_list import read_class_list
from mimcl.pipeline.store import ShardStore
from mimcl.pipeline.verify import verify

COUNTS = {"img-train-{000}.tar": 5, "img-train-{001}.tar": 4, "img-val.tar": 2}


def adopted(folder, classes=None, **more):
    return adopt(folder, sorted(folder.glob("*.tar")), classes, on_progress=lambda count: None, **more)


def state(folder) -> dict[str, tuple[int, int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.fixture
def shards(tmp_path):
    return tmp_path / "wds", write_shards(tmp_path / "wds", COUNTS)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_image_is_indexed_in_place(shards, workers):
    folder, samples = shards
    before = state(folder)
    description, notes = adopted(folder, workers=workers)
    after = state(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"dataset.json", "train.arrow", "val.arrow", "rejected.jsonl"}
    assert notes == []
    for split, expected in (("train", samples[:9]), ("val", samples[9:])):
        index = ShardIndex.load(folder, split)
        assert index.keys() == [sample["__key__"] for sample in expected]
        assert index.label.tolist() == [sample["cls"] for sample in expected]
        assert index.classes == ["0", "1", "2"]
        store = ShardStore(index)
        read = store.read(np.arange(index.samples))
        assert [bytes(data) for data in read] == [sample["jpg"] for sample in expected]
        assert set(index.width.tolist()) == {24}
    for part in description["splits"].values():
        for shard in part["shards"]:
            assert shard["xxh128"] == xxhash.xxh128_hexdigest((folder / shard["name"]).read_bytes())
    assert description["packed"]["adopted"] is True
    assert read_dataset(folder) == description
    assert verify(folder, True, 2, lambda count: None) == []


def test_shards_are_adopted_again_only_if_they_changed(shards):
    folder, _ = shards
    first, _ = adopted(folder)
    before = state(folder)
    again, notes = adopted(folder)
    (note,) = notes
    assert again == first
    assert note.startswith("already adopted")
    assert state(folder) == before
    write_shard(folder / "img-val.tar", [{"__key__": "new", "jpg": pictures(1)[0], "cls": 1}])
    with pytest.raises(DataError, match=f"{folder}.*changed.*--overwrite"):
        adopted(folder)
    assert {name: known for name, known in state(folder).items() if name != "img-val.tar"} == {
        name: known for name, known in before.items() if name != "img-val.tar"
    }
    adopted(folder, overwrite=True)
    assert ShardIndex.load(folder, "val").keys() == ["new"]
    (folder / "img-val.tar").unlink()
    adopted(folder, overwrite=True)
    assert list(read_dataset(folder)["splits"]) == ["train"]
    assert not (folder / "val.arrow").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: flip(path, 300)])
def test_a_damaged_index_needs_overwrite(shards, damage):
    folder, _ = shards
    first, _ = adopted(folder)
    damage(folder / "val.arrow")
    with pytest.raises(DataError, match=r"val.arrow is damaged or missing.*--overwrite"):
        adopted(folder)
    assert adopted(folder, overwrite=True)[0] == first
    assert ShardIndex.load(folder, "val").samples == first["splits"]["val"]["samples"]


def test_the_class_list_names_the_numbers(shards, tmp_path):
    folder, samples = shards
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    adopted(folder, read_class_list(tmp_path / "classes.txt"))
    index = ShardIndex.load(folder)
    assert index.classes == ["ant", "bee", "cat", "dog"]
    assert index.label.tolist() == [sample["cls"] for sample in samples[:9]]
    with pytest.raises(DataError, match="options have changed"):
        adopted(folder)


def test_classes_without_train_images_are_noted(tmp_path):
    write_shard(tmp_path / "train.tar", [{"__key__": "a", "jpg": pictures(1)[0], "cls": "tiger"}])
    write_shard(tmp_path / "val.tar", [{"__key__": "b", "jpg": pictures(1)[0], "cls": "tiger shark"}])
    _, notes = adopted(tmp_path)
    assert notes == ["classes without train images: tiger shark (1 of 1 in val)"]


def test_unusable_samples_are_listed(tmp_path):
    one, two = pictures(2)
    members = {
        "1.jpg": one,
        "1.cls": b"0",
        "2.jpg": two[:-40],
        "3.txt": b"words",
        "4.png": b"rubbish",
        "5.jpg": b"",
        "1.webp": encoded("webp"),
        "6.png": encoded("png"),
        "6.json": b"{",
        "k" * 2000 + ".jpg": one,
        "7.jpeg": encoded("png"),  # a PNG by its content
    }
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    adopted(tmp_path)
    assert ShardIndex.load(tmp_path).keys() == ["1", "7"]
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    reasons = {row["path"][:8]: row["reason"] for row in rejected}
    assert reasons == {
        "x.tar/2.": "truncated: the jpg data end before the image does",
        "x.tar/3.": "no image in the sample: after the first dot its names have txt, not jpg, jpeg, png, webp",
        "x.tar/4.": "not a JPEG, PNG or WebP image",
        "x.tar/5.": "empty file",
        "x.tar/1.": "its key '1' occurs twice in this shard",
        "x.tar/6.": "cannot read its label from 6.json",
        "x.tar/kk": "its key is longer than 1,000 bytes",
    }
    assert verify(tmp_path, False, 1, lambda count: None) == []


def test_a_read_only_folder_is_refused_before_shards_are_read(shards, monkeypatch):
    folder, _ = shards
    before, counts = state(folder), []
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write to read-only folders
    with pytest.raises(DataError, match=f"{folder} is not writable"):
        adopt(folder, sorted(folder.glob("*.tar")), on_progress=counts.append)
    assert (counts, state(folder)) == ([], before)


def test_keys_in_several_shards_are_noted(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [{"__key__": f"{n}", "jpg": image} for n, image in enumerate(pictures(3))])
    _, (unlabelled, note) = adopted(tmp_path)
    assert unlabelled == "without a label: 6 images"
    assert note.startswith("train: 3 keys")
    assert ShardIndex.load(tmp_path).keys() == ["0", "1", "2"] * 2


def test_joined_shards_are_adopted_completely(tmp_path):
    """Though webdataset itself reads only the first of the tars."""
    samples = write_shards(tmp_path, {"a.tar": 3, "b.tar": 2})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    (tmp_path / "b.tar").unlink()
    _, (note,) = adopted(tmp_path)
    assert note == (
        f"{tmp_path}/a.tar: several tars joined; all are read, as tar -i does (other programs read only the first)"
    )
    index = ShardIndex.load(tmp_path)
    assert index.keys() == [sample["__key__"] for sample in samples]
    assert [bytes(data) for data in ShardStore(index).read(np.arange(5))] == [sample["jpg"] for sample in samples]
    assert verify(tmp_path, True, 1, lambda count: None) == []


def test_hard_links_are_adopted_as_the_files_that_they_link_to(tmp_path):
    """They are in the order of the images' bytes, as an index must be."""
    one, two = pictures(2)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content, target in (
            ("1.jpg", one, ""),
            ("1.cls", b"0", ""),
            ("2.jpg", two, ""),
            ("2.cls", b"1", ""),
            ("3.jpg", b"", "1.jpg"),
            ("3.cls", b"", "2.cls"),
            ("4.jpg", b"", "3.jpg"),
            ("5.jpg", b"", "6.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if target:
                info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info, io.BytesIO(content))
    description, _ = adopted(tmp_path)
    index = ShardIndex.load(tmp_path)
    read = [bytes(data) for data in ShardStore(index).read(np.arange(4))]
    assert list(zip(index.keys(), index.label.tolist(), read, strict=True)) == [
        ("1", 0, one),
        ("3", 1, one),
        ("4", -1, one),
        ("2", 1, two),
    ]
    (rejected,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected) == {"split": "train", "path": "x.tar/5.jpg", "reason": "a broken hard link, not a file"}
    (shard,) = description["splits"]["train"]["shards"]
    assert shard["xxh128"] == xxhash.xxh128_hexdigest((tmp_path / "x.tar").read_bytes())
    assert verify(tmp_path, True, 1, lambda count: None) == []


def test_verify_finds_damage_in_adopted_shards(shards):
    folder, _ = shards
    adopted(folder)
    index = ShardIndex.load(folder)
    flip(folder / "img-train-{000}.tar", int(index.offset[2]) + 100)
    assert verify(folder, False, 2, lambda count: None) == [
        "img-train-{000}.tar: checksum does not match dataset.json",
        "img-train-{000}.tar: sample 'part/img-train-{000}_picture_0002': its bytes do not match the index",
    ]
    os.truncate(folder / "img-val.tar", 2000)
    (finding,) = verify(folder, False, 2, lambda count: None)[2:]
    assert finding.startswith("img-val.tar: has 2,000 bytes")


def packed_by_us(folder):
    write_flat(folder.parent / "src", 2)
    pack(image_folder(folder.parent / "src"), folder, PackConfig(workers=1), on_progress=lambda count: None)


def foreign(folder):
    write_shards(folder, {"a.tar": 1})
    (folder / "dataset.json").write_text('{"name": "laion"}')


def stopped(folder):
    write_shards(folder, {"a.tar": 1})
    (folder / "train.arrow").write_bytes(b"half")


def cut(folder):
    write_shards(folder, {"a.tar": 3, "b.tar": 3})
    os.truncate(folder / "b.tar", 3000)


def val_alone(folder):
    write_shards(folder, {"x-val.tar": 1})


def no_images(folder):
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_bytes({"1.txt": b"words"}))


def strange_name(folder):
    write_shards(folder, {"a\n.tar": 1})


def compressed(folder):
    write_shards(folder, {"a.tar": 1, "b.tar.gz": 1})


def rubbish_after_the_end(folder):
    write_shards(folder, {"a.tar": 1})
    (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes() + b"rubbish" * 200)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (packed_by_us, "packed by mimcl.*--data"),
        (foreign, "dataset.json was not written by mimcl"),
        (stopped, "train.arrow but no dataset.json.*--overwrite"),
        (cut, "b.tar is truncated within"),
        (val_alone, "no shards of train"),
        (no_images, "no sample of train.*a.tar/1.txt: no image"),
        (strange_name, "shard name .*rename"),
        (compressed, "b.tar.gz is compressed.*decompress"),
        (rubbish_after_the_end, "a.tar ends before byte .* not a tar"),
    ],
)
def test_invalid_folders_are_refused(tmp_path, make, message):
    make(tmp_path / "wds")
    before = state(tmp_path / "wds")
    with pytest.raises(DataError, match=message) as error:
        adopt(tmp_path / "wds", sorted((tmp_path / "wds").glob("*.tar*")), on_progress=lambda count: None)
    assert "\n" not in str(error.value)
    assert state(tmp_path / "wds") == before
    assert not [path for path in (tmp_path / "wds").iterdir() if path.is_dir()]


def test_missing_shards_and_shards_in_other_folders_are_refused(shards, tmp_path):
    folder, _ = shards
    for path, message in ((folder / "none.tar", "none.tar not found"), (tmp_path / "other.tar", "in one folder")):
        if path.parent == tmp_path:
            write_shards(tmp_path, {"other.tar": 1})
        with pytest.raises(DataError, match=message):
            adopt(folder, [*sorted(folder.glob("*.tar")), path], on_progress=lambda count: None)


@pytest.mark.parametrize("name", ["../x.tar", "/tmp/x.tar", ".x.tar", "a/b.tar", "x", "a\nb.tar", 7])
def test_shard_names_in_the_description_must_not_be_paths(shards, name):
    folder, _ = shards
    adopted(folder)
    description = json.loads((folder / "dataset.json").read_text())
    description["splits"]["train"]["shards"][0]["name"] = name
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="cannot be read") as error:
        read_dataset(folder)
    assert "\n" not in str(error.value)
