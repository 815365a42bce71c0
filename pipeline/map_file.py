"""Memory maps that keep no file descriptor, however many files are mapped."""

from __future__ import annotations

import math
import os
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mimcl.pipeline.files import EXHAUSTED, DataError


def map_file(file: BinaryIO) -> pa.Buffer:
    """Map an open file read-only; the map lasts as long as the buffer and views of it, also if the file is closed.

    numpy's and Python's own maps each keep a duplicate of the descriptor. Raises OSError, and DataError if memory or
    descriptors are exhausted.
    """
    try:
        # The file that is open, even if its path has been replaced or is not UTF-8, as Arrow would encode it.
        with pa.memory_map(f"/dev/fd/{file.fileno()}") as mapped:
            return mapped.read_buffer()
    except OSError as error:
        if not error.errno:
            raise
        reason = os.strerror(error.errno)  # Arrow's own words name another path
        if error.errno in EXHAUSTED:
            raise DataError(f"{file.name} cannot be mapped ({reason}); {EXHAUSTED[error.errno]}") from error
        raise OSError(error.errno, reason, file.name) from error


def npy_view(content: pa.Buffer) -> NDArray:
    """The array in an npy file, as a view of its content. Raises ValueError if it is damaged or of Python objects."""
    stream = pa.BufferReader(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
    values = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
    return values.reshape(shape, order="F" if by_column else "C")
