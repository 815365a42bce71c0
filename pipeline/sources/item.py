"""A source is what packing reads: items in the order they are packed, their bytes read only on request."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import xxhash

from mimcl.pipeline.files import open_descriptor

MAX_BYTES = 2**31 - 1  # of an image: readers count in 32 bits


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source: its name relative to the source (recorded in the index) and its label (-1 = none).

    `nbytes` is the image's size in the source, by which shards are cut before anything is read; an estimate unless
    `exact`. `json` is packed beside the image as KEY.json unless it is empty.
    """

    name: str
    label: int
    nbytes: int
    json: bytes = field(default=b"", kw_only=True)
    exact: ClassVar[bool] = True  # False where `nbytes` is an estimate

    def read(self) -> bytes:
        """Return the image's bytes. Raises OSError. Called in another process than the one that listed the source."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FileItem(Item):
    """An image in its own file."""

    file: Path

    def read(self) -> bytes:
        """Return the file's content. Raises OSError, also for pipes, devices and files over 2 GiB."""
        status = self.file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise OSError("larger than 2 GiB")
        with open(self.file, "rb", opener=open_descriptor) as file:
            return file.read()


@dataclass(frozen=True, slots=True)
class RangeItem(Item):
    """Bytes [offset, offset + nbytes) of a larger file, such as a member of a tar."""

    file: Path
    offset: int

    def read(self) -> bytes:
        """Return the bytes. Raises OSError, also if the file is too short."""
        if self.nbytes > MAX_BYTES:
            raise OSError("larger than 2 GiB")
        descriptor = open_descriptor(self.file, os.O_RDONLY)
        try:
            data = os.pread(descriptor, self.nbytes, self.offset)
        finally:
            os.close(descriptor)
        if len(data) < self.nbytes:
            raise OSError(f"{self.file} is truncated")
        return data


@dataclass
class Source:
    """Splits in the order they are packed; a label is a position in `classes`.

    `modified` is the time of the newest file in ns since 1970; packing does not resume with a source that changed.
    """

    splits: Mapping[str, Sequence[Item]]
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for the user, such as what was skipped
    modified: int = 0

    @property
    def num_items(self) -> int:
        """Number of items in all splits."""
        return sum(map(len, self.splits.values()))

    def digest(self) -> str:
        """Return the xxh128 of splits, classes and each item's name, label, size and json."""
        hashed = xxhash.xxh128(repr(self.classes).encode())
        for split, items in self.splits.items():
            hashed.update(f"\n{split} {len(items)}\n".encode())
            for item in items:
                hashed.update(f"{item.name!r} {item.label} {item.nbytes}\n".encode())
                hashed.update(item.json)
        return hashed.hexdigest()
