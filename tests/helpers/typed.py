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
