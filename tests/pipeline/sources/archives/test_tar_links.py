"""Links in tars are the files that they lead to, as in an unpacked folder; other members are counted by kind."""

import io
import tarfile

import pytest
from helpers.archives import tar_of
from helpers.images import write_classes

from mimcl.pipeline.sources.archives.tars import tar_images


def member(name, content=b"", kind=tarfile.REGTYPE, target="", size=None) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content) if size is None else size
    return info, content


def tar_of_members(path, *members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(source, split="train"):
    return {item.name: item.read() for item in source.splits[split]}


def test_what_is_no_file_is_skipped_and_counted(tmp_path):
    path = tar_of_members(
        tmp_path / "x.tar",
        member("a/1.jpg", b"one"),
        member("a/out.jpg", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member("a/folder", kind=tarfile.SYMTYPE, target="."),
        member("a/hard.jpg", kind=tarfile.LNKTYPE, target="a/2.jpg"),  # comes later
        member("a/2.jpg", b"two"),
        member("a/dev", kind=tarfile.CHRTYPE),
        member("a/block", kind=tarfile.BLKTYPE),
        member("a/pipe", kind=tarfile.FIFOTYPE),
        member("a/new.jpg", b"unknown", kind=b"Q"),
    )
    source = tar_images(path)
    assert contents(source) == {"a/1.jpg": b"one", "a/2.jpg": b"two"}
    assert source.notes[-1] == (
        "skipped in x.tar: 1 broken hard link, 2 devices, 1 pipe, 1 unknown member, 2 unresolved symbolic links"
    )


LONG = "deep/" * 40


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a/1.jpg", "./a/1.jpg", f"a/{LONG}1.jpg", "a/日本.jpg", "a/lat\udce9.jpg"])
def test_hard_links_are_the_files_that_they_link_to(tmp_path, kind, name):
    path = tar_of_members(
        tmp_path / "x.tar",
        member(name, b"one"),
        member("b/2.jpg", kind=tarfile.LNKTYPE, target=name),
        member("b/3.jpg", kind=tarfile.LNKTYPE, target="b/2.jpg"),
        format=kind,
    )
    source = tar_images(path)
    assert (len(contents(source)), set(contents(source).values())) == (3, {b"one"})
    assert source.classes == ["a", "b"]
    assert not any("x.tar" in note for note in source.notes)


@pytest.mark.parametrize(("name", "target"), [("./1.jpg", "1.jpg"), ("1.jpg", "./1.jpg"), ("./1.jpg", "./1.jpg")])
def test_hard_links_with_and_without_the_dot(tmp_path, name, target):
    link = member("2.jpg", kind=tarfile.LNKTYPE, target=target)
    source = tar_images(tar_of_members(tmp_path / "x.tar", member(name, b"one"), link))
    assert contents(source) == {"1.jpg": b"one", "2.jpg": b"one"}


def test_a_hard_link_is_the_file_that_had_the_name_before_it(tmp_path):
    path = tar_of_members(
        tmp_path / "x.tar",
        member("1.jpg", b"old"),
        member("2.jpg", kind=tarfile.LNKTYPE, target="1.jpg"),
        member("1.jpg", b"new"),
        member("3.jpg", kind=tarfile.LNKTYPE, target="1.jpg"),
    )
    assert contents(tar_images(path)) == {"1.jpg": b"new", "2.jpg": b"old", "3.jpg": b"new"}


def test_symbolic_links_to_files_of_the_archive_are_followed(tmp_path):
    write_classes(tmp_path / "src", {"a": 1, "b": 1})
    (image,) = (tmp_path / "src" / "a").iterdir()
    for name, target in (
        ("b/soft.jpg", f"../a/{image.name}"),
        ("b/chain.jpg", "./soft.jpg"),
        ("b/folder", "../a"),
        ("b/through.jpg", f"folder/{image.name}"),
        (f"b/{LONG}long.jpg", f"{'../' * 41}a/{LONG}{'../' * 40}{image.name}"),
    ):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).symlink_to(target)
    (tmp_path / "src" / "a" / LONG).mkdir(parents=True)
    links = ("b/soft.jpg", "b/chain.jpg", "b/through.jpg", f"b/{LONG}long.jpg")
    source = tar_images(tar_of(tmp_path / "src", tmp_path / "x.tar"))
    expected = {f"{name}/{image.name}": (tmp_path / "src" / name / image.name).read_bytes() for name in "ab"}
    assert contents(source) == expected | dict.fromkeys(links, image.read_bytes())
    assert source.notes[-1] == "skipped in x.tar: 1 unresolved symbolic link"
