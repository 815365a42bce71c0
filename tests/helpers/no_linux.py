"""Processes without DALI and without what Linux has in addition to other Unix systems, such as macOS."""

import os
import subprocess
import sys
from pathlib import Path

# Read by Python at its start. Libraries keep what they took from `os` before; torch and others read /proc in C++.
WITHOUT = """
import builtins, ctypes, fcntl, io, os, socket, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name == "nvidia.dali" else find(name, path, target)
)
for module, names in {
    os: "sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate memfd_create fdatasync RWF_NOWAIT O_DIRECT",
    fcntl: "F_OFD_SETLK F_OFD_SETLKW F_OFD_GETLK F_ADD_SEALS",
    socket: "TCP_USER_TIMEOUT TCP_KEEPIDLE",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

def hide(function):
    def hidden(path, *rest, **options):
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(("/proc/", "/sys/", "/dev/shm")):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith(("mimcl.", "pathlib", "shutil", "genericpath")):
                raise FileNotFoundError(2, "No such file or directory", str(path))
        return function(path, *rest, **options)
    return hidden

for module, name in ((builtins, "open"), (io, "open"), (os, "listdir"), (os, "statvfs"), (os, "stat")):
    setattr(module, name, hide(getattr(module, name)))
"""


def mimcl_without_linux(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, where also the file is that hides things."""
    (site := folder / "site").mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(WITHOUT)
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "mimcl.cli.main", *arguments]
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=280)
