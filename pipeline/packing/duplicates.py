"""Find items with the same bytes as an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.packing.jobs import HashJob
from mimcl.pipeline.sources.item import Item

_ITEMS_PER_JOB = 8192

Splits = Mapping[str, Sequence[Item]]


def hash_jobs(splits: Splits, folder: Path) -> list[HashJob]:
    """Return jobs that hash the candidates: items with the same size as another, or all if sizes are estimates.

    Positions count through all splits. Empty and unreadable items are left to packing.
    """
    items = list(chain(*splits.values()))
    sizes = np.fromiter((item.nbytes for item in items), np.int64, len(items))
    candidates = np.flatnonzero(sizes > 0)
    if all(item.exact for item in items):
        _, group, members = np.unique(sizes, return_inverse=True, return_counts=True)
        candidates = candidates[members[group[candidates]] > 1]
    return [
        HashJob(folder / f"hashes-{number:06d}.npy", part.tolist(), [items[position] for position in part])
        for number, part in enumerate(np.split(candidates, range(_ITEMS_PER_JOB, len(candidates), _ITEMS_PER_JOB)))
    ]


def find_duplicates(splits: Splits, jobs: list[HashJob]) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """Return the positions within each split to skip, and the rows of duplicates.jsonl in the source's order.

    A row names an item (`split`, `path`) and the earlier one with the same bytes (`of_split`, `of`). Duplicates across
    splits are listed but kept (`dropped` is false): whether that matters is up to the user.
    """
    hashes = (
        np.concatenate([np.load(job.path, allow_pickle=False) for job in jobs]) if jobs else np.empty((0, 3), np.uint64)
    )
    names = list(splits)
    starts = list(accumulate(map(len, splits.values()), initial=0))
    left_out: dict[str, list[int]] = {split: [] for split in names}
    found = []
    for group in _groups(hashes):
        first_of_split: dict[int, int] = {}
        for position in group:
            split = int(np.searchsorted(starts, position, "right")) - 1
            if split in first_of_split:
                left_out[names[split]].append(position - starts[split])
                found.append((position, split, first_of_split[split], True))
            else:
                if first_of_split:
                    found.append((position, split, group[0], False))
                first_of_split[split] = position
    rows = []
    for position, split, original, dropped in sorted(found):
        of_split = int(np.searchsorted(starts, original, "right")) - 1
        rows.append(
            {
                "split": names[split],
                "path": splits[names[split]][position - starts[split]].name,
                "of_split": names[of_split],
                "of": splits[names[of_split]][original - starts[of_split]].name,
                "dropped": dropped,
            }
        )
    return {split: sorted(positions) for split, positions in left_out.items()}, rows


def _groups(hashes: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Yield the ascending positions of every hash that occurs more than once; `hashes` as `hash_items` saves them."""
    order = np.lexsort((hashes[:, 0], hashes[:, 2], hashes[:, 1]))
    ordered = hashes[order]
    begins = np.flatnonzero(np.r_[True, (ordered[1:, 1:] != ordered[:-1, 1:]).any(axis=1), True])
    for group in np.flatnonzero(np.diff(begins) > 1):
        yield ordered[begins[group] : begins[group + 1], 0].astype(np.int64).tolist()
