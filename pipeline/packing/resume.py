"""Start a packing: check the output folder, and find out whether to start, to resume, or that all is packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

STAGING = ".packing"  # folder in the output folder for the finished parts of an unfinished packing
_PLAN = "plan.json"
_START_OVER = "give --overwrite to start over"


@contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Create `out` and lock it against other packing processes. Raises DataError."""
    if is_address(out):
        raise DataError(f"{out} is not a local folder; give a folder with --out and upload that")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out) as lock:
        if not lock.acquire(timeout_s=0):
            raise DataError(f"another process is packing into {out}; wait for it, or give another --out")
        yield


def packing_plan(source: Source, config: PackConfig) -> dict[str, Any]:
    """Return everything that determines the bytes to write."""
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


def start_or_resume(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Prepare out/.packing; return the content of dataset.json if everything is packed already, else None.

    Raises DataError if `out` has other files, or a packing of another source or with other settings, unless
    `overwrite` is given.
    """
    staging = out / STAGING
    started = _started_plan(staging)
    if started != plan and (overwrite or not _has_finished_parts(staging)):
        shutil.rmtree(staging, ignore_errors=True)
        started = None
    if overwrite:
        pass
    elif (out / "dataset.json").exists():
        description = _finished(out, plan)
        if started in (None, plan):  # killed just before removing it
            shutil.rmtree(staging, ignore_errors=True)
        return description
    elif started is not None and started != plan:
        raise DataError(f"{out}: {_difference(started, plan)}, or {_START_OVER}")
    elif any(path != staging for path in out.iterdir()) and not is_ready_to_move(staging):
        raise DataError(f"{out} is not empty; give another --out, or --overwrite to replace what was packed there")
    staging.mkdir(exist_ok=True)
    for leftover in staging.glob(".*.tmp"):  # of killed processes
        leftover.unlink(missing_ok=True)
    if _started_plan(staging) is None:
        write_json(staging / _PLAN, plan)
    return None


def is_ready_to_move(staging: Path) -> bool:
    """Whether all is packed and only has to be moved into place; some may have been moved already."""
    return (staging / "dataset.json").exists()


def clean_up(out: Path) -> None:
    """After a failure, remove what a later packing cannot resume from."""
    staging = out / STAGING
    if not _has_finished_parts(staging):
        shutil.rmtree(staging, ignore_errors=True)
    with suppress(OSError):  # not empty, a mount point, or in a folder of another user
        out.rmdir()


def _has_finished_parts(staging: Path) -> bool:
    return is_ready_to_move(staging) or any(path.suffix in (".tar", ".npy") for path in staging.glob("[!.]*"))


def _started_plan(staging: Path) -> dict[str, Any] | None:
    try:
        return json.loads((staging / _PLAN).read_bytes())
    except FileNotFoundError:
        return None


def _difference(started: dict[str, Any], plan: dict[str, Any]) -> str:
    """Say what differs, and what to do to resume."""
    if (started.get("source"), started.get("modified")) != (plan["source"], plan["modified"]):
        return "the source has changed since this packing was started, or is another one; restore it"
    name = next(name for name in plan if started.get(name) != plan[name])
    was, now = started.get(name), plan[name]
    if name in ("format", "pillow"):
        return f"this packing was started with {name} {was}, now it is {now}; restore that version"
    flag = f"--{name.replace('_', '-')}"
    return f"this packing was started with {flag} {was}, now it is {now}; give the same value"


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return dataset.json of a finished packing. Raises DataError unless it matches `plan` and is complete."""
    description = read_dataset(out)
    packed = description.get("packed", {})
    names = {"source": "source", "shard_mb": "shard_mb", "short_side": "short_side", "dedup": "dedup"}
    names["every_image_decoded"] = "decode"
    if any(packed.get(name) != plan[here] for name, here in names.items()):
        raise DataError(
            f"{out} is not empty: it was packed from other files (or these, before they changed) or with other "
            "settings; give another --out, or --overwrite to replace it"
        )
    if plan["modified"] > (out / "dataset.json").stat().st_mtime_ns:
        raise DataError(
            f"{out}: the source changed since it was packed (a file is newer); restore it, or {_START_OVER}"
        )
    for split, part in description["splits"].items():
        index = out / f"{split}.arrow"
        damaged = [] if index.exists() and file_digest(index) == part["index_xxh128"] else [index]
        for shard in part["shards"]:
            tar = out / shard["name"]
            if not (tar.exists() and tar.stat().st_size == shard["bytes"] and tar.with_suffix(".idx").exists()):
                damaged.append(tar)
        if damaged:
            raise DataError(f"{out} was packed, but {damaged[0].name} is damaged or missing; {_START_OVER}")
    return description
