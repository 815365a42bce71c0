"""The bar of a training: what it says of the time that is left, with and without a terminal."""

import os
import pty
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts processes

# Four steps of two micro-batches, of half a second each, and a pause; the first second is the warm-up.
TRAINING = """
import time
from mimcl.cli.bars import TrainingBar

bar = TrainingBar(100, 220, 2, {shown})
with bar.running():
    for step in range(101, 106):
        for _ in range(2):
            time.sleep({seconds})
            bar.observe(None, None)
        with bar.paused():
            time.sleep(0.5)
        bar.show(step, f"loss {{step}}" if step != 103 else "")
"""


def program(shown: bool, seconds: float = 0.505) -> list[str]:
    return [sys.executable, "-c", TRAINING.format(shown=shown, seconds=seconds)]


def test_plain_lines_tell_the_time_once_it_is_known():
    done = subprocess.run(program(True), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    announced, *lines = sorted(done.stdout.splitlines())
    assert re.fullmatch(r"estimated time: about 2 min for 120 steps|estimated time: about 1[12]\d s .*", announced)
    assert lines[:2] == ["step 101/220  loss 101", "step 102/220  loss 102"]
    assert [line.split("  ")[0] for line in lines[2:]] == ["step 104/220", "step 105/220"]
    for line in lines[2:]:
        assert re.fullmatch(r"step 10[45]/220  loss 10[45]  about (1[12]\d s|2 min) left", line)


def test_other_ranks_show_nothing():
    done = subprocess.run(program(False, 0), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_terminal_shows_it_in_the_bar():
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(program(True), stdout=child, env=environment)
    os.close(child)
    written = b""
    try:
        while data := os.read(parent, 1 << 16):
            written += data
    except OSError:  # how a pseudo-terminal ends
        pass
    assert process.wait() == 0
    assert b"estimated time: about" in written
    assert re.search(rb"105/220.*about (1[12]\d s|2 min) left", written)
    assert b"loss 105" in written
