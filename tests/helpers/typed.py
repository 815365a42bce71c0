"""Commands as a user types them, in this process."""

import sys
from pathlib import Path

import pytest

from mimcl.cli.main import main


def mimcl(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """Runs the command as if typed in `folder`; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mimcl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code
