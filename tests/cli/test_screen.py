"""Text on the screen: any name can be printed in any encoding, and none controls the terminal."""

import json
import os
import pty
import subprocess
import sys

import pytest
from helpers.images import write_classes

from mimcl.cli import console as screen
from mimcl.cli.screen import printable

NAMES = {
    "plain name": "plain name",
    "café 日本 😀": "café 日本 😀",
    "a\x1b[31mred": r"a\x1b[31mred",
    "a\nb\rc\td\x07": r"a\nb\rc\td\x07",
    "c1 \x9b2J": r"c1 \x9b2J",
    "gpj.\u202eexe": r"gpj.\u202eexe",
    "line\u2028sep\u2066\u200b": r"line\u2028sep\u2066\u200b",
    "\udcff\udce9": r"\xff\xe9",
    "\ud800": r"\ud800",
    "back\\slash": "back\\slash",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items())
def test_names_are_escaped(name, shown, capsys):
    assert printable(name) == shown
    screen.console.print(f"note: {name}")
    screen.warn(f"found {name}")
    written = capsys.readouterr()
    assert (written.out, written.err) == (f"note: {shown}\n", f"mimcl: found {shown}\n")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "\ud800"])  # which no file can have
def test_errors_are_escaped(name, tmp_path):
    command = [sys.executable, "-m", "mimcl.cli.main", "inspect", name]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert done.returncode == 1
    shown = printable(" ".join(name.split()))
    assert done.stderr.startswith(f"mimcl: {shown} does not exist")
    assert done.stderr.count("\n") == 1


def test_bars_and_spinners_escape_names():
    """In a pseudo-terminal, since both are shown on terminals only."""
    code = (
        "import time\n"
        "from mimcl.cli.bars import image_bar\nfrom mimcl.cli.console import busy\n"
        "with busy('listing [red]a\\x1b]0;title\\x07'): time.sleep(0.3)\n"
        "with image_bar('packing b\\x1b]0;title\\x07', 2) as advance: advance(1)\n"
    )
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env=environment)
    os.close(child)
    written = b""
    try:
        while data := os.read(parent, 1 << 16):
            written += data
    except OSError:  # how a pseudo-terminal ends
        pass
    assert process.wait() == 0
    assert rb"listing [red]a\x1b]0;title\x07" in written
    assert rb"packing b\x1b]0;title\x07" in written
    assert b"\x1b]0;" not in written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_text_in_any_encoding(encoding):
    text = "".join(NAMES.values()) + " · ± – … ≥ ✓"
    code = f"from mimcl.cli import main, console, screen\nscreen.accept_any_text()\nconsole.console.print({text!r})"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    written = done.stdout.decode(encoding)
    assert "red" in written
    if encoding == "ascii":
        assert written.endswith("- +- - ... >= +\n")
        assert r"caf\xe9 \u65e5\u672c \U0001f600" in written
    if encoding == "latin-1":
        assert "café \\u65e5" in written
        assert written.endswith("· ± - ... >= +\n")
    if encoding == "utf-8":
        assert written == text + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "command", [["inspect", "out"], ["inspect", "out", "--json"], ["shard", "src", "--out", "new"]]
)
def test_commands_in_any_encoding(tmp_path, encoding, command):
    names = ["日本", "café\x1b[2J", "c·b"]
    write_classes(tmp_path / "src", dict.fromkeys(names, 2))
    mimcl = [sys.executable, "-m", "mimcl.cli.main"]
    subprocess.run([*mimcl, "shard", "src", "--out", "out"], cwd=tmp_path, check=True, capture_output=True)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*mimcl, *command], cwd=tmp_path, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    written = done.stdout.decode(encoding)
    if "--json" in command:
        assert json.loads(written)["splits"][0]["classes"] == sorted(names)


def test_spinners_and_bars_in_ascii():
    code = (
        "import time\n"
        "from mimcl.cli.bars import image_bar\nfrom mimcl.cli.console import busy\n"
        "with busy('listing'): time.sleep(0.3)\n"
        "with image_bar('packing', 2) as advance: advance(1)\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"packing" in done.stdout


def test_a_path_alone_on_a_line_is_exact(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9 \x1b[2J"
    code = "import sys, pathlib; from mimcl.cli.console import print_path; print_path(pathlib.Path(sys.argv[1]))"
    for encoding in ("ascii", "utf-8"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code, raw], capture_output=True, env=environment, check=True)
        assert done.stdout == raw + b"\n"
