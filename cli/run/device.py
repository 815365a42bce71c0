"""Asks what this machine trains on. Torch, whose import takes seconds, is asked only where there may be a GPU."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

from mimcl.pipeline.cgroup import memory_limit, total_memory


@dataclass(frozen=True)
class Machine:
    """Whether there is a CUDA device, and its memory in bytes, of the smallest if there are several; or the host's."""

    cuda: bool
    memory: int

    @classmethod
    def this(cls) -> Machine:
        """Ask this machine."""
        if has_cuda():
            import torch

            devices = range(torch.cuda.device_count())
            return cls(True, min(torch.cuda.get_device_properties(device).total_memory for device in devices))
        total = total_memory()
        return cls(False, min(total, memory_limit() or total))


def has_cuda() -> bool:
    """Whether torch has a CUDA device."""
    if "torch" not in sys.modules and not _has_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _has_driver() -> bool:
    """Whether the driver of NVIDIA or AMD is there, without which torch finds no device."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
