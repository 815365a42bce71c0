"""Make `mimcl` importable from a checkout that is not installed."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("pipeline", "curriculum", "model", "cli")  # of the namespace package `mimcl`, as in pyproject.toml


def environment(folder: Path) -> dict[str, str]:
    """Return the environment for a process that imports this checkout's `mimcl`, through links made in `folder`."""
    package = folder / "mimcl"
    package.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        if not (package / name).exists():
            (package / name).symlink_to(ROOT / name)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
