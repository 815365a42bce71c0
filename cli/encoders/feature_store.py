"""Rows of a long array in files of their own, so that what was made stays made and need not lie in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from mimcl.pipeline.files import DataError, atomic_file, open_regular

_DIGEST = 16  # bytes


class RowParts:
    """A file for each stretch of rows: npy, and behind it 16 bytes of xxh128.

    A part that is missing, damaged or of another shape is `None`: it is to be made anew. A row has the shape
    `row_shape`; None takes rows (D,) of any D.
    """

    def __init__(
        self, folder: Path, parts: Sequence[range], kind: DTypeLike, row_shape: tuple[int, ...] | None = None
    ) -> None:
        self.folder, self.parts = folder, parts
        self._kind, self._row_shape = np.dtype(kind), row_shape

    def read(self, part: int) -> NDArray | None:
        """The rows, memory-mapped, once their checksum was compared."""
        path = self._path(part)
        try:
            with open_regular(path) as file:
                content = np.memmap(file, mode="r")
            if xxhash.xxh128_digest(content[:-_DIGEST]) != content[-_DIGEST:].tobytes():
                return None
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        fits = len(rows) == len(self.parts[part]) and rows.shape[1:] == (self._row_shape or rows.shape[1:2])
        return rows if fits and rows.dtype == self._kind else None

    def write(self, part: int, rows: NDArray) -> None:
        """Raises DataError where there is no room."""
        file = io.BytesIO()
        np.save(file, rows.astype(self._kind, copy=False), allow_pickle=False)
        content = file.getbuffer()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path(part)) as file:
                file.write(content)
                file.write(xxhash.xxh128_digest(content))
        except OSError as error:
            gigabytes = 1e-9 * len(content) / len(rows) * sum(map(len, self.parts))
            raise DataError(
                f"{self.folder} cannot be written to ({error.strerror}); all of it takes {gigabytes:.2g} GB; make room "
                "and go on with the same command"
            ) from None

    def _path(self, part: int) -> Path:
        return self.folder / f"{self.parts[part].start:09d}.npy"
