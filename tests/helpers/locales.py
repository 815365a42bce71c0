"""Environments of processes under other locales than UTF-8's."""

import os
import subprocess
from pathlib import Path

LATIN1 = "en_US.ISO-8859-1"
# Python would otherwise switch to UTF-8 in the locale C.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def latin1(folder: Path) -> dict[str, str]:
    """Return the environment of a Latin-1 locale, compiled into `folder`, since few machines have one."""
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / LATIN1], check=True, capture_output=True)
    return {"LOCPATH": str(folder), "LC_ALL": LATIN1, "PYTHONUTF8": "0"}


def environment(name: str, folder: Path) -> dict[str, str]:
    """Return the environment of the locale "utf-8", "ascii" or "latin-1"; `folder` is for files it needs."""
    special = latin1(folder) if name == "latin-1" else {"utf-8": {"LC_ALL": "C.UTF-8"}, "ascii": ASCII}[name]
    return {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"} | special
