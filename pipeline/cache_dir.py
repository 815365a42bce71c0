"""The cache folder, shared by all runs and processes of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """MIMCL_CACHE; else mimcl/ in XDG_CACHE_HOME; else ~/.cache/mimcl. It may not exist yet."""
    if chosen := os.environ.get("MIMCL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mimcl"
