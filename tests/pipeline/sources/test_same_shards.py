"""The same images in a folder, a tar, a zip or a list give the same shards, byte for byte."""

import os
import subprocess
import tarfile
import zipfile

import pytest
from helpers.archives import list_of, raw_zip, tar_of, zip_of
from helpers.images import encoded, write_train_val

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.archives.tars import tar_images
from mimcl.pipeline.sources.archives.zips import zip_images
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.listed import listed_images, read_list


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


ODD_NAMES = (
    "cafe\u0301/1.jpg",  # é in NFD, as macOS writes it
    "caf\u00e9/1.jpg",  # in NFC
    "日本/1.jpg",
    "sp ace/1 2.jpg",
    "lat\udce9/\udcff.jpg",  # bytes that are not UTF-8
    "back\\slash/1\\2.jpg",
    "z/1.jpg",
)


@pytest.fixture(scope="module")
def oddly_named(tmp_path_factory):
    """Names that tools encode differently, a hard link and symbolic links."""
    root = tmp_path_factory.mktemp("odd")
    for number, name in enumerate(ODD_NAMES):
        (root / "src" / name).parent.mkdir(parents=True)
        (root / "src" / name).write_bytes(encoded("baseline", number))
    os.link(root / "src" / ODD_NAMES[2], root / "src" / "z" / "hard.jpg")
    (root / "src" / "z" / "soft.jpg").symlink_to(f"../{ODD_NAMES[4]}")
    (root / "src" / "z" / "chain.jpg").symlink_to("soft.jpg")
    source = image_folder(root / "src")
    return root / "src", source, packed(source, root / "out")


def tar_in(form):
    def make(src, path):
        with tarfile.open(path, "w", format=form) as tar:
            tar.add(src, ".")
        return tar_images(path)

    return make


def tars_joined(src, path):
    with open(path, "wb") as file:
        for folder in sorted(src.iterdir()):
            subprocess.run(["tar", "-C", src, "-c", folder.name], stdout=file, check=True)
    return tar_images(path)


def zip_from_unix(src, path):
    """As Info-ZIP writes it under any locale: names are bytes, and links are followed unless it gets -y."""
    files = [file for file in src.rglob("*") if file.is_file()]
    return zip_images(raw_zip(path, {os.fsencode(file.relative_to(src)): file.read_bytes() for file in files}))


def zip_with_links(src, path):
    files = {os.fsencode(file.relative_to(src)): file for file in src.rglob("*") if not file.is_dir()}
    modes = {name: file.lstat().st_mode for name, file in files.items()}
    read = {
        name: os.fsencode(os.readlink(file)) if file.is_symlink() else file.read_bytes() for name, file in files.items()
    }
    return zip_images(raw_zip(path, read, modes=modes))


def list_from_find(src, path):
    files = (file for file in src.rglob("*") if file.is_file())
    path.write_bytes(b"".join(os.fsencode(file.relative_to(src)) + b"\n" for file in files))
    return listed_images(src, read_list(path, src))


@pytest.mark.parametrize(
    "make",
    [
        tar_in(tarfile.PAX_FORMAT),
        tar_in(tarfile.GNU_FORMAT),
        tar_in(tarfile.USTAR_FORMAT),
        tars_joined,
        zip_from_unix,
        zip_with_links,
        list_from_find,
    ],
    ids=["pax", "gnu", "ustar", "joined", "zip", "zip-with-links", "list"],
)
def test_same_shards_of_odd_names(oddly_named, tmp_path, make):
    src, source, expected = oddly_named
    found = make(src, tmp_path / "x")
    assert found.classes == source.classes
    assert found.digest() == source.digest()
    assert packed(found, tmp_path / "out") == expected
    assert source.num_items == len(ODD_NAMES) + 3
