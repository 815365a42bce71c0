"""A file is checked once, and again after any change of the file or of the claim."""

import json
import os
import shutil
import time
from contextlib import ExitStack

import numpy as np
import pytest

from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.pipeline import index, verify_cache
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify_cache import check_once


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for the test, without a minimum age of the files."""
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verify_cache, "_CLOCK_RESOLUTION_S", -60.0)
    return tmp_path / "cache" / "checked"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path / "file"


def is_checked(*paths, claim="claim") -> bool:
    calls = []
    with ExitStack() as opened:
        files = [opened.enter_context(open(path, "rb")) for path in paths]
        check_once(files, claim, lambda: calls.append(1))
    return bool(calls)


def test_once(path, cache):
    assert [is_checked(path) for _ in range(3)] == [True, False, False]
    assert len(list(cache.iterdir())) == 1


def test_once_for_all_paths_to_the_file(path, tmp_path, monkeypatch):
    assert is_checked(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(path)
    assert not is_checked("file")
    assert not is_checked("link")


def rewrite(path):
    """Other content of the same length, with the same times as far as they can be set."""
    before = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path):
    before = path.stat()
    shutil.copy2(path, path.with_name("aside"))
    os.replace(path.with_name("aside"), path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


CHANGES = {
    "rewritten": rewrite,
    "exchanged": exchange,
    "longer": lambda path: path.write_bytes(b"content and more"),
    "touched": lambda path: os.utime(path),
    "renamed": lambda path: path.rename(path.with_name("x")).rename(path),
}


@pytest.mark.parametrize("change", CHANGES)
def test_again_after_a_change(path, change):
    assert is_checked(path)
    CHANGES[change](path)
    assert is_checked(path)
    assert not is_checked(path)


def test_again_for_another_claim(path):
    assert is_checked(path)
    assert is_checked(path, claim="another")
    assert not is_checked(path, claim="another")


def test_again_if_one_of_two_files_changes(path, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"more")
    assert is_checked(path, other)
    assert not is_checked(path, other)
    os.utime(other)
    assert is_checked(path, other)


def test_a_failed_check_is_not_stored(path, cache):
    def fails():
        raise DataError("damaged")

    for _ in range(2):
        with open(path, "rb") as file, pytest.raises(DataError):
            check_once([file], "claim", fails)
    assert not cache.exists()


def test_a_file_that_changes_during_the_check_is_not_stored(path):
    with open(path, "rb") as file:
        check_once([file], "claim", lambda: path.write_bytes(b"CONTENT"))
    assert is_checked(path)


def test_a_file_written_just_now_is_not_stored(path, monkeypatch):
    """A later write within one tick of the file system's clock may not change its times."""
    monkeypatch.setattr(verify_cache, "_CLOCK_RESOLUTION_S", 0.2)
    path.write_bytes(b"content")
    assert [is_checked(path) for _ in range(2)] == [True, True]
    time.sleep(0.25)
    assert [is_checked(path) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 60_000])
def test_a_damaged_entry_is_ignored(path, cache, text):
    assert is_checked(path)
    (note,) = cache.iterdir()
    note.write_text(text)
    assert is_checked(path)
    assert not is_checked(path)


def test_an_entry_that_is_a_pipe_does_not_block(path, cache):
    assert is_checked(path)
    (note,) = cache.iterdir()
    note.unlink()
    os.mkfifo(note)
    assert is_checked(path)


def test_an_entry_of_another_user_is_ignored(path, monkeypatch):
    assert is_checked(path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert is_checked(path)


def test_without_a_cache_folder_it_is_checked_each_time(path, tmp_path, monkeypatch):
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "no folder"))
    assert [is_checked(path) for _ in range(2)] == [True, True]


@pytest.fixture
def shards(labelled, tmp_path):
    return shutil.copytree(labelled[1], tmp_path / "shards")


def edit(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_an_index_is_checked_once_and_later_damage_is_found(shards, monkeypatch):
    check, calls = index._check, []
    monkeypatch.setattr(index, "_check", lambda *arguments: (calls.append(1), check(*arguments)))
    first, second = ShardIndex.load(shards), ShardIndex.load(shards)
    assert len(calls) == 1
    np.testing.assert_array_equal(first.offset, second.offset)
    assert first.keys() == second.keys()
    ShardIndex.load(shards, recheck=True)
    assert len(calls) == 2
    place = (shards / "train.arrow").read_bytes().index(int(first.xxh64[7]).to_bytes(8, "little"))
    edit(shards / "train.arrow", place)
    with pytest.raises(DataError, match=r"does not match dataset\.json"):
        ShardIndex.load(shards)


def test_another_description_of_a_known_index_is_checked(shards):
    """A shard with fewer bytes makes rows of an unchanged index invalid."""
    ShardIndex.load(shards)
    description = json.loads((shards / "dataset.json").read_text())
    description["splits"]["train"]["shards"][0]["bytes"] = 1024
    (shards / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="inside its shard"):
        ShardIndex.load(shards)


def test_prototypes_are_checked_once_and_later_damage_is_found(tmp_path, cache):
    distance = np.linspace(0, 1, 50, dtype=np.float32)
    info = {"format": "mimcl-prototypes/1", "index_fingerprint": "f", "features": "pixels"}
    folder = tmp_path / "set"
    PrototypeSet(np.zeros(50, np.int32), distance, distance, np.ones((2, 3), np.float32), info).save(folder)
    calls = []

    def counted(files, claim, check):
        check_once(files, claim, lambda: (calls.append(1), check()))

    for _ in range(2):
        found = PrototypeSet.load(folder, "f", counted)
        np.testing.assert_array_equal(found.distance, distance)
        np.testing.assert_array_equal(found.centroids, np.ones((2, 3)))
        assert not found.centroids.flags.writeable
    assert len(calls) == 1
    edit(folder / "train.arrow", (folder / "train.arrow").read_bytes().index(distance[20:30].tobytes()))
    with pytest.raises(PrototypeError, match="checksum"):
        PrototypeSet.load(folder, "f", counted)
