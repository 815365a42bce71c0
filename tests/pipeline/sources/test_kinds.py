"""The kind of a source by its files; two kinds in one folder are refused."""

import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.archives import pictures, tar_of, write_parquet, write_shards, zip_of
from helpers.images import write_classes, write_flat

from mimcl.pipeline.files import DataError
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import FolderTree, image_folder
from mimcl.pipeline.sources.kinds import file_kind, folder_kind


def kind_of(folder):
    return folder_kind(FolderTree(folder))


def write_metadata(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"file_name": ["00000.jpg"], "label": [1]}), path)


def test_files(tmp_path):
    write_flat(tmp_path / "flat", 2)
    assert file_kind(tar_of(tmp_path / "flat", tmp_path / "x.tar")) == "tar"
    assert file_kind(zip_of(tmp_path / "flat", tmp_path / "x.zip")) == "zip"
    assert file_kind(write_parquet(tmp_path / "x.parquet", pictures(1))) == "parquet"
    zipped = (tmp_path / "x.zip").read_bytes()
    for number, before in enumerate((b"#!/bin/sh\n", b"MZ\0\0", b"PK00", b"PK\7\10")):
        (tmp_path / f"{number}.ZIP").write_bytes(before + zipped)
        assert file_kind(tmp_path / f"{number}.ZIP") == "zip"
    with tarfile.open(tmp_path / "x.bin", "w:gz") as tar:  # refused later, by its content
        tar.add(tmp_path / "flat", ".")
    assert file_kind(tmp_path / "x.bin") == "tar"


def test_folders(tmp_path):
    write_classes(tmp_path / "classes", {"a": 1, "b": 2})
    write_flat(tmp_path / "flat", 2)
    write_parquet(tmp_path / "hub" / "data" / "train-0.parquet", pictures(1))
    write_shards(tmp_path / "wds" / "train", {"0.tar": 1})
    write_classes(tmp_path / "tars", {"v1.tar": 1, "v2.parquet": 1})  # folders of these names
    found = {name: kind_of(tmp_path / name) for name in ("classes", "flat", "hub", "wds", "tars")}
    assert found == {"classes": "folder", "flat": "folder", "hub": "parquet", "wds": "webdataset", "tars": "folder"}


def test_archives_beside_train_do_not_count(tmp_path):
    write_classes(tmp_path / "train", {"a": 1})
    write_shards(tmp_path, {"train.tar": 1})
    write_parquet(tmp_path / "val.parquet", pictures(1))
    assert kind_of(tmp_path) == "folder"


def test_files_in_junk_do_not_count(tmp_path):
    write_classes(tmp_path, {"a": 1})
    write_shards(tmp_path / "@eaDir", {"0.tar": 1})
    write_parquet(tmp_path / ".cache" / "0.parquet", pictures(1))
    assert kind_of(tmp_path) == "folder"


@pytest.mark.parametrize("place", ["", "a/", "a/deep/er/deepest/"])
@pytest.mark.parametrize(
    ("other", "kinds"),
    [("backup.tar", ("folder", "webdataset")), ("0.parquet", ("folder", "parquet"))],
)
def test_two_kinds_are_refused_wherever_the_files_are(tmp_path, place, other, kinds):
    write_classes(tmp_path, {f"c{number:03d}": 1 for number in range(30)} | {"a": 2})
    if other == "backup.tar":
        write_shards(tmp_path / place, {other: 2})
    else:
        write_parquet(tmp_path / place / other, pictures(2))
    with pytest.raises(DataError) as error:
        kind_of(tmp_path)
    message = str(error.value)
    assert f"{place}{other}" in message
    assert all(f"--source-kind {kind}" in message for kind in kinds)
    assert "\n" not in message


def test_shards_beside_parquet_are_refused(tmp_path):
    write_shards(tmp_path, {"0.tar": 1})
    write_parquet(tmp_path / "0.parquet", pictures(1))
    with pytest.raises(DataError, match=r"parquet \(0.parquet\) and shards \(0.tar\)"):
        kind_of(tmp_path)


@pytest.mark.parametrize("name", ["metadata.parquet", "train/metadata.parquet"])
def test_parquet_without_images_beside_images_does_not_count(tmp_path, name):
    write_classes(tmp_path / "train", {"a": 1})
    write_metadata(tmp_path / name)
    assert kind_of(tmp_path) == "folder"


def test_pictures_of_prototype_sets_do_not_count_in_a_packed_data_set(tmp_path):
    write_classes(tmp_path / "src", {"a": 2})
    pack(image_folder(tmp_path / "src"), tmp_path / "out", PackConfig(workers=1), on_progress=lambda count: None)
    write_flat(tmp_path / "out" / "prototypes" / "default", 1)
    assert kind_of(tmp_path / "out") == "webdataset"


@pytest.mark.parametrize("name", ["train.zip", "a/x.tar.gz", "b.tgz"])
def test_archives_without_images_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="only archives"):
        kind_of(tmp_path)
