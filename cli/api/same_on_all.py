"""Arrays that all processes have: given on all of them, or on rank 0 alone."""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from mimcl.cli.errors import ConfigError
from mimcl.model.distributed import gather, gather_rows


def same_on_all(what: str, array: NDArray | None) -> NDArray | None:
    """Return a 1-d array that all connected processes gave, or rank 0 alone: it is sent to those that gave None.

    None if no process gave one.

    Raises ConfigError, on all of them, if they gave different arrays, or some gave none.
    """
    digests = gather("" if array is None else _digest(array))
    given = [rank for rank, digest in enumerate(digests) if digest]
    if not given:
        return None
    if given == [0] and len(digests) > 1:
        dtype = np.dtype(digests[0].split()[0])
        rows = np.empty(0, dtype) if array is None else array
        return gather_rows(torch.from_numpy(rows)).numpy()
    if array is None or len(given) < len(digests):
        raise ConfigError(
            f"{what} came from {_ranks(given)} of {len(digests)} processes; give them on all, or on rank 0"
        )
    if len(set(digests)) > 1:
        other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise ConfigError(
            f"{what} differ between ranks 0 and {other}; give the same on all, or on rank 0 alone and None elsewhere"
        )
    return array


def _digest(array: NDArray) -> str:
    return f"{array.dtype.str} {array.shape} {xxhash.xxh128_hexdigest(np.ascontiguousarray(array).data)}"


def _ranks(given: list[int]) -> str:
    return f"rank {given[0]}" if len(given) == 1 else f"ranks {', '.join(map(str, given))}"
