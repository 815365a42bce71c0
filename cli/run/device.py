"""Asks what this machine trains on. Torch, whose import takes seconds, is asked only where there may be a GPU."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


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
