"""Packs a source into webdataset shards with DALI's and our own index: same input, same bytes.

However many processes do it, and however often they are killed and started again: one shard is one job, which is
finished or not begun, and what it holds depends on the source and the settings alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from mimcl.pipeline.files import DataError, write_json, write_json_lines
from mimcl.pipeline.packing.cuts import cuts
from mimcl.pipeline.packing.duplicates import find_duplicates, hash_jobs
from mimcl.pipeline.packing.finish import describe, move
from mimcl.pipeline.packing.jobs import ShardJob, hash_items, is_whole, pack_shard, packed_shard
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.process_pool import run
from mimcl.pipeline.packing.resume import STAGING, begin, claimed, described, is_packed, leave
from mimcl.pipeline.sources.item import Item, Source

__all__ = ["ALONE", "FirstFailed", "PackConfig", "Ranks", "pack"]

_MOST = 10**9  # items of a split: keys have nine digits


@dataclass(frozen=True)
class Ranks:
    """Which of `size` processes that pack together this one is.

    `from_first(text)` gives rank 0's text on every rank; so it is also where they wait for one another. `agree(what,
    digest)` raises unless all have the same.
    """

    rank: int = 0
    size: int = 1
    from_first: Callable[[str], str] = str
    agree: Callable[[str, str], None] = lambda what, digest: None


ALONE = Ranks()


class FirstFailed(DataError):
    """Rank 0's error, on another rank."""


def pack(
    source: Source,
    out: Path,
    config: PackConfig,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None],
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Writes shards, indices, rejected.jsonl and, last, dataset.json to `out`; returns what dataset.json holds.

    Killed or failed, the same call goes on where it was and comes to the same bytes; until all is packed, `out` holds
    what it held before and a folder .packing. Where all is packed already nothing is done. `on_progress(n)` is called
    whenever n more items have been dealt with, of this rank's, whose shares count as even in the end (n may be negative
    then); with `dedup` every item counts twice, hashed and packed.
    `say(line)` tells of what was found there. Raises DataError when `out` holds something else, when the source
    changed since the packing was begun or changes meanwhile, when nothing of a split is usable, when a disk is full.
    """
    if empty := [split for split, items in source.splits.items() if not items]:
        raise DataError(f"none of the 0 files of {empty[0]} is a usable image")
    first = ranks.rank == 0
    with _in_one_line(out), claimed(out) if first else nullcontext(), _left_in_order(out) if first else nullcontext():
        plan = described(source, config)
        ranks.agree("what is to be packed", xxhash.xxh128_hexdigest(json.dumps(plan).encode()))
        staging = out / STAGING
        done, moving = _of_first(ranks, lambda: (begin(out, plan, overwrite), is_packed(staging)))
        if done:
            say(f"already packed into {out}: nothing to do")
            return done
        layout = _layout(source, staging, config, on_progress, ranks)
        if left_out := sum(map(len, layout["left_out"].values())) // ranks.size:
            on_progress(left_out)
        jobs = _jobs(source, staging, config, layout)
        if not moving:
            count = _pack_share([job for found in jobs.values() for job in found], config, on_progress, say, ranks)
            if uneven := -(-source.num_items // ranks.size) - left_out - count:
                on_progress(uneven)
            ranks.from_first("")
        return _of_first(ranks, lambda: _finish(source, out, plan, jobs, layout))


def _of_first(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Rank 0 does it; its result, or its DataError as FirstFailed, is every rank's."""
    found, problem = None, None
    if ranks.rank == 0:
        try:
            found = work()
        except DataError as error:
            problem = error
    found, said = json.loads(ranks.from_first(json.dumps([found, problem and str(problem)])))
    if problem:
        raise problem
    if said:
        raise FirstFailed(said)
    return found


def _layout(
    source: Source, staging: Path, config: PackConfig, on_progress: Callable[[int], None], ranks: Ranks
) -> dict[str, Any]:
    """Where shards are cut, and what is left out before: positions in the source's lists."""
    hashing = hash_jobs(source.splits, staging) if config.dedup else []
    if config.dedup:
        mine = [job for job in hashing[ranks.rank :: ranks.size] if not job.path.exists()]
        waiting = sum(len(job.items) for job in mine)
        on_progress(-(-source.num_items // ranks.size) - waiting)
        run(hash_items, mine, len(mine), config.workers, on_progress)
        ranks.from_first("")

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
            "cuts": {split: cuts(_kept(items, left_out[split]), config) for split, items in source.splits.items()},
        }
        write_json(path, layout)
        return layout

    return _of_first(ranks, decide)


def _kept(items: list[Item], left_out: list[int]) -> list[Item]:
    without = set(left_out)
    return [item for position, item in enumerate(items) if position not in without] if without else items


def _jobs(source: Source, staging: Path, config: PackConfig, layout: dict[str, Any]) -> dict[str, list[ShardJob]]:
    jobs = {}
    for split, items in source.splits.items():
        kept = _kept(items, layout["left_out"][split])
        if len(kept) > _MOST:
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
    say: Callable[[str], None],
    ranks: Ranks,
) -> int:
    """Packs what is not finished of this rank's shards; returns how many items all of them have."""
    mine = jobs[ranks.rank :: ranks.size]
    waiting = [job for job in mine if not is_whole(packed_shard(job.tar))]
    items = sum(len(job.items) for job in mine)
    if len(waiting) < len(mine):
        say(f"goes on: {len(mine) - len(waiting):,} of {len(mine):,} shards are finished")
        on_progress(items - sum(len(job.items) for job in waiting))
    run(pack_shard, waiting, len(waiting), config.workers, on_progress)
    return items


def _finish(
    source: Source, out: Path, plan: dict[str, Any], jobs: dict[str, list[ShardJob]], layout: dict[str, Any]
) -> dict[str, Any]:
    staging = out / STAGING
    shards = {split: [packed_shard(job.tar) for job in found] for split, found in jobs.items()}
    if is_packed(staging):
        description = json.loads((staging / "dataset.json").read_bytes())
    else:
        if missing := [job.tar for found in jobs.values() for job in found if not is_whole(packed_shard(job.tar))]:
            raise DataError(
                f"{missing[0]} was packed by another process and is not here; --out has to be one folder for all"
            )
        more = {"json": any(item.json for items in source.splits.values() for item in items)}
        if plan["dedup"]:
            more["duplicates"] = sum(map(len, layout["left_out"].values()))
            more["across_splits"] = layout["across_splits"]
        description = describe(staging, shards, source.classes, plan, more)
    move(out, staging, shards, plan["dedup"])
    return description


@contextmanager
def _in_one_line(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"packing into {out} failed ({error.strerror or error}); what is finished stays there: make room or mend "
            "it, and the same command goes on"
        ) from error


@contextmanager
def _left_in_order(out: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        leave(out)
        raise
