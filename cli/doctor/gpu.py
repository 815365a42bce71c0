"""The GPUs, their driver, and the engine that decodes JPEG."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mimcl.cli.doctor.findings import Finding, found_by

_HARDWARE, _NO_SUCH_ENGINE = 3, 7  # nvjpegBackend_t, nvjpegStatus_t
# Compute capabilities that have the engine, by NVIDIA's documentation of nvJPEG 13.2: Ampere's A100 and A30 (not its
# other GPUs), Hopper, Ada, Blackwell.
_WITH_ENGINE = {(8, 0), (8, 9), (9, 0), (10, 0), (10, 1), (10, 3), (11, 0), (12, 0), (12, 1)}


def gpus() -> list[Finding]:
    """Each GPU, the driver, and whether the first one has a JPEG engine."""
    return found_by("GPU", devices, "broken")


def devices() -> Iterator[Finding]:
    """See `gpus`."""
    import torch

    if not torch.cuda.is_available():
        if os.path.exists("/dev/nvidia0"):
            yield Finding(
                "GPU", "there is one, but torch cannot use it: compare the driver with torch's CUDA", "broken"
            )
        else:
            yield Finding("GPU", "no CUDA device", "info")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        text = (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} multiprocessors, "
            f"compute capability {about.major}.{about.minor}"
        )
        slow = "" if about.major >= 8 else "; bfloat16 is emulated before 8.0"
        yield Finding(f"GPU {number}", text + slow, "warning" if slow else "ok")
    yield from found_by("driver", smi)
    yield from found_by("JPEG engine", lambda: [jpeg_engine()])


def smi() -> Iterator[Finding]:
    """The driver's version, and what others do on the GPUs, by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("driver", "nvidia-smi is not here to ask", "info")
        return
    fields = "driver_version,utilization.gpu,memory.used"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    for number, line in enumerate(done.stdout.strip().splitlines()):
        version, busy, used = (part.strip() for part in line.split(","))
        text = f"{version}; GPU {number} is {busy} % busy, {used} MiB of it in use"
        yield Finding("driver", text, "warning" if busy.isdecimal() and int(busy) > 20 else "ok")


def jpeg_engine() -> Finding:
    """Asks nvJPEG itself for the engine; where that library is not found, goes by the GPU's generation."""
    import torch

    unused = "; mimcl decodes on the CUDA cores instead, whatever the batch"
    torch.cuda.init()
    if library := _nvjpeg():
        handle = ctypes.c_void_p()
        status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
        if status == 0:
            engines, cores = ctypes.c_uint(), ctypes.c_uint()
            library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
            library.nvjpegDestroy(handle)
            text = f"there, {engines.value} engines of {cores.value} cores, by nvJPEG"
            return Finding("JPEG engine", text + unused, "ok", {"engines": engines.value})
        if status == _NO_SUCH_ENGINE:
            return Finding("JPEG engine", "none, by nvJPEG; the CUDA cores decode", "info", {"engines": 0})
    there = torch.cuda.get_device_capability() in _WITH_ENGINE
    text = "likely there" if there else "likely none"
    return Finding("JPEG engine", f"{text}, by the GPU's generation; nvJPEG could not be asked", "info")


def _nvjpeg() -> ctypes.CDLL | None:
    for package in ("nvidia-nvjpeg", "nvidia-nvjpeg-cu13", "nvidia-nvjpeg-cu12"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libnvjpeg.so"):
                return ctypes.CDLL(str(Path(file.locate())))
    return None
