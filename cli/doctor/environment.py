"""Check installed libraries and GPUs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement

from mimcl.cli.doctor.findings import Finding, found_by
from mimcl.pipeline.files import DataError

_LISTED = ("torch", "timm", "faiss")  # prefixes of the libraries whose versions are shown


def versions() -> list[Finding]:
    """Compare installed libraries with the requirements of mimcl, and report the build of DALI."""
    found = found_by("libraries", lambda: libraries(metadata.requires("mimcl") or []))
    return found + found_by("DALI", dali)


def libraries(requirements: Iterable[str]) -> Iterator[Finding]:
    """Report requirements that are missing or have the wrong version, then the main versions in one line."""
    found = {"Python": platform.python_version()}
    for line in requirements:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        install = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding(wanted.name, f"missing; {install}", "broken")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            text = f"{version} does not satisfy {wanted.specifier}; {install}"
            yield Finding(wanted.name, text, "broken", {"version": version})
        if wanted.name.startswith(_LISTED):
            found[wanted.name] = version
    yield Finding("versions", ", ".join(f"{name} {version}" for name, version in found.items()), "ok", found)


def dali() -> Iterator[Finding]:
    """Report the build of DALI, which is optional: Pillow can decode instead."""
    import torch

    from mimcl.pipeline.dali_builds import dali_builds, has_dali, how_to_install, is_for_torch, require_one_build

    try:
        require_one_build()
    except DataError as error:
        yield Finding("DALI", str(error), "broken")
        return
    if not has_dali():
        text, how = "not installed, Pillow decodes instead", how_to_install()
        if how:
            yield Finding("DALI", f"{text}, which is slower: {how}", "warning")
        else:
            yield Finding("DALI", f"{text}: DALI has no build for {sys.platform}", "info")
        return
    for name, version in dali_builds().items():
        text, numbers = f"{name} {version}", {"build": name, "version": version}
        if is_for_torch(name):
            yield Finding("DALI", text, "ok", numbers)
        else:
            text += f", but torch is built for CUDA {torch.version.cuda}; pip uninstall {name}, and run this again"
            yield Finding("DALI", text, "warning", numbers)


def gpus() -> list[Finding]:
    """Check that torch can use each GPU, and that it is free."""
    return found_by("GPU", _gpus, "broken")


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if not os.path.exists("/dev/nvidia0"):
            yield Finding("GPU", "no CUDA device; training runs on the CPU", "info")
            return
        torch.cuda.init()  # its error says why torch cannot use the GPU, for example because the driver is too old
        raise RuntimeError("there is a GPU, but torch cannot use it; update the driver, or install a matching torch")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        text = f"{properties.name}, {total / 2**30:.0f} GiB, {free / total:.0%} free"
        problems = []
        if properties.major < 8:
            problems.append("bfloat16 is emulated (compute capability below 8.0): --set trainer.precision=float32")
        if free < 0.8 * total:
            problems.append("other processes use its memory")
        text = "; ".join([text, *problems])
        yield Finding(f"GPU {number}", text, "warning" if problems else "ok", {"total": total, "free": free})
