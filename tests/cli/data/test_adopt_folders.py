"""Which shards of a folder are adopted: all of them, or none."""

import pytest
from helpers.archives import write_shards
from helpers.typed import mimcl


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.tar", "b.tar.gz"], "wds has compressed shards (b.tar.gz)"),
        (["a.tar", "sub/b.tgz"], "wds has compressed shards (sub/b.tgz)"),
        (["a.tar", "sub/b.tar"], "wds has shards at its top level and in subfolders (wds/sub/b.tar)"),
        (["sub/b.tar"], "wds has no shards (.tar) at its top level; adopt its subfolders one by one"),
        (["a.txt"], "wds has no shards (.tar) at its top level; leave out --adopt"),
        (["a.tar", "B.TAR"], "shard name 'B.TAR' is not supported; rename the shard"),
    ],
)
def test_shards_are_never_left_out_silently(tmp_path, monkeypatch, capfd, names, message):
    for name in names:
        write_shards((tmp_path / "wds" / name).parent, {name.rpartition("/")[2]: 1})
    before = sorted((tmp_path / "wds").rglob("*"))
    assert mimcl(monkeypatch, tmp_path, "shard", "wds", "--adopt") == 1
    assert message in capfd.readouterr().err
    assert sorted((tmp_path / "wds").rglob("*")) == before


def test_a_list_decides_between_folders(tmp_path, monkeypatch):
    write_shards(tmp_path / "wds", {"a.tar": 1})
    write_shards(tmp_path / "wds" / "sub", {"b.tar": 1})
    (tmp_path / "list.txt").write_text("a.tar\n")
    assert mimcl(monkeypatch, tmp_path, "shard", "wds", "--adopt", "--list", "list.txt") == 0
