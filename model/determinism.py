"""Makes a GPU compute the same bits from the same steps."""

from __future__ import annotations

import os

import torch
import torch._inductor.config


def use_deterministic_kernels() -> None:
    """Restricts torch to kernels that sum in a fixed order, for the rest of the process; some are slower.

    It covers eager kernels, cuBLAS, and the kernels that torch.compile generates, which are then chosen by rule and not
    by timing them. To be called before anything runs on the GPU: cuBLAS reads its setting when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch._inductor.config.deterministic = True
