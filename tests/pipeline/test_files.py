"""Files are whole or not there, also where several processes write the same one."""

import subprocess
import sys

import pytest

from mimcl.pipeline.files import atomic_file

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
