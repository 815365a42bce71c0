"""Installed builds of NVIDIA DALI: mimcl works without one, and does not accept several.

All builds own the folder nvidia/dali: the last one installed overwrites the others, and removing one breaks the rest.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from mimcl.pipeline.files import DataError

_NAMES = [f"nvidia-dali-{kind}cuda{cuda}" for kind in ("", "nightly-", "weekly-") for cuda in (110, 120, 130)]


def dali_builds() -> dict[str, str]:
    """Return the names and versions of the installed builds."""
    found = {}
    for name in _NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def require_one_build() -> None:
    """Raise DataError if several builds are installed; says which to remove."""
    builds = list(dali_builds())
    if len(builds) > 1:
        kept = next((name for name in reversed(builds) if is_for_torch(name)), builds[-1])
        others = [name for name in builds if name != kept]
        raise DataError(
            f"{' and '.join(builds)} are installed and overwrite each other's files; run pip uninstall "
            f"{' '.join(others)} && pip install --force-reinstall --no-deps {kept}"
        )


def has_dali() -> bool:
    """Whether DALI is installed."""
    try:
        spec = find_spec("nvidia.dali")
    except ModuleNotFoundError:  # there is no nvidia either
        return False
    return spec is not None and spec.origin is not None  # otherwise only a folder remains


def is_for_torch(build: str) -> bool:
    """Whether the build is for the CUDA version of torch; any is where torch is built without CUDA."""
    return torch.version.cuda is None or f"-cuda{_major(torch.version.cuda)}" in build


def how_to_install() -> str | None:
    """Return the command that installs the build for this machine's torch; None if DALI has no build for the system."""
    for name in dali_builds():  # installed, but another build took its files along
        return f"pip install --force-reinstall --no-deps {name}"
    if sys.platform != "linux":
        return None
    cuda = torch.version.cuda
    return f"pip install 'mimcl[{f'cuda{_major(cuda)}' if cuda else 'cpu'}]'"


def _major(cuda: str) -> str:
    return cuda.split(".")[0]
