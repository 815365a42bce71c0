"""Finding shards in folders and lists: compressed ones are refused, never ignored."""

import pytest
from helpers.archives import write_shards

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.listed import read_list
from mimcl.pipeline.sources.shard_files import find_shards, is_compressed_tar, is_tar
from mimcl.pipeline.sources.webdataset import webdataset_images

COMPRESSED = (
    "tar.gz",
    "tgz",
    "tar.zst",
    "tzst",
    "tar.xz",
    "txz",
    "tar.bz2",
    "tbz2",
    "tbz",
    "tar.lz4",
    "TAR.GZ",
    "tar.Z",
)


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "wds", {"x.tar": 1})
    return tmp_path / "wds"


@pytest.mark.parametrize("ending", COMPRESSED)
def test_compressed_shards_in_a_folder_are_refused(folder, ending):
    (folder / "sub").mkdir()
    (folder / "sub" / f"y.{ending}").write_bytes(b"")
    with pytest.raises(DataError, match=rf"compressed shards \(sub/y.{ending}\).*decompress them"):
        find_shards(folder)


@pytest.mark.parametrize("ending", COMPRESSED)
def test_compressed_shards_in_a_list_are_refused(folder, tmp_path, ending):
    (folder / f"y.{ending}").write_bytes(b"")
    (tmp_path / "list.txt").write_text(f"x.tar\ny.{ending}\n")
    listing = read_list(tmp_path / "list.txt", folder)
    assert listing.lists_shards
    with pytest.raises(DataError, match=f"y.{ending} is compressed.*decompress it"):
        webdataset_images([folder / name for name in listing.labels])


@pytest.mark.parametrize(
    "name", ["x.tar.gz", "x.tgz", "x.TAR.GZ", "test-000.tar.gz", "test/y.tgz", ".y.tar.gz", "y.gz"]
)
def test_other_files_do_not_matter(folder, name):
    """What was decompressed already, the test split, hidden files, what is not a tar."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    assert find_shards(folder) == [folder / "x.tar"]


def test_shards_are_found_in_any_case_and_sorted(folder):
    write_shards(folder, {"Y.TAR": 1, "a.tar": 1})
    write_shards(folder / "a", {"z.tar": 1})
    found = [path.relative_to(folder).as_posix() for path in find_shards(folder)]
    assert found == ["Y.TAR", "a/z.tar", "a.tar", "x.tar"]


@pytest.mark.parametrize("beside", ["original.tar", "raw/all.tar", "val-0.tar"])
def test_shards_in_folders_of_splits_and_beside_them_are_refused(tmp_path, beside):
    """They would be packed twice if the folders were unpacked from the others."""
    for name in ("train/0.tar", "val/0.tar", "test/0.tar", "test.tar"):
        write_shards((tmp_path / name).parent, {name.rpartition("/")[2]: 1})
    assert len(find_shards(tmp_path)) == 4
    write_shards((tmp_path / beside).parent, {beside.rpartition("/")[2]: 1})
    with pytest.raises(DataError, match=rf"shards in train/ and beside it \({beside}\); move .*--list"):
        find_shards(tmp_path)


@pytest.mark.parametrize("name", ["x.tar.idx", "tar", "x.tar/1.jpg", "x.gz", "x_tar", "x.tar.part"])
def test_other_names_are_no_tars(name):
    assert not is_tar(name)
    assert not is_compressed_tar(name)
