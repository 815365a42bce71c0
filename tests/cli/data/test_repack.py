"""`mimcl repack`: the same bytes and distances in another order, read by other readers; bad input is refused."""

import json
import os
import shutil

import numpy as np
import pytest
import webdataset
import xxhash
from helpers.damage import flip
from helpers.full_disk import limit_file_size
from helpers.images import write_train_val
from helpers.typed import error_line, mimcl
from nvidia.dali import fn, pipeline_def

from mimcl.cli.data.repack import repack
from mimcl.cli.inspect.inspect import inspect
from mimcl.curriculum.banded_order import band_order
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.augment import hash64
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.index import ShardIndex

TRAIN = {"ant": 90, "bee": 70}
SET = ("--prototypes", "pixels")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with shards/, which has the prototype set pixels, and far/, the images repacked."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", TRAIN, {"ant": 5, "bee": 4})
    build = ("prototypes", "build", "--features", "pixels", "--k", "5", "--name", "pixels", "--decoder", "reference")
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images", "--shard-mb", "1") == 0
        assert mimcl(patch, folder, *build) == 0
        assert mimcl(patch, folder, "repack", "shards", *SET, "--out", "far", "--shard-mb", "1") == 0
    return folder


@pytest.fixture
def sets(home):
    return [
        (
            index := ShardIndex.load(home / name),
            PrototypeSet.load(home / name / "prototypes" / "pixels", index.fingerprint),
        )
        for name in ("shards", "far")
    ]


def test_each_image_keeps_bytes_path_label_cluster_and_distance(sets):
    (old, was), (new, now) = sets
    order = band_order(was.distance, 256, 0, hash64)
    assert new.samples == old.samples == sum(TRAIN.values())
    for column in ("xxh64", "nbytes", "label", "width", "height"):
        np.testing.assert_array_equal(getattr(new, column), getattr(old, column)[order])
    for column in ("cluster", "raw_distance", "distance"):
        np.testing.assert_array_equal(getattr(now, column), getattr(was, column)[order])
    assert [new.path(row) for row in range(new.samples)] == [old.path(row) for row in order]
    assert new.classes == old.classes == ["ant", "bee"]
    np.testing.assert_array_equal(now.centroids, was.centroids)
    bands = np.array_split(now.distance, [64, 128])
    assert bands[0].max() <= bands[1].min() <= bands[1].max() <= bands[2].min()


def test_the_prototype_set_records_its_origin(home, sets):
    (old, was), (new, now) = sets
    assert now.info == was.info | {
        "index_fingerprint": new.fingerprint,
        "origin": {"index_fingerprint": old.fingerprint, "name": "pixels"},
    }
    folders = [home / name / "prototypes" / "pixels" / "gallery.png" for name in ("shards", "far")]
    assert folders[0].read_bytes() == folders[1].read_bytes()
    assert read_dataset(home / "far")["packed"]["json"] is True
    lines = dict(inspect(home / "far" / "prototypes" / "pixels").lines())
    assert f"set pixels of index {old.fingerprint}" in lines["origin"]
    assert "origin" not in dict(inspect(home / "shards" / "prototypes" / "pixels").lines())


def test_webdataset_reads_the_distances(home, sets):
    _, (new, now) = sets
    shards = [str(home / "far" / shard["name"]) for shard in new.shards]
    read = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == new.keys()
    for row, sample in enumerate(read):
        (image,) = (content for name, content in sample.items() if name in ("jpg", "png", "webp"))
        assert xxhash.xxh64_intdigest(image) == new.xxh64[row]
        fields = json.loads(sample["json"])
        assert fields == {"prototype": now.cluster[row], "distance": now.distance[row], "label": new.label[row]}
        assert sample["cls"] == b"%d" % new.label[row]


def test_dali_reads_images_and_distances(home, sets):
    _, (new, now) = sets
    tars = [str(home / "far" / shard["name"]) for shard in new.shards]

    @pipeline_def(batch_size=new.samples, num_threads=1, device_id=None)
    def reading():
        files = {"paths": tars, "index_paths": [tar.replace(".tar", ".idx") for tar in tars]}
        return tuple(fn.readers.webdataset(**files, ext=["jpg;png;webp", "json"], missing_component_behavior="error"))

    images, texts = reading().run()
    assert [len(np.array(image)) for image in images] == new.nbytes.tolist()
    found = [json.loads(np.array(text).tobytes()) for text in texts]
    assert [one["distance"] for one in found] == now.distance.tolist()
    assert [one["prototype"] for one in found] == now.cluster.tolist()


def test_val_keeps_its_order_and_has_no_distances(home):
    old, new = (ShardIndex.load(home / name, "val") for name in ("shards", "far"))
    assert old.fingerprint == new.fingerprint
    (shard,) = new.shards
    read = list(webdataset.WebDataset(str(home / "far" / shard["name"]), shardshuffle=False))
    assert len(read) == 9
    assert all("json" not in sample for sample in read)


def test_repacking_again_changes_nothing_and_restores_a_missing_set(home, tmp_path, monkeypatch):
    for name in ("shards", "far"):
        shutil.copytree(home / name, tmp_path / name)
    before = {path: path.read_bytes() for path in (tmp_path / "far").rglob("*.*") if path.is_file()}
    shutil.rmtree(tmp_path / "far" / "prototypes")  # killed before it was written
    monkeypatch.setattr("mimcl.pipeline.cores.usable_cores", lambda: 3.0)
    stamp = (home / "shards" / "dataset.json").stat()
    os.utime(tmp_path / "shards" / "dataset.json", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert mimcl(monkeypatch, tmp_path, "repack", "shards", *SET, "--out", "far", "--shard-mb", "1") == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "far").rglob("*.*") if path.is_file()}


def test_after_a_full_disk_the_same_command_writes_the_set(home, tmp_path, monkeypatch, capfd):
    for name in ("shards", "far"):
        shutil.copytree(home / name, tmp_path / name)
    shutil.rmtree(tmp_path / "far" / "prototypes")
    words = ("repack", "shards", *SET, "--out", "far", "--shard-mb", "1")
    with limit_file_size(1000):
        assert mimcl(monkeypatch, tmp_path, *words) == 1
    line = error_line(capfd.readouterr().err)
    assert line.startswith("mimcl: far/prototypes cannot be written (")
    assert "File too large" in line
    assert os.listdir(tmp_path / "far" / "prototypes") == []
    assert mimcl(monkeypatch, tmp_path, *words) == 0
    PrototypeSet.load(tmp_path / "far" / "prototypes" / "pixels", ShardIndex.load(tmp_path / "far").fingerprint)


def corrupt(home):
    index = ShardIndex.load(home / "shards")
    flip(home / "shards" / index.shards[index.shard[3]]["name"], int(index.offset[3] + index.nbytes[3] // 2))


def without_shard(home):
    (home / "shards" / "train-000000.tar").unlink()


def other_index(home):
    path = home / "shards" / "prototypes" / "pixels" / "prototypes.json"
    path.write_text(path.read_text().replace(ShardIndex.load(home / "shards").fingerprint, "0f"))


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (None, ("shards", "--out", "new"), "shards/prototypes/default"),
        (None, ("shards", *SET, "--out", "shards"), "give another --out"),
        (None, ("shards", *SET, "--out", "shards/new"), "give another --out"),
        (None, ("shards", "--prototypes", "../x", "--out", "new"), "no prototypes in ../x"),
        (None, ("nowhere", *SET, "--out", "new"), "is not a packed data set"),
        (None, ("s3://bucket/shards", *SET, "--out", "new"), "s3:/bucket/shards is not a local folder"),
        (None, ("shards", *SET, "--out", "s3://bucket/new"), "s3:/bucket/new is not a local folder"),
        (other_index, ("shards", *SET, "--out", "new"), "was made for index 0f"),
        (
            lambda home: (home / "shards" / "train-000000.tar").unlink(),
            ("shards", *SET, "--out", "new"),
            "train-000000.tar not found",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(home, tmp_path, monkeypatch, capfd, damage, words, message):
    shutil.copytree(home / "shards", tmp_path / "shards")
    if damage:
        damage(tmp_path)
    capfd.readouterr()
    assert mimcl(monkeypatch, tmp_path, "repack", *words) in (1, 2)
    line = error_line(capfd.readouterr().err)
    assert message in line
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "s3:").exists()
    assert not (tmp_path / "shards" / "new").exists()


def test_images_that_do_not_match_the_index_are_rejected(home, tmp_path):
    shutil.copytree(home / "shards", tmp_path / "shards")
    corrupt(tmp_path)
    with pytest.raises(Exception, match="1 images of .*rejected.jsonl"):
        repack(tmp_path / "shards", tmp_path / "new", "pixels")
    (line,) = (tmp_path / "new" / "rejected.jsonl").read_text().splitlines()
    assert "checksum mismatch" in json.loads(line)["reason"]
    assert not (tmp_path / "new" / "prototypes").exists()
