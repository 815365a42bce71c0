"""Images with their prototypes in one file that is small enough to travel."""

from __future__ import annotations

import lzma
import tarfile
import tempfile
from pathlib import Path

from mimcl.api import build_prototypes, shard
from mimcl.pipeline.files import DataError, atomic_file, atomic_folder

_ROOM = 64e6  # bytes, for the checkout and the file together
_SHARDS, _SET = "shards", "shards/prototypes/default"


def prepare(images: Path, out: Path, features: str, k: int) -> None:
    """Write `out`, a tar compressed with xz, with shards/ and in it prototypes/default."""
    with tempfile.TemporaryDirectory(prefix="evidence-") as folder:
        shards = Path(folder) / "shards"
        shard(images, out=shards)
        build_prototypes(shards, features=features, k=k, decoder="reference")
        out.parent.mkdir(parents=True, exist_ok=True)
        # JPEGs of 32 pixels are mostly tables that all share, and a tar of them mostly headers: xz leaves an eighth.
        with atomic_file(out) as file, tarfile.open(fileobj=file, mode="w:xz", preset=6) as archive:
            archive.add(shards, _SHARDS, filter=_chosen)
    size = out.stat().st_size
    print(f"wrote {out}: {size / 1e6:.1f} MB" + ("" if size < _ROOM else ", too large to travel (64 MB with the rest)"))


def unpacked(data: Path, out: Path) -> Path:
    """Return the folder of shards in `data`, unpacked once into `out` if it is a file.

    Raises DataError for a file that `prepare` has not written.
    """
    if data.is_dir():
        return data
    folder = out / "data"
    if not folder.exists():
        out.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(folder) as unfinished, tarfile.open(data) as archive:
                archive.extractall(unfinished, filter="data")
        except (OSError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{data} cannot be unpacked ({reason}); make it with evidence.py prepare") from None
    return folder / _SHARDS


def _chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Skip what a build caches; remove who packed the files and when."""
    if member.name.startswith("shards/prototypes/") and not member.name.startswith(_SET):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
