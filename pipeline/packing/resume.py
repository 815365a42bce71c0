"""The beginning of a packing: may it be written here, is it there already, or was it begun before?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL

from mimcl.pipeline.dataset_json import DATASET_FORMAT, read_dataset
from mimcl.pipeline.files import DataError, write_json
from mimcl.pipeline.folder_lock import FolderLock
from mimcl.pipeline.index import file_digest
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.remote.urls import is_address
from mimcl.pipeline.sources.item import Source

STAGING = ".packing"  # in the folder that is packed into: what is finished of a packing that is not
_PLAN = "plan.json"
_ANEW = "give --overwrite to begin anew"


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Makes `out`, and keeps other packings out of it while the block lasts."""
    if is_address(out):
        raise DataError(f"{out} is not on this machine; pack into a folder with --out, and upload that")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out) as lock:
        if not lock.acquire(timeout_s=0):
            raise DataError(f"another process is packing into {out}; wait for it, or give another --out")
        yield


def described(source: Source, config: PackConfig) -> dict[str, Any]:
    """All that decides which bytes are written."""
    return {
        "format": DATASET_FORMAT,
        "source": source.digest(),
        "modified": source.modified,
        "shard_mb": config.shard_mb,
        "short_side": config.short_side,
        "decode": config.decode,
        "dedup": config.dedup,
        "pillow": PIL.__version__ if config.short_side else None,
    }


def begin(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Makes out/.packing ready to go on in; returns what dataset.json holds where all of it is packed already.

    Raises DataError where `out` holds anything else, or a packing begun of another source or with other settings, and
    `overwrite` does not allow to replace it.
    """
    staging = out / STAGING
    begun = _begun(staging)
    if begun != plan and (overwrite or not _goes_on(staging)):
        shutil.rmtree(staging, ignore_errors=True)
        begun = None
    if overwrite:
        pass
    elif (out / "dataset.json").exists():
        description = _finished(out, plan)
        if begun in (None, plan):  # killed when nothing but this was left to do
            shutil.rmtree(staging, ignore_errors=True)
        return description
    elif begun is not None and begun != plan:
        raise DataError(f"{out}: {_difference(begun, plan)}, or {_ANEW}")
    elif any(path != staging for path in out.iterdir()) and not is_packed(staging):
        raise DataError(f"{out} is not empty; give another --out, or --overwrite to replace what was packed there")
    staging.mkdir(exist_ok=True)
    for aside in staging.glob(".*.tmp"):  # of processes that were killed
        aside.unlink(missing_ok=True)
    if _begun(staging) is None:
        write_json(staging / _PLAN, plan)
    return None


def is_packed(staging: Path) -> bool:
    """Whether nothing is left to do but moving it to its place, which may have begun."""
    return (staging / "dataset.json").exists()


def leave(out: Path) -> None:
    """After a failure: keeps what can be gone on with, and otherwise nothing."""
    staging = out / STAGING
    if not _goes_on(staging):
        shutil.rmtree(staging, ignore_errors=True)
    if not any(out.iterdir()):
        out.rmdir()


def _goes_on(staging: Path) -> bool:
    """Whether anything is finished there."""
    return is_packed(staging) or any(path.suffix in (".tar", ".npy") for path in staging.glob("[!.]*"))


def _begun(staging: Path) -> dict[str, Any] | None:
    try:
        return json.loads((staging / _PLAN).read_bytes())
    except FileNotFoundError:
        return None


def _difference(begun: dict[str, Any], plan: dict[str, Any]) -> str:
    """What to mend so that the packing can go on."""
    if (begun.get("source"), begun.get("modified")) != (plan["source"], plan["modified"]):
        return "the source changed since this packing was begun, or is another one; restore it"
    name = next(name for name in plan if begun.get(name) != plan[name])
    was, now = begun.get(name), plan[name]
    if name in ("format", "pillow"):
        return f"this packing was begun with {name} {was}, here it is {now}; restore that version"
    flag = f"--{name.replace('_', '-')}"
    return f"this packing was begun with {flag} {was}, now it is {now}; give the same"


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The description of what is packed in `out`. Raises DataError unless it is what `plan` says, and all there."""
    description = read_dataset(out)
    packed = description.get("packed", {})
    names = {"source": "source", "shard_mb": "shard_mb", "short_side": "short_side", "dedup": "dedup"}
    names["every_image_decoded"] = "decode"
    if any(packed.get(name) != plan[here] for name, here in names.items()):
        raise DataError(
            f"{out} is not empty: it was packed of other files (or of these, before they changed) or with other "
            "settings; give another --out, or --overwrite to replace it"
        )
    if plan["modified"] > (out / "dataset.json").stat().st_mtime_ns:
        raise DataError(f"{out}: the source changed since it was packed: a file in it is newer; restore it, or {_ANEW}")
    for split, part in description["splits"].items():
        index = out / f"{split}.arrow"
        damaged = [] if index.exists() and file_digest(index) == part["index_xxh128"] else [index]
        for shard in part["shards"]:
            tar = out / shard["name"]
            if not (tar.exists() and tar.stat().st_size == shard["bytes"] and tar.with_suffix(".idx").exists()):
                damaged.append(tar)
        if damaged:
            raise DataError(f"{out} was packed, but {damaged[0].name} is damaged or missing; {_ANEW}")
    return description
