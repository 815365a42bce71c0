"""Splits without files, and splits whose files are not images."""

import tarfile
from pathlib import Path

import pytest
from helpers.images import write_flat

from mimcl.pipeline.files import DataError
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.archives.tars import tar_images
from mimcl.pipeline.sources.folder import image_folder

VAL = "val has no files (2 in train); fill it, or remove val/"
TRAIN = "train has no files (2 in val); fill it"


def refused(source, out: Path) -> str:
    with pytest.raises(DataError) as error:
        pack(source, out, PackConfig(), on_progress=id)
    assert not out.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("images", "empty", "message"),
    [
        ("train", ["val"], VAL),
        ("train/cat", ["val"], VAL),
        ("train/cat", ["val/cat", "val/dog"], VAL),
        ("val/cat", ["train"], TRAIN),
        ("val/cat", ["train/cat", "train/dog"], TRAIN),
    ],
)
def test_a_split_without_files_is_named(tmp_path, images, empty, message):
    source = tmp_path / "source"
    for name in empty:
        (source / name).mkdir(parents=True)
    write_flat(source / images, 2)
    found = refused(image_folder(source), tmp_path / "out")
    with tarfile.open(tmp_path / "source.tar", "w") as tar:
        tar.add(source, "")
    assert refused(tar_images(tmp_path / "source.tar"), tmp_path / "out") == found
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("bad", "advice"), [("val", "add images, or remove val/ from the source"), ("train", "add images")]
)
@pytest.mark.parametrize("folder", ["", "cat"])
def test_a_split_without_images_is_named_with_an_example(tmp_path, bad, advice, folder):
    good = "train" if bad == "val" else "val"
    write_flat(tmp_path / "source" / good / folder, 2)
    (tmp_path / "source" / bad / folder).mkdir(parents=True)
    (tmp_path / "source" / bad / folder / "text.jpg").write_text("no image")
    found = refused(image_folder(tmp_path / "source"), tmp_path / "out")
    name = f"{folder}/text.jpg".removeprefix("/")
    assert found == (
        f"none of the 1 files of {bad} is a usable image, for example {name}: not a JPEG, PNG or WebP image; {advice}"
    )
