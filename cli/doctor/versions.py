"""Which libraries are installed, and whether they fit mimcl and one another."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mimcl.cli.doctor.findings import Finding, found_by

_SHOWN = ("torch", "torchvision", "timm", "nvidia-dali", "faiss")  # by their beginnings; of the others the number


def versions() -> list[Finding]:
    """Python, the libraries that mimcl names, and the CUDA builds among them."""
    return [
        *found_by("Python", python),
        *found_by("libraries", lambda: libraries(metadata.requires("mimcl") or [])),
        *found_by("CUDA", cuda_builds),
    ]


def python() -> Iterator[Finding]:
    """Python against what mimcl's metadata ask for."""
    try:
        wanted = metadata.metadata("mimcl")["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding("Python", platform.python_version(), "info")
        return
    fits = platform.python_version() in SpecifierSet(wanted)
    yield Finding("Python", f"{platform.python_version()} (needs {wanted})", "ok" if fits else "broken")


def libraries(requirements: Iterable[str]) -> Iterator[Finding]:
    """Each requirement that counts on this machine: the important ones and the broken ones in a line of their own.

    Without DALI mimcl works, with Pillow: that it is missing is a warning.
    """
    others = 0
    for line in requirements:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        needs = f"needs {wanted.specifier}" if wanted.specifier else "any version"
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            mark = "warning" if wanted.name.startswith("nvidia-dali") else "broken"
            yield Finding(wanted.name, f"missing ({needs}): pip install '{wanted.name}{wanted.specifier}'", mark)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            text = f"{version} does not fit ({needs}): pip install '{wanted.name}{wanted.specifier}'"
            yield Finding(wanted.name, text, "broken", {"version": version})
        elif wanted.name.startswith(_SHOWN):
            yield Finding(wanted.name, f"{version} ({needs})", "ok", {"version": version})
        else:
            others += 1
    yield Finding("other libraries", f"{others} as mimcl needs them")


def cuda_builds() -> Iterator[Finding]:
    """What torch, DALI and the driver say of CUDA, and whether that goes together."""
    import torch

    built = torch.version.cuda
    if built is None:
        yield Finding("torch's CUDA", "none: this torch is built for the CPU alone", "info")
    else:
        cudnn, nccl = torch.backends.cudnn.version(), torch.distributed.is_nccl_available()
        beside = f"cuDNN {cudnn}, " + ("nccl " + ".".join(map(str, torch.cuda.nccl.version())) if nccl else "no nccl")
        yield Finding("torch's CUDA", f"{built}, {beside}", "ok", {"cuda": built, "cudnn": cudnn})
    yield from found_by("driver's CUDA", lambda: [driver(built)])
    yield from found_by("DALI's CUDA", lambda: [dali(built)])
    yield from found_by("faiss", lambda: [faiss_gpus()])


def driver(built: str | None) -> Finding:
    """The newest CUDA that the driver can run, against the one that torch was built for."""
    name = "driver's CUDA"
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(name, "no NVIDIA driver", "info")
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return Finding(name, "the driver does not answer", "warning")
    found = (number.value // 1000, number.value % 1000 // 10)
    text, numbers = "{}.{}".format(*found), {"cuda": "{}.{}".format(*found)}
    # Within a major version a newer toolkit runs on an older driver.
    if built and found[0] < int(built.partition(".")[0]):
        return Finding(name, f"{text} is older than torch's {built}: update the driver", "broken", numbers)
    return Finding(name, text, "ok", numbers)


def dali(built: str | None) -> Finding:
    """The CUDA that the installed DALI was built for, by the name of its package."""
    name = "DALI's CUDA"
    for package in metadata.distributions():
        called = (package.metadata["Name"] or "").lower().replace("_", "-")
        if kind := re.fullmatch(r"nvidia-dali-cuda(\d+)0", called):
            import mimcl.pipeline.dali  # noqa: F401 - does it load?

            if built and built.partition(".")[0] != kind[1]:
                text = f"{kind[1]}, torch's is {built}: pip install nvidia-dali-cuda{built.partition('.')[0]}0"
                return Finding(name, text, "warning")
            return Finding(name, f"{kind[1]}, as torch's" if built else kind[1])
    return Finding(name, "DALI is missing: images are decoded by Pillow", "warning")


def faiss_gpus() -> Finding:
    """Whether faiss sees as many GPUs as torch."""
    import faiss
    import torch

    seen, there = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0, torch.cuda.device_count()
    text = f"sees {seen} GPUs, torch {there}"
    if seen == there:
        return Finding("faiss", text)
    return Finding("faiss", f"{text}: prototypes are clustered on the CPU, which is slower, not worse", "info")
