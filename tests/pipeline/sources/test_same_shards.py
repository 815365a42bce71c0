"""The same images in a folder, a tar, a zip or a list give the same shards, byte for byte."""

import zipfile

import pytest
from helpers.archives import list_of, tar_of, zip_of
from helpers.images import write_train_val

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.listed import listed_images, read_list
from mimcl.pipeline.sources.tars import tar_images
from mimcl.pipeline.sources.zips import zip_images


def packed(source, out) -> dict[str, bytes]:
    pack(source, out, PackConfig(workers=1), on_progress=lambda count: None)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "dataset.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("same")
    write_train_val(root / "src", {"zebra": 3, "ant bee": 2, "empty": 0}, {"cat": 1, "zebra": 2})
    (root / "src" / "train" / "zebra" / "broken.jpg").write_bytes(b"no image")
    (root / "src" / "train" / "beside.txt").write_bytes(b"beside the classes")
    source = image_folder(root / "src")
    return root / "src", source, packed(source, root / "out")


def opened(kind, src, tmp_path):
    if kind == "tar":
        return tar_images(tar_of(src, tmp_path / "x.tar"))
    if kind == "list":
        return listed_images(src, read_list(list_of(src, tmp_path / "list.txt"), src))
    return zip_images(zip_of(src, tmp_path / "x.zip", getattr(zipfile, kind)))


@pytest.mark.parametrize("kind", ["tar", "ZIP_STORED", "ZIP_DEFLATED", "list"])
def test_same_shards(folder, tmp_path, kind):
    src, source, expected = folder
    if kind == "list":  # a list has no folders without images
        write_train_val(tmp_path / "src", {"zebra": 3, "ant bee": 2}, {"cat": 1, "zebra": 2})
        src = tmp_path / "src"
        source = image_folder(src)
        expected = packed(source, tmp_path / "folder")
    found = opened(kind, src, tmp_path)
    assert found.classes == source.classes
    assert found.notes == source.notes
    assert found.digest() == source.digest()
    assert packed(found, tmp_path / "out") == expected
    assert set(expected) >= {"train-000000.tar", "train.arrow", "val.arrow", "rejected.jsonl"}
