"""Store the rows of a long array on disk in chunks, so that they survive a kill and need not fit in memory."""

from __future__ import annotations

import errno
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from mimcl.cli.console import format_bytes
from mimcl.pipeline.files import DataError, atomic_file, open_regular, remedy
from mimcl.pipeline.map_file import map_file, npy_view

BATCH = 64  # images that a feature extractor gets at a time
_MAX_CHUNK_BATCHES = 64  # 12.6 MB of ViT-B features
_DIGEST = 16  # bytes


class ChunkedArray:
    """An array with a file for each chunk of rows: npy followed by its xxh128 checksum (16 bytes).

    A chunk that is missing, damaged or of another shape reads as None, and is to be computed again.
    """

    def __init__(
        self, folder: Path, chunks: Sequence[range], dtype: DTypeLike, row_shape: tuple[int, ...] | None = None
    ) -> None:
        """`chunks` are the rows of each file. `row_shape` None accepts rows (D,) of any D."""
        self.folder, self.chunks = folder, chunks
        self._dtype, self._row_shape = np.dtype(dtype), row_shape

    def read(self, chunk: int) -> NDArray | None:
        """Verify the checksum of a chunk and return its rows, memory-mapped.

        Raises DataError if its file exists but cannot be opened.
        """
        path = self._path(chunk)
        try:
            with open_regular(path) as file:
                content = map_file(file)
        except OSError as error:
            if error.errno in (None, errno.ENOENT):  # None: not a regular file
                return None
            advice = remedy(error, "remove it to compute it again")
            raise DataError(f"{path} cannot be read ({error.strerror}); {advice}") from None
        array = content.slice(0, max(0, content.size - _DIGEST))
        if xxhash.xxh128_digest(array) != content.slice(array.size).to_pybytes():
            return None
        try:
            rows = npy_view(array)
        except ValueError:
            return None
        fits = len(rows) == len(self.chunks[chunk]) and rows.shape[1:] == (self._row_shape or rows.shape[1:2])
        return rows if fits and rows.dtype == self._dtype else None

    def write(self, chunk: int, rows: NDArray) -> None:
        """Write the rows of a chunk. Raises DataError when they cannot be written, for example to a full disk."""
        buffer = io.BytesIO()
        np.save(buffer, rows.astype(self._dtype, copy=False), allow_pickle=False)
        content = buffer.getbuffer()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path(chunk)) as file:
                file.write(content)
                file.write(xxhash.xxh128_digest(content))
        except OSError as error:
            size = format_bytes(len(content) / len(rows) * sum(map(len, self.chunks)))
            advice = remedy(error, f"make room ({size} in all)")
            raise DataError(
                f"cannot write to {self.folder} ({error.strerror}); {advice} and run the same command again to continue"
            ) from None

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{self.chunks[chunk].start:09d}.npy"


def feature_store(folder: Path, samples: int, width: int) -> ChunkedArray:
    """The float32 features (N, D) of a split of `samples` images, in chunks of whole batches."""
    # A small split too has enough chunks for several processes.
    rows = BATCH * min(_MAX_CHUNK_BATCHES, math.ceil(samples / (BATCH * 64)))
    chunks = [range(first, min(first + rows, samples)) for first in range(0, samples, rows)]
    return ChunkedArray(folder, chunks, np.float32, (width,))
