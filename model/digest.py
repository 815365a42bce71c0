"""Digest of a model's weights, to identify them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash
from torch import Tensor


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the xxh128 of the names and values of a state dict, in the order of the names: 32 hexadecimal digits."""
    digest = xxhash.xxh128()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
