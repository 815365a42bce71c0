"""Names in zips: decoded as unzip writes them, and every guess is named in a note."""

import struct
import sys
import zlib

import pytest
from helpers.archives import raw_zip

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.zips import zip_images

UNIX, DARWIN, FAT, NTFS = 3, 19, 0, 10


def opened(tmp_path, *names: bytes, **options):
    return zip_images(raw_zip(tmp_path / "x.zip", {name: name for name in names}, **options))


def names(source) -> list[str]:
    return [item.name for item in source.splits["train"]]


def guesses(source) -> list[str]:
    return [note for note in source.notes if note.startswith("x.zip: ")]


@pytest.mark.parametrize("system", [UNIX, DARWIN])
@pytest.mark.parametrize("name", ["é/1.jpg", "e\u0301/1.jpg", "日本/1.jpg", "sp ace/1.jpg", "плюс/1.jpg", "😀.jpg"])
def test_names_from_unix_are_utf8_without_the_flag(tmp_path, system, name):
    """As Info-ZIP writes them under a UTF-8 locale."""
    source = opened(tmp_path, name.encode(), system=system)
    assert (names(source), guesses(source)) == ([name], [])


def test_the_order_of_classes_is_that_of_the_names_in_utf8(tmp_path):
    source = opened(tmp_path, "é/1.jpg".encode(), b"z/1.jpg", "日本/1.jpg".encode())
    assert source.classes == ["z", "é", "日本"]


@pytest.mark.parametrize("raw", [b"lat\xe9/1.jpg", "日本/1.jpg".encode("shift-jis"), "日本/1.jpg".encode("gbk")])
def test_names_from_unix_in_other_encodings_keep_their_bytes(tmp_path, raw):
    assert names(opened(tmp_path, raw)) == [raw.decode("utf-8", "backslashreplace")]


@pytest.mark.parametrize("system", [FAT, NTFS])
@pytest.mark.parametrize("raw", [b"\x82/1.jpg", "é/1.jpg".encode()])
def test_other_names_are_cp437_with_a_note(tmp_path, system, raw):
    source = opened(tmp_path, raw, b"a/1.jpg", system=system)
    assert names(source) == ["a/1.jpg", raw.decode("cp437")]
    (note,) = guesses(source)
    assert note.startswith(f"x.zip: 1 names are read as cp437, such as {raw.decode('cp437')}; ")


@pytest.mark.parametrize("system", [UNIX, FAT])
def test_the_flag_says_utf8(tmp_path, system):
    source = opened(tmp_path, "é.jpg".encode(), "日本.jpg".encode(), system=system, flags=0x800)
    assert (names(source), guesses(source)) == (["é.jpg", "日本.jpg"], [])


def test_a_name_that_is_not_utf8_as_the_flag_says_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x.zip has a name that is not UTF-8 as it says \(b'\\xe9.jpg'\)"):
        opened(tmp_path, b"\xe9.jpg", flags=0x800)


def unicode_path(unicode: bytes, crc: int | None = None, version: int = 1):
    def extra(name: bytes) -> bytes:
        field = struct.pack("<BI", version, zlib.crc32(name) if crc is None else crc) + unicode
        return struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(field)) + field

    return extra


@pytest.mark.parametrize("system", [UNIX, FAT])
def test_the_unicode_path_field_takes_precedence(tmp_path, system):
    source = opened(tmp_path, b"a_\x82.jpg", system=system, extra=unicode_path("日本/é.jpg".encode()))
    assert (names(source), guesses(source)) == (["日本/é.jpg"], [])


@pytest.mark.parametrize(
    "extra",
    [
        unicode_path("é.jpg".encode(), crc=7),  # renamed since
        unicode_path("é.jpg".encode(), version=2),
        unicode_path(b""),
    ],
)
def test_an_invalid_unicode_path_field_is_ignored(tmp_path, extra):
    assert names(opened(tmp_path, b"old.jpg", extra=extra)) == ["old.jpg"]


def test_a_unicode_path_field_that_is_not_utf8(tmp_path):
    """It is ignored, until Python 3.12, whose zipfile refuses such a zip."""
    extra = unicode_path(b"\xff\xfe")
    if sys.version_info < (3, 12):
        assert names(opened(tmp_path, b"old.jpg", extra=extra)) == ["old.jpg"]
    else:
        with pytest.raises(DataError, match="x.zip is not a readable zip .*unicode path"):
            opened(tmp_path, b"old.jpg", extra=extra)


@pytest.mark.parametrize("system", [UNIX, FAT])
def test_backslashes_are_separators_in_a_zip_without_slashes(tmp_path, system):
    source = opened(tmp_path, b"train\\cat\\1.jpg", b"train\\dog\\1.jpg", b"train\\empty\\", system=system)
    assert (names(source), source.classes) == (["cat/1.jpg", "dog/1.jpg"], ["cat", "dog", "empty"])
    assert "x.zip: backslashes are separators in 3 members, such as train\\cat\\1.jpg" in source.notes


def test_backslashes_from_windows_are_separators_beside_slashes(tmp_path):
    source = opened(tmp_path, b"cat/1.jpg", b"dog\\1.jpg", b"dog/", system=FAT)
    assert (names(source), source.classes) == (["cat/1.jpg", "dog/1.jpg"], ["cat", "dog"])
    assert "x.zip: backslashes are separators in 1 members, such as dog\\1.jpg" in source.notes


def test_backslashes_from_unix_beside_slashes_are_parts_of_names(tmp_path):
    source = opened(tmp_path, b"cat/1.jpg", b"dog/1\\2.jpg")
    assert (names(source), source.classes) == (["cat/1.jpg", "dog/1\\2.jpg"], ["cat", "dog"])
    assert "x.zip: backslashes are parts of names in 1 members, such as dog/1\\2.jpg" in source.notes


@pytest.mark.parametrize("name", [b"..\\..\\out.jpg", b"\\root.jpg", b"a\\..\\..\\b.jpg"])
def test_backslashes_do_not_lead_out_of_the_archive(tmp_path, name):
    source = opened(tmp_path, b"a\\1.jpg", name, system=FAT)
    assert names(source) == ["a/1.jpg"]
    assert any("1 names that point outside the archive" in note for note in source.notes)
