"""Pack a source into webdataset shards with DALI's index and ours: the same input gives the same bytes.

That holds for any number of processes, and if they are killed and restarted: each shard is one job, either finished or
not, and its content depends only on the source and the settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import xxhash

from mimcl.pipeline.files import DataError, remedy, write_json, write_json_lines
from mimcl.pipeline.packing.cuts import find_cuts
from mimcl.pipeline.packing.duplicates import find_duplicates, hash_jobs
from mimcl.pipeline.packing.finish import move_into_place, write_description
from mimcl.pipeline.packing.jobs import (
    HashJob,
    PackedShard,
    ShardJob,
    hash_items,
    is_complete,
    load_packed_shard,
    pack_shard,
)
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.process_pool import run
from mimcl.pipeline.packing.resume import (
    STAGING,
    clean_up,
    is_ready_to_move,
    locked_output,
    packing_plan,
    start_or_resume,
)
from mimcl.pipeline.sources.item import Item, Source

__all__ = ["SINGLE_PROCESS", "PackConfig", "RankZeroError", "Ranks", "pack"]

_MAX_ITEMS = 10**9  # of a split: keys have nine digits


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `size` processes that pack together.

    `broadcast(text)` returns rank 0's text on every rank, and so is also a barrier. `require_equal(what, digest)`
    raises unless the digest is the same on all ranks.
    """

    rank: int = 0
    size: int = 1
    broadcast: Callable[[str], str] = str
    require_equal: Callable[[str, str], None] = lambda what, digest: None


SINGLE_PROCESS = Ranks()


class RankZeroError(DataError):
    """Rank 0's error, raised on another rank."""


def pack(
    source: Source,
    out: Path,
    config: PackConfig,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None],
    on_message: Callable[[str], None] = lambda line: None,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Write shards, indices, rejected.jsonl and, last, dataset.json to `out`; return the content of dataset.json.

    After a kill or an error the same call resumes and writes the same bytes; until all is packed, `out` keeps what it
    held before, and a folder .packing. If everything is packed already, nothing is done. `on_progress(n)` is called
    for each n further items of this rank; the sum over a rank is its even share (n may be negative at the end). With
    `dedup` every item counts twice, hashed and packed. `on_message(line)` gets lines for the user. Raises DataError if
    `out` has other files, if the source has changed since packing started, if a split has no file or no usable image,
    or if the disk is full.
    """
    _require_files(source)
    first = ranks.rank == 0
    with _one_line_errors(out), locked_output(out) if first else nullcontext(), _cleaned_up(out if first else None):
        plan = packing_plan(source, config)
        ranks.require_equal("what is to be packed", xxhash.xxh128_hexdigest(json.dumps(plan).encode()))
        staging = out / STAGING
        done, ready_to_move = _on_rank_zero(
            ranks, lambda: (start_or_resume(out, plan, overwrite), is_ready_to_move(staging))
        )
        if done:
            on_message(f"already packed into {out}: nothing to do")
            return done
        layout = _layout(source, staging, config, on_progress, ranks)
        if left_out := sum(map(len, layout["left_out"].values())) // ranks.size:
            on_progress(left_out)
        jobs = _shard_jobs(source, staging, config, layout)
        if not ready_to_move:
            count = _pack_share(list(chain(*jobs.values())), config, on_progress, on_message, ranks)
            if uneven := _share(source, ranks) - left_out - count:
                on_progress(uneven)
            ranks.broadcast("")
        return _on_rank_zero(ranks, lambda: _finish(source, out, plan, jobs, layout))


def _require_files(source: Source) -> None:
    """Raise DataError if a split has no files."""
    counts = {split: len(items) for split, items in source.splits.items()}
    if empty := next((split for split, count in counts.items() if not count), None):
        others = ", ".join(f"{count:,} in {split}" for split, count in counts.items() if count) or "none elsewhere"
        advice = "fill it" if empty == "train" else f"fill it, or remove {empty}/ from the source"
        raise DataError(f"{empty} has no files ({others}); {advice}")


def _share(source: Source, ranks: Ranks) -> int:
    """Return the number of items of a rank, rounded up."""
    return -(-source.num_items // ranks.size)


def _on_rank_zero(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Call `work` on rank 0; return its result on every rank, or raise its DataError (RankZeroError elsewhere)."""
    result, error = None, None
    if ranks.rank == 0:
        try:
            result = work()
        except DataError as raised:
            error = raised
    result, message = json.loads(ranks.broadcast(json.dumps([result, error and str(error)])))
    if error:
        raise error
    if message:
        raise RankZeroError(message)
    return result


def _layout(
    source: Source, staging: Path, config: PackConfig, on_progress: Callable[[int], None], ranks: Ranks
) -> dict[str, Any]:
    """Return which positions of the source to skip, and where shards begin in the rest."""
    hashing = hash_jobs(source.splits, staging) if config.dedup else []
    if config.dedup:
        mine = [job for job in hashing[ranks.rank :: ranks.size] if not job.path.exists()]
        on_progress(_share(source, ranks) - sum(len(job.items) for job in mine))
        run(hash_items, mine, len(mine), _workers(config, mine), on_progress)
        ranks.broadcast("")

    def decide() -> dict[str, Any]:
        path = staging / "layout.json"
        if path.exists():
            return json.loads(path.read_bytes())
        left_out, rows = find_duplicates(source.splits, hashing)
        if config.dedup:
            write_json_lines(staging / "duplicates.jsonl", rows)
        layout = {
            "left_out": left_out,
            "across_splits": sum(not row["dropped"] for row in rows),
            "cuts": {
                split: find_cuts(_without(items, left_out[split]), config) for split, items in source.splits.items()
            },
        }
        write_json(path, layout)
        return layout

    return _on_rank_zero(ranks, decide)


def _without(items: Sequence[Item], positions: list[int]) -> Sequence[Item]:
    left_out = set(positions)
    return [item for position, item in enumerate(items) if position not in left_out] if left_out else items


def _shard_jobs(source: Source, staging: Path, config: PackConfig, layout: dict[str, Any]) -> dict[str, list[ShardJob]]:
    jobs = {}
    for split, items in source.splits.items():
        kept = _without(items, layout["left_out"][split])
        if len(kept) > _MAX_ITEMS:
            raise DataError(f"{split} has more than 10^9 images; pack it as several data sets")
        jobs[split] = [
            ShardJob(staging / f"{split}-{number:06d}.tar", first, kept[first:end], config)
            for number, (first, end) in enumerate(pairwise(layout["cuts"][split]))
        ]
    return jobs


def _pack_share(
    jobs: list[ShardJob],
    config: PackConfig,
    on_progress: Callable[[int], None],
    on_message: Callable[[str], None],
    ranks: Ranks,
) -> int:
    """Pack the unfinished shards of this rank; return the number of items in all its shards."""
    mine = jobs[ranks.rank :: ranks.size]
    waiting = [job for job in mine if not is_complete(load_packed_shard(job.tar))]
    items = sum(len(job.items) for job in mine)
    if len(waiting) < len(mine):
        on_message(f"resuming: {len(mine) - len(waiting):,} of {len(mine):,} shards are finished")
        on_progress(items - sum(len(job.items) for job in waiting))
    run(pack_shard, waiting, len(waiting), _workers(config, waiting), on_progress)
    return items


def _workers(config: PackConfig, jobs: Sequence[ShardJob | HashJob]) -> int:
    return config.workers or config.workers_for(sum(item.nbytes for job in jobs for item in job.items))


def _finish(
    source: Source, out: Path, plan: dict[str, Any], jobs: dict[str, list[ShardJob]], layout: dict[str, Any]
) -> dict[str, Any]:
    staging = out / STAGING
    ready_to_move = is_ready_to_move(staging)  # then some shards may have been moved already
    shards: dict[str, list[PackedShard]] = {split: [] for split in jobs}
    for split, of_split in jobs.items():
        for job in of_split:
            shard = load_packed_shard(job.tar)
            if shard is None or not (ready_to_move or is_complete(shard)):
                raise DataError(
                    f"{job.tar} was packed by another process and was not found; --out must be a folder that all share"
                )
            shards[split].append(shard)
    if ready_to_move:
        description = json.loads((staging / "dataset.json").read_bytes())
    else:
        extra: dict[str, Any] = {"json": any(item.json for items in source.splits.values() for item in items)}
        if plan["dedup"]:
            extra["duplicates"] = sum(map(len, layout["left_out"].values()))
            extra["across_splits"] = layout["across_splits"]
        description = write_description(staging, shards, source.classes, plan, extra)
    move_into_place(out, staging, shards, plan["dedup"], plan["modified"])
    return description


@contextmanager
def _one_line_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"packing into {out} failed ({error.strerror or error}); {remedy(error, 'free some space')}, then run the "
            "same command again to resume"
        ) from error


@contextmanager
def _cleaned_up(out: Path | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if out is not None:
            clean_up(out)
        raise
