"""Random numbers that are pure functions of a draw's key, on the device of the keys."""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA, _MIX_1, _MIX_2 = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Return `count` random numbers in [0, 1) per key, float64 (len(keys), count), of 53 bits, on the keys' device.

    They equal the numbers from the stream's own hash on the host.
    """
    places = torch.arange(count, device=keys.device)
    return _shift(mix64(keys[:, None] ^ places), 11).double() * 2.0**-53


def mix64(x: Tensor) -> Tensor:
    """Return a splitmix64 output per element of an int64 tensor, taken as 64 unsigned bits."""
    z = x + _GAMMA
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)  # torch's shift copies the sign bit
