"""Child processes save when the process that waits for them is signalled or killed."""

import signal
import subprocess
import sys
import time

import pytest

CHILD = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(0.3)
    Path("saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
Path("began").touch()
time.sleep(60)
"""
PARENT = f"""
import signal, sys
from pathlib import Path
from mimcl.cli.compare.children import StoppedError, run_to_end
from mimcl.cli.run.signals import StopSignals

# A test suite started in the background or by nohup ignores these signals, and child processes inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

with StopSignals(print) as signals:
    signals.disable_timeout()
    try:
        run_to_end([sys.executable, "-c", {CHILD!r}], Path("log"), signals)
    except StoppedError:
        print("stopped", Path("saved").exists())
"""


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_the_child_saves_whatever_ends_its_parent(tmp_path, number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "began")
    parent.send_signal(number)
    said, _ = parent.communicate(timeout=30)
    assert said == ("" if number == signal.SIGKILL else "stopped True\n")
    wait_for(tmp_path / "saved")
