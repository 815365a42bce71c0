"""The order of a window's draws by shards: each byte range is read once, several shards at a time, shuffled inside.

What is drawn is not changed, only where in the window it stands. The shards that have draws come in keyed random
order, in groups of SHARDS or more; those of a group are read side by side, each from its first drawn sample to its
last, about STRETCH draws at a time. These draws, a stretch, are shuffled as a whole. So what has to be kept of the data
at a time is a stretch, and the one that is fetched meanwhile.

What is traded for it: a batch mixes the images of a stretch, not of the window. Where shards were packed class by
class, it has the classes of those shards: of 534 shards with ImageNet's thousand classes, a stretch reads from about
110 at slices of 1/16, and from some 64 at slices of 1. Fewer would save no requests. And the draws of one sample come
within a stretch, where they would be spread over the window. There they stand equally far apart, from a random place
on: draws are uniform over the stretch all the same, and a batch holds a sample twice only where it is drawn about as
often as the stretch has batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.permutation import Hash64

STRETCH = 1 << 14  # draws that are read together, about: 2 GB of ImageNet
SHARDS = 64  # that are read side by side, about, where so many have draws

# Uses of the key's randomness.
_ORDER, _CUTS, _PLACES = range(3)
_FRACTION_BITS = 44  # of a draw's place in its stretch; what is left of 63 numbers the stretches


def arrange(
    sample_ids: NDArray[np.int64], shards: NDArray[np.int32], key: int, hash64: Hash64
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same sample ids (W,), W > 0, in the order in which they are read, and the stretches that cut it.

    `shards` (N,) is the shard of every sample; samples ascend by shard and by place within. All draws of a sample are
    in one stretch, and what a stretch has of a shard lies before what later ones have. The stretches ascend from 0 to
    W. It depends on which samples are drawn how often, not on their order.
    """
    ids = np.sort(sample_ids)
    shard = shards[ids]
    begin = np.flatnonzero(np.diff(shard, prepend=-1))  # draw of each touched shard
    touched, draws = shard[begin], np.diff(begin, append=len(ids))
    del shard  # of large data sets it is as large as the window; what follows is done a group at a time
    order = np.argsort(hash64(key, touched, _ORDER), kind="stable")
    arranged, ends = np.empty_like(ids), [0]
    for group in np.split(order, _borders(draws[order])):
        group = np.sort(group)
        pieces = [ids[first : first + count] for first, count in zip(begin[group], draws[group], strict=True)]
        done = ends[-1]
        found, sizes = _arrange_group(np.concatenate(pieces), touched[group], draws[group], key, hash64)
        arranged[done : done + len(found)] = found
        ends += (done + np.cumsum(sizes)).tolist()
    return arranged, np.unique(ends)


def _arrange_group(
    ids: NDArray[np.int64], touched: NDArray[np.int32], draws: NDArray[np.int64], key: int, hash64: Hash64
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ascending ids of shards `touched`, with so many `draws` each, arranged; and the lengths of the stretches."""
    count = max(1, round(draws.sum() / STRETCH))
    first = np.flatnonzero(np.diff(ids, prepend=-1))  # draw of each distinct sample
    times = np.diff(first, append=len(ids))
    # Per distinct sample: its stretch, by the draws of its shard that come before. Cuts lie at random places, alike far
    # apart: pieces of shards with few draws would otherwise all be in the first.
    begin = np.cumsum(draws) - draws
    of = np.searchsorted(begin, first, side="right") - 1
    before = first - begin[of] + _unit(hash64(key, touched, _CUTS))[of]
    stretch = np.minimum((before * (count / draws)[of]).astype(np.int64), count - 1)
    # Per draw: the stretch, then a place in [0, 1) within it.
    places = np.repeat(_unit(hash64(key, ids[first], _PLACES)), times)
    places += np.arange(len(ids)) - np.repeat(first, times)
    places /= np.repeat(times, times)
    places *= 2.0**_FRACTION_BITS
    np.minimum(places, 2.0**_FRACTION_BITS - 1, out=places)  # some may have been rounded to 1
    ranks = np.repeat(stretch << _FRACTION_BITS, times) | places.astype(np.int64)
    return ids[np.argsort(ranks, kind="stable")], np.bincount(stretch, times, count).astype(np.int64)


def _borders(draws: NDArray[np.int64]) -> list[int]:
    """Where to cut shards, which have so many draws, into groups of at least SHARDS and about STRETCH draws or more."""
    done, borders = np.cumsum(draws), []
    begin = 0
    while True:
        reached = np.searchsorted(done, (done[begin - 1] if begin else 0) + STRETCH)
        begin = max(begin + SHARDS, int(reached) + 1)
        rest = done[-1] - done[min(begin, len(draws)) - 1]
        if begin + SHARDS > len(draws) or rest < STRETCH // 2:  # too few are left for a group of their own
            return borders
        borders.append(begin)


def _unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of 53 random bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
