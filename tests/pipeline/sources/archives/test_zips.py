"""Zips as a source: members are read in place and checked; unreadable ones are rejected with a reason."""

import pickle
import zipfile

import pytest
from helpers.archives import pictures, raw_zip, zip_of
from helpers.images import write_flat

from mimcl.pipeline.files import DataError
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.archives.zips import zip_images


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


def test_links_are_followed_and_macos_metadata_are_skipped(tmp_path):
    members = {
        b"a/1.jpg": b"1",
        b"b/link.jpg": b"../a/1.jpg",
        b"a/out.jpg": b"/etc/passwd",
        b"__MACOSX/a/._1.jpg": b"x",
    }
    modes = dict.fromkeys((b"b/link.jpg", b"a/out.jpg"), 0o120777)
    source = zip_images(raw_zip(tmp_path / "x.zip", members, modes=modes))
    assert [(item.name, item.read()) for item in source.splits["train"]] == [("a/1.jpg", b"1"), ("b/link.jpg", b"1")]
    assert source.classes == ["a", "b"]
    junk, links = source.notes
    assert junk.endswith(": __MACOSX/")
    assert links == "skipped in x.zip: 1 unresolved symbolic link"


@pytest.mark.parametrize("cut", [10, 300, -3])
def test_a_truncated_zip_is_refused(tmp_path, cut):
    write_flat(tmp_path / "src", 3)
    path = zip_of(tmp_path / "src", tmp_path / "x.zip")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="x.zip is not a readable zip") as error:
        zip_images(path)
    assert "\n" not in str(error.value)


def test_a_part_of_a_split_zip_is_refused(tmp_path):
    path = raw_zip(tmp_path / "x.zip", {b"1.jpg": b"1"})
    content = bytearray(path.read_bytes())
    put(content, content.rindex(b"PK\x05\x06") + 4, 2, 2)
    path.write_bytes(content)
    with pytest.raises(DataError, match="x.zip is the last of 3 parts of a zip; join them with `zip -s 0 x.zip"):
        zip_images(path)


def test_the_first_part_of_a_split_zip_is_refused(tmp_path):
    path = raw_zip(tmp_path / "x.zip", {b"1.jpg": b"1"})
    (tmp_path / "x.z01").write_bytes(b"PK\x07\x08" + path.read_bytes()[:-30])
    with pytest.raises(DataError, match="x.z01 is the first of several parts of a zip; join them with `zip -s 0 x.zip"):
        zip_images(tmp_path / "x.z01")


@pytest.mark.parametrize("comment", [b"", b"with a comment"])
def test_joined_zips_are_refused(tmp_path, comment):
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as opened:
            opened.writestr(f"{name}/1.jpg", name)
            opened.comment = comment
    first = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(first + (tmp_path / "b.zip").read_bytes())
    with pytest.raises(DataError, match=f"x.zip is several zips joined .*byte {len(first):,}"):
        zip_images(tmp_path / "x.zip")


def test_a_zip64(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened, opened.open("1.jpg", "w", force_zip64=True) as member:
        member.write(b"one")
    assert [item.read() for item in zip_images(tmp_path / "x.zip").splits["train"]] == [b"one"]


def test_the_last_of_several_members_with_one_name_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("1.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate name"):
            opened.writestr("1.jpg", b"new")
    source = zip_images(tmp_path / "x.zip")
    assert [item.read() for item in source.splits["train"]] == [b"new"]
    assert source.notes == ["x.zip has 1 name more than once, such as 1.jpg; the last one is used, as in unpacking"]
