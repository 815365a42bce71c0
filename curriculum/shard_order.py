"""Order a window's draws by shard, so that each byte range is read once, from several shards at a time.

Which samples are drawn does not change, only their order in the window. The drawn shards come in keyed random order, in
groups of SHARDS or more. The shards of a group are read side by side, each from its first drawn sample to its last,
about STRETCH draws at a time. These draws are called a stretch and are shuffled together. So only two stretches are
held in memory: the one being used and the one being fetched.

The cost: a batch mixes the images of a stretch, not of the window. If shards were packed class by class, it sees only
the classes of the shards of its stretch: of 534 shards with ImageNet's thousand classes, a stretch reads about 110 at
slices of 1/16, and about 64 at slices of 1. Reading from fewer shards would not save requests. Also, all draws of one
sample fall into one stretch instead of being spread over the window. Within the stretch they are equally spaced from a
random start: draws are still uniform over the stretch, and a batch holds a sample twice only if it is drawn about as
often as the stretch has batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.hashing import Hash64, unit_interval

STRETCH = 1 << 14  # draws that are read together, approximately: 2 GB of ImageNet
SHARDS = 64  # shards that are read side by side, approximately

# Streams of random numbers.
_ORDER, _CUTS, _PLACES = range(3)
_FRACTION_BITS = 44  # bits for a draw's place in its stretch; the other 19 bits number the stretches


def arrange(
    sample_ids: NDArray[np.int64], shards: NDArray[np.int32], key: int, hash64: Hash64
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Reorder sample ids (W,), W > 0, for reading; also return the boundaries of the stretches, ascending from 0 to W.

    `shards` (N,) is the shard of every sample; sample ids ascend by shard and by offset within it. All draws of a
    sample are in one stretch, and later stretches read later parts of a shard. The result depends on how often each
    sample is drawn, not on the order of `sample_ids`.
    """
    ids = np.sort(sample_ids)
    shard = shards[ids]
    begin = np.flatnonzero(np.diff(shard, prepend=-1))  # first draw of each touched shard
    touched, draws = shard[begin], np.diff(begin, append=len(ids))
    del shard  # as large as the window; from here on only a group is in memory at a time
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
    """Arrange the ascending ids of the shards `touched`, `draws` draws each; also return the stretches' lengths."""
    count = max(1, round(draws.sum() / STRETCH))
    first = np.flatnonzero(np.diff(ids, prepend=-1))  # first draw of each distinct sample
    times = np.diff(first, append=len(ids))
    # Per distinct sample: its stretch, from the number of earlier draws of its shard. The cuts of a shard are equally
    # spaced from a random offset; without it, shards with few draws would all be in the first stretch.
    begin = np.cumsum(draws) - draws
    shard = np.searchsorted(begin, first, side="right") - 1  # its place in `touched`
    before = first - begin[shard] + unit_interval(hash64(key, touched, _CUTS))[shard]
    stretch = np.minimum((before * (count / draws)[shard]).astype(np.int64), count - 1)
    # Per draw: the stretch, then a place in [0, 1) within it.
    places = np.repeat(unit_interval(hash64(key, ids[first], _PLACES)), times)
    places += np.arange(len(ids)) - np.repeat(first, times)
    places /= np.repeat(times, times)
    places *= 2.0**_FRACTION_BITS
    np.minimum(places, 2.0**_FRACTION_BITS - 1, out=places)  # some may have been rounded to 1
    ranks = np.repeat(stretch << _FRACTION_BITS, times) | places.astype(np.int64)
    return ids[np.argsort(ranks, kind="stable")], np.bincount(stretch, times, count).astype(np.int64)


def _borders(draws: NDArray[np.int64]) -> list[int]:
    """Where to cut shards with these numbers of draws into groups of at least SHARDS shards and about STRETCH draws."""
    done = np.cumsum(draws)
    borders: list[int] = []
    begin = 0
    while True:
        reached = np.searchsorted(done, (done[begin - 1] if begin else 0) + STRETCH)
        begin = max(begin + SHARDS, int(reached) + 1)
        rest = done[-1] - done[min(begin, len(draws)) - 1]
        if begin + SHARDS > len(draws) or rest < STRETCH // 2:  # too few are left for another group
            return borders
        borders.append(begin)
