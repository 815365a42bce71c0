"""The process that runs parts of a half one after another and sends their results to its parent."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import gc
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gpu.bench import GPU, REHEARSAL, Bench
from gpu.child import START_SECONDS
from gpu.parts import Part

_MIN_SECONDS = 5.0  # a part is not started with less time left
_REHEARSAL_FACTOR = 3  # by which a rehearsal may exceed the limits: it may run on a busy machine
_VERSIONS = ("timm", "triton", "numpy", "nvidia-cudnn-cu13", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13")
_NEEDED = ("torchvision", "timm", "numpy", "xxhash", "pyarrow", "PIL", "safetensors", "typer", "rich", "cv2")
_NEEDED_BY_TESTS = ("pytest", "pytest_timeout", "hypothesis")


def work(request: dict[str, Any]) -> int:
    """Run `request["parts"]` and write events, one JSON object a line, to the file descriptor `request["events"]`.

    After a part that failed the next one runs, unless the device is unusable: then the process ends, and the parent
    starts another one.
    """
    events = os.fdopen(request["events"], "w", buffering=1)

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    faulthandler.enable()
    faulthandler.dump_traceback_later(START_SECONDS, exit=True)  # CUDA may hang before the first part begins
    scale = REHEARSAL if request["rehearse"] else GPU
    if request["rehearse"]:
        compile_quickly()
    if scale.device == "cuda" and not torch.cuda.is_available():
        send(event="no device")
        return 2
    send(event="ready", device=device_name(scale.device), versions=versions(), missing=missing(request["half"]))
    bench = Bench(scale, Path(request["folder"]), Path(request["artifacts"]))
    caches = Path(request["folder"]) / "inductor"
    for part in (Part(**part) for part in request["parts"]):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(caches / part.name.replace(" ", "-"))  # empty for each part
        part_limit = part.limit * (_REHEARSAL_FACTOR if request["rehearse"] else 1)
        limit = min(part_limit, request["deadline"] - time.monotonic())
        if limit < (part_limit if part.optional else _MIN_SECONDS):
            send(event="skipped", part=part.name)
            continue
        sys.stdout.flush()
        # Measured here: when the parent reads this event, the part may already have died and written its traceback.
        send(event="begin", part=part.name, limit=limit, log_start=os.fstat(sys.stdout.fileno()).st_size)
        faulthandler.dump_traceback_later(limit, exit=True)
        bench.deadline = time.monotonic() + limit
        try:
            module, function = part.target.split(":")
            for line in getattr(importlib.import_module(module), function)(bench):
                send(event="line", part=part.name, line=dataclasses.asdict(line))
        except Exception as error:
            traceback.print_exc()
            send(event="failed", part=part.name, reason=summary(error))
            error.__traceback__ = None  # its frames hold models and batches
            if part.retry_with:
                return 1
        else:
            send(event="end", part=part.name)
        if not is_usable(scale.device):
            return 1
    faulthandler.cancel_dump_traceback_later()
    return 0


def compile_quickly() -> None:
    """Make torch.compile trace without generating machine code, which takes minutes on a CPU."""
    torch.compile = functools.partial(torch.compile, backend="eager")


def summary(error: BaseException) -> str:
    """Describe the exception and its innermost frames in one line."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:400]} ({places})"


def is_usable(device: str) -> bool:
    """Return whether the device still computes: after some CUDA errors every later call of the process fails."""
    try:
        free()
        return torch.ones(1, device=device).add(1).item() == 2
    except Exception:
        return False


def free() -> None:
    """Release unused memory and compiled graphs."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def missing(half: str) -> list[str]:
    """Return the modules that a half uses and that cannot be imported."""
    names = (*_NEEDED, *_NEEDED_BY_TESTS, *(("nvidia.dali",) if half == "dali" else ()))
    return [name for name in names if not _is_importable(name)]


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
