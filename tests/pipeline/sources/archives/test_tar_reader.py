"""Listing the members of tars: every format that tar programs write, joined tars, ends, damage."""

import subprocess
import tarfile
import time

import pytest
from helpers.archives import tar_bytes, tar_of
from helpers.images import encoded, write_train_val

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.tar_reader import TarReader, tar_notes

JOINED = "several tars joined; all are read, as tar -i does (other programs read only the first)"
NO_END = "no end-of-archive blocks; check that the tar is complete"


def listed(path, content: bytes) -> tuple[dict[str, bytes], list[str]]:
    """Write a tar; return its files with their contents, and notes with the path shortened."""
    path.write_bytes(content)
    tar = TarReader(path)
    files = {member.name: tar.read(member.offset, member.nbytes) for member in tar.members() if member.kind == "file"}
    return files, [note.replace(str(path), path.name) for note in tar_notes(tar.oddities)]


def header(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, form: int = tarfile.USTAR_FORMAT, **fields
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(form)


def edited(block: bytes, at: int, field: bytes) -> bytes:
    """Replace bytes of a header and make its checksum right."""
    block = block[:at] + field + block[at + len(field) :]
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // 512) * 512, b"\0")


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    lines = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record)
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        lines += str(length).encode() + record
    return header("pax", len(lines), kind) + padded(lines)


END = bytes(1024)
ONE = header("1.jpg", 3) + padded(b"one")


def test_headers_are_read_as_tarfile_reads_them(tmp_path):
    write_train_val(tmp_path / "src", {"a": 12, "b" * 101: 3}, {"a": 2})
    path = tar_of(tmp_path / "src", tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]
    found = [
        (member.name, member.offset, member.nbytes) for member in TarReader(path).members() if member.kind == "file"
    ]
    assert found == expected


@pytest.mark.parametrize(
    "options",
    [
        "--format=v7",
        "--format=oldgnu",
        "--format=gnu",
        "--format=ustar",
        "--format=posix",
        "--format=gnu -V label",
        "--format=posix -V label",
        "--format=gnu --incremental",
        "--format=gnu -g SNAPSHOT",
        "--format=posix -g SNAPSHOT",
        "--format=posix --pax-option=comment=words",
        "--format=posix --pax-option=globexthdr.name=x,comment=words",
        "--format=gnu -b 1",
        "--format=gnu -b 4000",
    ],
)
def test_what_gnu_tar_writes(tmp_path, options):
    """V7 and GNU tars have other fields where ustar has a prefix of the name; labels are not members."""
    expected = {}
    for number, name in enumerate(("src/a/1.jpg", f"src/{'b' * 60}/{'c' * 20}.jpg", "src/日本.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        expected[name] = encoded("baseline", number)
        (tmp_path / name).write_bytes(expected[name])
    arguments = options.replace("SNAPSHOT", str(tmp_path / "snapshot")).split()
    subprocess.run(["tar", "-C", tmp_path, *arguments, "-cf", tmp_path / "x.tar", "src"], check=True)
    assert listed(tmp_path / "x.tar", (tmp_path / "x.tar").read_bytes()) == (expected, [])
    kinds = {member.kind for member in TarReader(tmp_path / "x.tar").members()}
    assert kinds == {"file", "folder"}


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        (edited(header("1.jpg", 3), 124, b"\x80" + (3).to_bytes(11, "big")), "1.jpg"),  # base-256
        (edited(header("1.jpg", 3), 124, b"         3  "), "1.jpg"),
        (edited(header("1.jpg", 3, tarfile.AREGTYPE), 257, bytes(8)), "1.jpg"),  # V7
        (edited(header("1.jpg", 3, tarfile.CONTTYPE), 0, b"2.jpg"), "2.jpg"),
        (edited(header("1.jpg", 3, form=tarfile.GNU_FORMAT), 345, b"14712345670\00014712345670\0"), "1.jpg"),  # times
        (edited(edited(header("1.jpg", 3), 345, b"p" * 131 + b"14712345670\0"), 508, b"tar\0"), "p" * 131 + "/1.jpg"),
        (edited(header("1.jpg", 3), 345, b"p" * 155), "p" * 155 + "/1.jpg"),
        (pax({"size": "3"}) + header("1.jpg", 0), "1.jpg"),
        (pax({"path": "long/é\n.jpg", "mtime": "1.5"}) + header("1.jpg", 3), "long/é\n.jpg"),
        (pax({"path": "", "size": ""}) + header("1.jpg", 3), "1.jpg"),
        (pax({"path": "x/2.jpg"}, tarfile.SOLARIS_XHDTYPE) + header("1.jpg", 3), "x/2.jpg"),
        (pax({"comment": "words"}, tarfile.XGLTYPE) + header("1.jpg", 3), "1.jpg"),
        (pax({"path": "2.jpg"}) + pax({"comment": "words"}, tarfile.XGLTYPE) + header("1.jpg", 3), "2.jpg"),
        (header("label", 0, b"V") + header("1.jpg", 3), "1.jpg"),
        (header("folder/", 7, b"D") + padded(b"Y1.jpg\0") + header("1.jpg", 3), "1.jpg"),
        (header("folder/", 0, tarfile.REGTYPE) + header("1.jpg", 3), "1.jpg"),
    ],
)
def test_other_headers(tmp_path, headers, name):
    assert listed(tmp_path / "x.tar", headers + padded(b"one") + END) == ({name: b"one"}, [])


@pytest.mark.parametrize("name", ["folder/", "a/folder/"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, b"D"])
def test_a_slash_at_the_end_is_a_folder(tmp_path, name, kind):
    (tmp_path / "x.tar").write_bytes(header(name, 0, kind) + END)
    (member,) = TarReader(tmp_path / "x.tar").members()
    assert member.kind == "folder"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pax({"path": "x"}, tarfile.XGLTYPE) + ONE + END, "one path for all its members"),
        (pax({"size": "7"}, tarfile.XGLTYPE) + ONE + END, "one size for all its members"),
        (header("1.jpg", 600, b"M") + bytes(1024) + END, "later volume of a tar; unpack all volumes with tar -M"),
        (pax({"GNU.volume.filename": "1.jpg"}, tarfile.XGLTYPE) + ONE + END, "later volume of a tar"),
        (pax({"size": "-3"}) + ONE + END, "-3 bytes"),
        (pax({"size": "x"}) + ONE + END, "headers at byte 0 cannot be read"),
        (header("p", 10, tarfile.XHDTYPE) + padded(b"99 path=x\n") + ONE + END, "headers at byte 0 cannot be read"),
        (header("p", 10, tarfile.XHDTYPE) + padded(b"0 path=x\n") + ONE + END, "headers at byte 0 cannot be read"),
        (pax({"path": "x"}), "truncated within a header"),
        (pax({"path": "x"}) + b"rubbish" * 100, "damaged at byte 1,024"),
        (header("1.jpg", 3) + padded(b"one") + b"rubbish" * 100, "damaged at byte 1,024"),
        (ONE + header("2.jpg", 5000) + bytes(2000), "truncated within its member '2.jpg'"),
    ],
)
def test_invalid_headers_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        listed(tmp_path / "x.tar", content)
    assert "\n" not in str(error.value)


def test_a_flood_of_records_is_read(tmp_path):
    content = b"6 a=b\n" * 150_000
    files, _ = listed(tmp_path / "x.tar", header("p", len(content), tarfile.XHDTYPE) + padded(content) + ONE + END)
    assert files == {"1.jpg": b"one"}


@pytest.mark.parametrize("zeros", [512, 1024, 10_240, 3 << 20])
@pytest.mark.parametrize("count", [2, 3])
def test_joined_tars_are_read_completely(tmp_path, zeros, count):
    """As cat a.tar b.tar joins them; tar reads them with -i."""
    parts = [header(f"{n}.jpg", 3) + padded(b"%03d" % n) + bytes(zeros) for n in range(count)]
    files, notes = listed(tmp_path / "x.tar", b"".join(parts))
    assert files == {f"{n}.jpg": b"%03d" % n for n in range(count)}
    assert notes == [f"x.tar: {JOINED}"]


def test_joined_tars_of_every_format(tmp_path):
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    parts = [tar_bytes({f"{kind}/{'é' * 45}.jpg": b"%d" % kind}, format=kind) for kind in formats]
    empty = tar_bytes({})
    files, notes = listed(tmp_path / "x.tar", empty + empty.join(parts) + empty)
    assert files == {f"{kind}/{'é' * 45}.jpg": b"%d" % kind for kind in formats}
    assert notes == [f"x.tar: {JOINED}"]
    assert listed(tmp_path / "y.tar", pax({"a": "b"}, tarfile.XGLTYPE) + END + ONE + END)[1] == [f"y.tar: {JOINED}"]


def test_joined_tars_inside_a_tar(tmp_path):
    inner = tar_bytes({"1.jpg": b"1"}) + tar_bytes({"2.jpg": b"2"})
    (tmp_path / "x.tar").write_bytes(tar_bytes({"n01.tar": inner, "n02.tar": ONE + END, "n03.tar": inner}))
    tar = TarReader(tmp_path / "x.tar")
    found = [
        [member.name for member in tar.members(outer.offset, outer.offset + outer.nbytes, outer.name)]
        for outer in tar.members()
    ]
    assert found == [["1.jpg", "2.jpg"], ["1.jpg"], ["1.jpg", "2.jpg"]]
    assert tar_notes(tar.oddities) == [f"{tmp_path}/x.tar: n01.tar and 1 more tars: {JOINED}"]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (b"rubbish" * 300, "not a tar"),
        (b"\n", "not a tar"),
        (bytes(5000) + b"\1", "not a tar"),
        (bytes(20) + tar_bytes({"2.jpg": b"2"}), "not a tar"),  # a tar, but not at a block
        (b"\x1f\x8b" + bytes(3000), r"a compressed file \(gzip\)"),
        (header("2.jpg", 3)[:300], "not a tar"),
    ],
)
def test_other_bytes_after_the_end_are_refused(tmp_path, rest, message):
    first = ONE + bytes(10_240)
    at = len(first) + (len(rest) - len(rest.lstrip(b"\0"))) // 512 * 512
    with pytest.raises(DataError, match=f"x.tar ends before byte {at:,}, but bytes follow that are {message}") as error:
        listed(tmp_path / "x.tar", first + rest)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zeros", [0, 300, 511, 512, 700, 10_000])
def test_a_tar_without_its_end_is_noted(tmp_path, zeros):
    files, notes = listed(tmp_path / "x.tar", ONE + bytes(zeros))
    assert (files, notes) == ({"1.jpg": b"one"}, [] if zeros else [f"x.tar: {NO_END}"])


def test_a_file_of_zeros_or_nothing_has_no_members(tmp_path):
    for size in (0, 100, 512, 100_000):
        assert listed(tmp_path / "x.tar", bytes(size)) == ({}, [])


@pytest.mark.parametrize("follows", [False, True])
def test_terabytes_of_holes_after_the_end_are_skipped(tmp_path, follows):
    path = tmp_path / "x.tar"
    path.write_bytes(ONE + END)
    with open(path, "r+b") as file:
        file.truncate(2 << 40)
        if follows:
            file.seek(1 << 40)
            file.write(header("2.jpg", 3) + padded(b"two"))
    assert [member.name for member in TarReader(path).members()] == ["1.jpg", "2.jpg"][: 1 + follows]


def test_listing_is_quick(tmp_path):
    """A million members take less than a minute, far less than reading them."""
    image = encoded("baseline", 1, 24, 16)
    (tmp_path / "x.tar").write_bytes(tar_bytes({f"c{n % 10}/{n}.jpg": image for n in range(4000)}))
    started = time.process_time()
    assert sum(1 for _ in TarReader(tmp_path / "x.tar").members()) == 4000
    assert (time.process_time() - started) / 4000 < 60e-6
