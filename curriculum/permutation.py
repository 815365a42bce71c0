"""A keyed bijection of 0..n-1, evaluated point by point: no shuffled list is stored.

An alternating Feistel network (Luby, Rackoff 1988) on exactly ceil(log2 n) bits, with cycle walking (Black, Rogaway
2002): a value of n or more is enciphered again until it lies below n, less than twice on average. Halves have few
bits, so each round's function is a table of hashes that fits the CPU cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimcl.curriculum.hashing import Hash64

_ROUNDS = 8  # each half is changed four times
_CHUNK = 1 << 15  # values per chunk: 256 KB, which fits the L2 cache


class KeyedPermutation:
    """The bijection of 0..n-1 given by a 64-bit `key`; call it with positions to get their images."""

    def __init__(self, n: int, key: int, hash64: Hash64) -> None:
        bits = (n - 1).bit_length()
        self.n = n
        self._low_bits = (bits + 1) // 2
        self._low_mask = (1 << self._low_bits) - 1
        high_mask = ((1 << bits) - 1) ^ self._low_mask
        # Even rounds change the high half by a function of the low half, odd rounds the reverse. Each round is its own
        # inverse, so the network is a bijection for any tables.
        self._tables = []
        for number in range(_ROUNDS):
            size, mask = (self._low_mask + 1, high_mask) if number % 2 == 0 else (1 << (bits // 2), self._low_mask)
            self._tables.append(hash64(key, np.arange(size), number).astype(np.int64) & mask)

    def __call__(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The images of `positions`, integers in [0, n), shape (k,)."""
        images = np.array(positions, np.int64)
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            self._encipher(part)
            outside = np.flatnonzero(part >= self.n)
            while len(outside):
                walked = self._encipher(part[outside])
                part[outside] = walked
                outside = outside[walked >= self.n]
        return images

    def _encipher(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Apply all rounds in place."""
        half, change = np.empty_like(values), np.empty_like(values)
        for number, table in enumerate(self._tables):
            if number % 2 == 0:
                np.bitwise_and(values, self._low_mask, out=half)
            else:
                np.right_shift(values, self._low_bits, out=half)
            np.take(table, half, out=change, mode="clip")  # always in range: "clip" spares numpy a buffer
            np.bitwise_xor(values, change, out=values)
        return values
