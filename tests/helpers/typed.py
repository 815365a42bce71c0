"""Run commands as typed by a user, in this process."""

import sys
from pathlib import Path

import pytest

from mimcl.cli.main import main


def mimcl(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """Run `mimcl ARGUMENTS` in `folder`; return the exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mimcl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def error_line(text: str) -> str:
    """Return the one line of an error on stderr, without the line of a usage error that points to --help."""
    line, *pointer = text.splitlines()
    assert not pointer or (len(pointer) == 1 and pointer[0].startswith("Try 'mimcl")), text
    return line
