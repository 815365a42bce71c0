"""Make `mimcl` importable from a checkout that is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the namespace package `mimcl`, as in pyproject.toml.
_PACKAGES = {"pipeline": "pipeline", "curriculum": "curriculum", "model": "model", "cli": "cli", "api": "cli/api"}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment for a process that imports this checkout's `mimcl`, through links made in `folder`."""
    package = folder / "mimcl"
    package.mkdir(parents=True, exist_ok=True)
    for name, place in _PACKAGES.items():
        if not (package / name).exists():
            (package / name).symlink_to(ROOT / place)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def use_links(folder: Path) -> None:
    """Make this process, and those that it starts, import this checkout's `mimcl` through links made in `folder`."""
    os.environ.update(environment(folder))
    sys.path.insert(0, str(folder))
