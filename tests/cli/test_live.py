"""Progress bars on real pseudo-terminals: windows that change their size, dumb terminals, NO_COLOR, pipes."""

import os
import re
import subprocess
import sys

import pytest
from helpers.reflowing_terminal import run_resized

# Waits until the window has its other size; meanwhile nothing is drawn.
RESIZE = """
import os, sys, time
from mimcl.cli.console import console
def resize():
    with console._live_stack[0]._lock:
        before = os.get_terminal_size()
        print(end="\\a", file=sys.__stdout__, flush=True)  # past the bar
        while os.get_terminal_size() == before:
            time.sleep(0.01)
"""
TRAINING = """
import time
from mimcl.cli.bars import TrainingBar
from mimcl.cli.console import console, warn
bar = TrainingBar(0, 12, 1)
with bar.running():
    for step in range(13):
        bar.show(step, f"loss {step:.2f}  lr 1.0e-3  temperature 0.31  effective 0.22  images/s 1234")
        if step == 4:
            warn("RESIZE")
            resize()
        time.sleep(0.1)
console.print("after")
"""
PACKING = """
import time
from mimcl.cli.bars import image_bar
from mimcl.cli.console import busy, console, warn
with busy("listing"):
    time.sleep(0.2)
with image_bar("packing", 12) as advance:
    for image in range(12):
        advance(1)
        if image == 4:
            warn("RESIZE")
            resize()
        time.sleep(0.07)
console.print("after")
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code if "def resize" in code else "resize = int\n" + code]


@pytest.mark.parametrize("widths", [(110, 50), (60, 100), (80, 79)])
@pytest.mark.parametrize(("code", "start"), [(TRAINING, "step"), (PACKING, "packing")])
def test_a_window_that_changes_its_size_leaves_no_stale_bar(code, start, widths):
    screen, written = run_resized(python(RESIZE + code), *widths)
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    assert len([line for line in lines if line.startswith(start)]) == 1, lines
    assert lines[0] == "mimcl: RESIZE"
    assert lines[-1] == "after"
    assert "12/12" in "".join(lines)
    assert ("images/s 1234" in " ".join(lines)) == (code is TRAINING)  # in a second line where it is narrow
    assert len(lines) == 3 + (code is TRAINING) * (2 if widths[1] == 50 else 1)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")  # cursor hidden and shown


@pytest.mark.parametrize("code", [TRAINING, PACKING])
def test_dumb_terminals_get_lines_without_escapes(code):
    screen, written = run_resized(python(code), 80, 80, TERM="dumb")
    assert "\x1b" not in written
    assert "listing" not in written  # a spinner cannot turn there
    assert screen.lines[-2].startswith("after")
    if code is TRAINING:
        assert [line.split()[1] for line in screen.lines if line.startswith("step")] == [f"{n}/12" for n in range(13)]
    else:
        assert len([line for line in screen.lines if "packing" in line]) == 1


@pytest.mark.parametrize("code", [TRAINING, PACKING])
def test_no_color(code):
    _, written = run_resized(python(code), 80, 80, NO_COLOR="1")
    assert "\x1b[" in written  # the bar still moves
    assert not re.search(r"\x1b\[[\d;]*(3[0-8]|4[0-8]|9\d)[\d;]*m", written)


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
@pytest.mark.parametrize("code", [TRAINING, PACKING])
def test_a_pipe_gets_lines_and_no_bar(code, environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    done = subprocess.run(python(code), capture_output=True, text=True, env={**clean, "TERM": "xterm", **environment})
    assert done.returncode == 0
    assert "\r" not in done.stdout
    assert "listing" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith("after")
    if not environment:
        assert "\x1b" not in done.stdout + done.stderr
