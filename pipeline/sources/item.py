"""What packing needs of a source: items in the order they are packed; bytes are read only when asked for."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import xxhash

_MAX_BYTES = 2**31 - 1  # readers count in 32 bits; no image within the limit on pixels needs more


@dataclass(frozen=True)
class Item:
    """One candidate: its name relative to the source (recorded in the index), its label (-1 = none).

    `nbytes` is how large the image is in the source, exactly or, where only reading would tell, about; shards are cut
    by it before anything is read. `json` is what is packed beside the image as KEY.json, empty for nothing.
    """

    name: str
    label: int
    nbytes: int
    json: bytes = field(default=b"", kw_only=True)
    exact: ClassVar[bool] = True  # False where `nbytes` is an estimate

    def read(self) -> bytes:
        """The image's bytes. Raises OSError. Called in another process than the one that listed the source."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileItem(Item):
    """A file of its own."""

    file: Path

    def read(self) -> bytes:
        """The file's content. Raises OSError, also for what would never end or fit: a pipe, a device, over 2 GiB."""
        status = self.file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > _MAX_BYTES:
            raise OSError("larger than 2 GiB")
        return self.file.read_bytes()


@dataclass(frozen=True)
class RangeItem(Item):
    """Bytes [offset, offset + nbytes) of a larger file, as members of tars are."""

    file: Path
    offset: int

    def read(self) -> bytes:
        """The bytes. Raises OSError, also where the file ends before them."""
        if self.nbytes > _MAX_BYTES:
            raise OSError("larger than 2 GiB")
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, self.nbytes, self.offset)
        finally:
            os.close(descriptor)
        if len(data) < self.nbytes:
            raise OSError(f"{self.file} ends before it")
        return data


@dataclass
class Source:
    """Splits in the order they are packed; a label is a position in the classes.

    `modified` is when the newest of its files was changed, in ns since 1970: a source that changed is not gone on with.
    """

    splits: dict[str, list[Item]]
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was passed over, for the user to read
    modified: int = 0

    def items(self) -> int:
        """How many there are in all splits."""
        return sum(map(len, self.splits.values()))

    def digest(self) -> str:
        """xxh128 over splits, classes and each item's name, label, size and json: what would be packed."""
        hashed = xxhash.xxh128(repr(self.classes).encode())
        for split, items in self.splits.items():
            hashed.update(f"\n{split} {len(items)}\n".encode())
            for item in items:
                hashed.update(f"{item.name!r} {item.label} {item.nbytes}\n".encode())
                hashed.update(item.json)
        return hashed.hexdigest()
