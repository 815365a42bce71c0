"""Make GPU results reproducible bit for bit."""

from __future__ import annotations

import os

import torch


def use_deterministic_kernels() -> None:
    """Restrict torch to kernels that sum in a fixed order, for the rest of the process; some are slower.

    This covers eager kernels, cuBLAS, and the kernels that torch.compile generates, which are then selected by rule
    instead of by timing. Call it before anything runs on the GPU: cuBLAS reads its setting when it starts.
    """
    from torch._inductor import config  # takes seconds, which only a deterministic run needs

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    config.deterministic = True
