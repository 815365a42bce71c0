"""Features kept on the disk in blocks: no image is decoded twice, not by the next evaluator, not after a kill."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mimcl.cli.extract import BATCH
from mimcl.pipeline.files import DataError, atomic_file

_MOST_BATCHES = 64  # of a block: 12.6 MB of ViT-B's features
_NAME = "features"


class FeatureCache:
    """The features (N, D), float32, of a split's `samples` images by one encoder, a file a block of whole batches.

    A block that is missing, damaged or of another shape is `None`: it is to be made anew.
    """

    def __init__(self, folder: Path, samples: int, width: int) -> None:
        self.folder, self._samples, self._width = folder, samples, width
        # A small split has blocks enough for several processes too.
        self._rows = BATCH * min(_MOST_BATCHES, math.ceil(samples / (BATCH * 64)))
        self.blocks = math.ceil(samples / self._rows)

    def rows(self, block: int) -> range:
        """The sample ids of a block."""
        return range(block * self._rows, min((block + 1) * self._rows, self._samples))

    def read(self, block: int) -> NDArray[np.float32] | None:
        path = self._path(block)
        try:
            content = path.read_bytes()
            features = load(content[16:])[_NAME]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        sound = content[:16] == xxhash.xxh128_digest(content[16:])
        fits = features.dtype == np.float32 and features.shape == (len(self.rows(block)), self._width)
        return features if sound and fits else None

    def write(self, block: int, features: NDArray[np.float32]) -> None:
        """Raises DataError where there is no room."""
        content = save({_NAME: np.ascontiguousarray(features)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path(block)) as file:
                file.write(xxhash.xxh128_digest(content) + content)
        except OSError as error:
            gigabytes = 4e-9 * self._samples * self._width
            raise DataError(
                f"features cannot be written to {self.folder} ({error.strerror}); all of this split take "
                f"{gigabytes:.2g} GB; make room and go on with the same command"
            ) from None

    def _path(self, block: int) -> Path:
        # 16 bytes of checksum, then safetensors: which alone would not notice a flipped bit.
        return self.folder / f"{block * self._rows:09d}.features"
