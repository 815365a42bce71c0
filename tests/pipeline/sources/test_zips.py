"""Zips as a source: members are read in place and checked; unreadable ones are rejected with a reason."""

import pickle
import zipfile

import pytest
from helpers.archives import pictures, zip_of
from helpers.images import write_flat

from mimcl.pipeline.files import DataError
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.zips import zip_images


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_in_place(tmp_path, method):
    paths = write_flat(tmp_path / "src", 5)
    source = zip_images(zip_of(tmp_path / "src", tmp_path / "x.zip", method))
    for item, path in zip(source.splits["train"], paths, strict=True):
        assert (item.name, item.nbytes) == (path.name, path.stat().st_size)
        assert pickle.loads(pickle.dumps(item)).read() == path.read_bytes()
    assert source.modified == (tmp_path / "x.zip").stat().st_mtime_ns


def test_a_zip_behind_other_bytes(tmp_path):
    """Like a self-extracting archive."""
    paths = write_flat(tmp_path / "src", 2)
    path = zip_of(tmp_path / "src", tmp_path / "x.zip")
    path.write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())
    assert [item.read() for item in zip_images(path).splits["train"]] == [path.read_bytes() for path in paths]


def edited(tmp_path, edit, method=zipfile.ZIP_DEFLATED):
    image = pictures(1)[0] + bytes(5000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as opened:
        opened.writestr("1.jpg", image)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    central = content.rindex(b"PK\x01\x02")
    edit(content, central)
    (tmp_path / "x.zip").write_bytes(content)
    (item,) = zip_images(tmp_path / "x.zip").splits["train"]
    return item


def put(content, place, value, size=4):
    content[place : place + size] = value.to_bytes(size, "little")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content, central: put(content, central + 8, 1, 2), "encrypted"),
        (lambda content, central: put(content, central + 10, 12, 2), "compressed by method 12"),
        (lambda content, central: put(content, central + 16, 7), "checksum mismatch"),
        (lambda content, central: put(content, central + 24, 100), " 100 bytes"),
        (lambda content, central: put(content, central + 24, 6000), " 6,000 bytes"),
        (lambda content, central: put(content, central + 24, 2**32 - 2), "larger than 2 GiB"),
        (lambda content, central: put(content, central + 24, 2**30), "over 100 times"),
        (lambda content, central: put(content, central + 20, 2**30), "truncated"),
        (lambda content, central: put(content, 0, 0), "no member at the offset"),
        (lambda content, central: put(content, 60, 0xFFFFFFFF), "cannot be unpacked|checksum mismatch|does not have"),
    ],
)
def test_wrong_headers_are_detected(tmp_path, edit, message):
    with pytest.raises(OSError, match=message):
        edited(tmp_path, edit).read()


def test_unreadable_members_are_rejected_with_the_reason(tmp_path):
    one, two = pictures(2)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a/1.jpg", one)
        opened.writestr("a/2.jpg", two, zipfile.ZIP_BZIP2)
    source = zip_images(tmp_path / "x.zip")
    description = pack(source, tmp_path / "out", PackConfig(workers=1), on_progress=lambda count: None)
    assert description["splits"]["train"]["samples"] == 1
    assert "unreadable: compressed by method 12" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_links_and_macos_metadata_are_skipped(tmp_path):
    link = zipfile.ZipInfo("a/link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("a/1.jpg", b"1")
        opened.writestr(link, b"/etc/passwd")
        opened.writestr("__MACOSX/a/._1.jpg", b"rubbish")
    source = zip_images(tmp_path / "x.zip")
    assert [item.name for item in source.splits["train"]] == ["a/1.jpg"]
    assert source.classes == ["a"]
    _, junk, links = source.notes
    assert junk.endswith(": __MACOSX/")
    assert "x.zip: 1 links" in links


@pytest.mark.parametrize("cut", [10, 300, -3])
def test_a_truncated_zip_is_refused(tmp_path, cut):
    write_flat(tmp_path / "src", 3)
    path = zip_of(tmp_path / "src", tmp_path / "x.zip")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="x.zip is not a readable zip") as error:
        zip_images(path)
    assert "\n" not in str(error.value)
