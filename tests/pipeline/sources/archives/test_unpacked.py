"""What unpacking an archive gives: the last of equal names, symbolic links followed, nothing from outside."""

import os

import pytest

from mimcl.pipeline.sources.archives.unpacked import follow_links, unpacked

FILES = {"a/1.jpg": b"one", "a/b/2.jpg": b"two", "3.jpg": b"three"}


@pytest.mark.parametrize(
    "links",
    [
        {"l.jpg": "3.jpg"},
        {"a/l.jpg": "1.jpg", "a/b/l.jpg": "../1.jpg", "a/b/m.jpg": "../../a/b/../b/./2.jpg"},
        {"l.jpg": "m.jpg", "m.jpg": "a/n.jpg", "a/n.jpg": "b/2.jpg"},
        {"f": "a/b", "l.jpg": "f/2.jpg", "m.jpg": "f/../1.jpg", "a/g": "../f", "n.jpg": "a/g/2.jpg"},
        {"l.jpg": "m.jpg", "m.jpg": "l.jpg", "n.jpg": "n.jpg"},
        {"l.jpg": "../out.jpg", "m.jpg": "none.jpg", "n": "a", "a/o.jpg": "../../x/3.jpg"},
        {"l.jpg": "a//1.jpg", "m.jpg": "./././3.jpg", "n.jpg": "3.jpg/", "o.jpg": "3.jpg/../3.jpg"},
        {f"{number}": f"{number + 1}" for number in range(60)} | {"60": "3.jpg"},
    ],
)
def test_links_lead_where_the_file_system_leads(tmp_path, links):
    root = tmp_path / "root"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for name, target in links.items():
        (root / name).symlink_to(target)
    expected = {}
    for name in links:
        if os.path.isfile(root / name):
            expected[name] = (root / name).read_bytes()
    assert follow_links(FILES, links) == expected


@pytest.mark.parametrize("target", ["", "/a/1.jpg", "a/" * 5000 + "1.jpg"])
def test_other_links_are_left_out(target):
    assert follow_links(FILES, {"l.jpg": target}) == {}


def test_the_last_of_equal_names_counts():
    members = [
        ("a.jpg", "file", 1),
        ("./a.jpg", "symbolic link", "b.jpg"),
        ("b.jpg", "file", 2),
        ("c.jpg", "symbolic link", "a.jpg"),
        ("c.jpg", "file", 3),
        ("d/", "folder", None),
        ("./", "folder", None),
        ("d", "folder", None),
    ]
    found = unpacked("x.tar", members)
    assert (found.files, found.folders) == ({"a.jpg": 2, "b.jpg": 2, "c.jpg": 3}, {"d"})
    assert found.notes == ["x.tar has 2 names more than once, such as a.jpg; the last one is used, as in unpacking"]


def test_everything_else_is_counted_by_its_kind():
    members = [
        ("a", "device", 0),
        ("b", "device", 0),
        ("c", "sparse file", 0),
        ("l", "symbolic link", "none"),
        ("/etc/passwd", "file", 0),
        ("a/../../b", "file", 0),
        ("x\0y", "file", 0),
        ("good.jpg", "file", 7),
    ]
    found = unpacked("x.tar", members)
    assert found.files == {"good.jpg": 7}
    assert found.notes == [
        "skipped in x.tar: 2 devices, 1 sparse file, 1 unresolved symbolic link",
        "skipped in x.tar: 3 names that point outside the archive, such as /etc/passwd; make it inside the folder, "
        "with relative names (tar without -P)",
    ]
