"""An environment like that of a GPU machine on which mimcl is not installed, nor much else."""

import os
from pathlib import Path

# Read by Python at its start: hides the installed mimcl, and modules that a bare GPU machine lacks.
NOT_INSTALLED = """
import sys
from importlib.machinery import PathFinder

names, find = {names!r}, PathFinder.find_spec
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path[:] = [path for path in sys.path if "__editable__" not in path]
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name in names else find(name, path, target)
)
"""


def bare_environment(folder: Path, *missing: str) -> dict[str, str]:
    """Return the environment of processes in which mimcl and these modules cannot be imported; creates `folder`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NOT_INSTALLED.format(names={"webdataset", "faiss", "moto", *missing}))
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} if "pytest_timeout" in missing else {}
    return {**os.environ, "PYTHONPATH": str(folder), **plugins}
