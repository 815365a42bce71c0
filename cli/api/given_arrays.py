"""Arrays that a program gives to a loader, brought to the host and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mimcl.cli.errors import ConfigError


def numbers(values: ArrayLike) -> NDArray[np.float32]:
    """Return scores as an array on the host. Raises ConfigError if they are not numbers."""
    scores = _on_host(values)
    if scores.dtype.kind not in "iufb":
        raise ConfigError(f"scores are of type {scores.dtype}; they must be numbers")
    return scores.astype(np.float32)


def ids_of(values: ArrayLike) -> NDArray[np.int64]:
    """Return sample ids as an array on the host. Raises ConfigError if they are not whole numbers."""
    ids = _on_host(values)
    if ids.dtype.kind not in "iu" and ids.size:
        raise ConfigError(f"sample_ids are of type {ids.dtype}; they must be whole numbers")
    return ids.astype(np.int64)


def _on_host(values: ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
