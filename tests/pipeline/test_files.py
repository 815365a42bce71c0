"""Files and folders are complete or absent, even if several processes write the same one."""

import os
import subprocess
import sys

import pytest

from mimcl.pipeline import files
from mimcl.pipeline.files import atomic_file, atomic_folder

WRITER = """
import sys
from pathlib import Path
from mimcl.pipeline.files import atomic_file
for _ in range(100):
    with atomic_file(Path(sys.argv[1])) as file:
        for _ in range(4):
            file.write(sys.argv[2].encode() * 50_000)
            file.flush()
"""


def test_two_processes_that_write_the_same_file_leave_one_of_the_two(tmp_path):
    path = tmp_path / "report.html"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 200_000, b"b" * 200_000)
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.write("no bytes")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def fill(folder, text, **options):
    with atomic_folder(folder, **options) as aside:
        (aside / "content").write_text(text or "half")
        if text is None:
            raise OSError(28, "No space left on device")


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    folder = tmp_path / "deep" / "set"
    fill(folder, "one")
    with pytest.raises(OSError, match="not empty"):
        fill(folder, "two")
    assert (folder / "content").read_text() == "one"
    fill(folder, "two", replace=True)
    assert (folder / "content").read_text() == "two"
    assert os.listdir(folder.parent) == ["set"]


@pytest.mark.parametrize("failing", ["block", "flush", "rename"])
@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, monkeypatch, failing, existing):
    def fail(source, target=None):
        if failing == "flush" or str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    folder, rename = tmp_path / "set", os.replace
    if existing:
        fill(folder, "one")
    if failing != "block":
        monkeypatch.setattr(*((files, "_flush", fail) if failing == "flush" else (os, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        fill(folder, None if failing == "block" else "two", replace=True)
    assert os.listdir(tmp_path) == ["set"] * existing
    assert not existing or (folder / "content").read_text() == "one"


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path):
    leftover = tmp_path / f".set.{os.getpid()}.tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"half")
    fill(tmp_path / "set", "one")
    assert os.listdir(tmp_path) == ["set"]
    assert os.listdir(tmp_path / "set") == ["content"]
