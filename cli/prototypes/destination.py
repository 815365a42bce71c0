"""Where a prototype set is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mimcl.cli.prototypes.rank_zero import WRITE_ELSEWHERE
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.pipeline.files import atomic_folder, list_folder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.remote_folder import can_write, upload


@dataclass(frozen=True)
class Destination:
    """A set's folder: `out`, or NAME beside the shards; of shards at a URL in the cache, to be uploaded."""

    index: ShardIndex
    name: str
    out: Path | None
    overwrite: bool

    @property
    def folder(self) -> Path:
        return self.out or self.index.root / "prototypes" / self.name

    @property
    def uploads(self) -> str | None:
        """The URL of the shards beside which the set is uploaded."""
        return self.index.url if self.out is None else None

    def require_writable(self) -> None:
        """Raise PrototypeError if the shards are at a URL beside which nothing can be written."""
        if self.uploads and not can_write(self.uploads):
            raise PrototypeError(f"{self.index.shown} is read-only; {WRITE_ELSEWHERE}")

    def require_free(self) -> None:
        """Raise PrototypeError if the set exists, unless it is to be replaced, or if its folder has other files."""
        if out := self.out:
            if out.exists() and not out.is_dir():
                raise PrototypeError(f"{out} is a file; give a folder with --out")
            exists = (out / "prototypes.json").exists()
            if not exists and list_folder(out):
                raise PrototypeError(f"{out} has other files; give a new folder with --out")
        else:
            exists = self.index.has_prototypes(self.name)
        if exists and not self.overwrite:
            existing = self.out or self.index.at(f"prototypes/{self.name}")
            raise PrototypeError(f"{existing} exists; give another --name or --out, or --overwrite to replace it")

    def write(self, found: PrototypeSet) -> None:
        """Write the set with its gallery, complete or not at all. Raises OSError, DataError."""
        from mimcl.cli.prototypes.gallery import draw_gallery  # imports torch

        # A set in the cache may be left from one that is no longer beside the shards.
        with atomic_folder(self.folder, replace=self.overwrite or self.uploads is not None) as aside:
            found.save(aside)
            (aside / "gallery.png").write_bytes(draw_gallery(self.index, found))
        if self.uploads:
            upload(self.folder, f"{self.uploads}/prototypes")
