"""Names of files are the same under every locale."""

import json
import os
import subprocess
import sys

import pytest

from mimcl.pipeline.sources.names import from_fs, to_fs, to_utf8

RECORDED = {
    b"plain": "plain",
    "café b".encode(): "café b",
    "日本".encode(): "日本",
    "😀".encode(): "😀",
    b"caf\xe9": "caf\\xe9",
    b"\xff\xfe": "\\xff\\xfe",
    b"\xed\xb2\x80": "\\xed\\xb2\\x80",
    b"a\\xff": "a\\xff",
}
PROGRAM = """
import json, os, sys
from mimcl.pipeline.sources.names import from_fs, to_fs, to_utf8
raw = [bytes.fromhex(word) for word in sys.argv[1:]]
names = [from_fs(os.fsdecode(name)) for name in raw]
assert [os.fsencode(to_fs(name)) for name in names] == raw
print(sys.getfilesystemencoding(), json.dumps([*names, *map(to_utf8, names)]))
"""


def read_names(environment):
    command = [sys.executable, "-c", PROGRAM, *(name.hex() for name in RECORDED)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    encoding, _, names = done.stdout.partition(" ")
    return encoding, json.loads(names)


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"LC_ALL": "C.UTF-8"}, "utf-8"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii"),
    ],
)
def test_names_are_the_same_under_every_locale(environment, encoding):
    names = [name.decode("utf-8", "surrogateescape") for name in RECORDED]
    assert read_names(environment) == (encoding, [*names, *RECORDED.values()])


@pytest.mark.parametrize(("raw", "recorded"), RECORDED.items())
def test_recorded_names_are_utf8(raw, recorded):
    name = from_fs(os.fsdecode(raw))
    assert to_utf8(name) == recorded
    assert os.fsencode(to_fs(name)) == raw
