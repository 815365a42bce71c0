"""Random micro-batches in memory, for timing training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimcl.pipeline.augment import STREAM_MASK, hash64


@dataclass
class StepBatch:
    """A micro-batch of n draws as the Trainer takes it: uint8 (n, 3, H, W), int64 (n,), and the draw after it."""

    images: Tensor
    keys: Tensor
    position: int
    bad: Sequence[Any] = ()


def random_images(count: int, size: int, device: torch.device) -> Tensor:
    """Return uniform noise, uint8 (count, 3, size, size)."""
    bits = hash64(0, np.arange(count * 3 * size**2), 9)
    return torch.from_numpy((bits >> np.uint64(56)).astype(np.uint8)).view(count, 3, size, size).to(device)


def mask_keys(count: int, device: torch.device | str, seed: int = 0) -> Tensor:
    """Return the mask keys of draws 0 ... count - 1, int64 (count,)."""
    return torch.from_numpy(hash64(seed, np.arange(count), STREAM_MASK).view(np.int64)).to(device)
