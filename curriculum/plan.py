"""Which image each draw is: the plan of a window of draws, a pure function of (seed, window, schedule, distances).

While the curriculum lasts, a window draws with p_tau (Lin et al., CVPR 2025) at the temperature of its first draw;
afterwards every image comes exactly once a pass, in keyed order, or draws go on with replacement at infinite tau.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.hardness import Hardness
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.permutation import Hash64, KeyedPermutation
from mimcl.curriculum.shard_order import STRETCH, arrange
from mimcl.curriculum.temperature import SCHEDULES, EffectiveFraction, uniform_fraction, weights

# Stream numbers keep the uses of the seed's randomness independent; those below 16 belong to the pixels.
STREAM_SAMPLE = 16  # multinomial: a number in [0, 1) for each draw
STREAM_BLOCK = 17  # systematic: the order of the images in a block
STREAM_COMB = 18  # systematic: the offset of a block's first comb
STREAM_ORDER = 19  # systematic: the order of a window's draws
STREAM_PASS = 20  # uniform: the order of the images in a pass
STREAM_ARRANGE = 21  # order "shard": of the shards, and of the draws inside
STREAM_SUBSTITUTE = 32  # plus the retry, 0 to 15: a number in [0, 1) for each draw whose sample is bad

_KEPT = 1 << 25  # images of which a block's order is kept: 128 MB; planning slows down by half without it
_CHUNK = 1 << 16  # images worked on at once: 512 KB of weights


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """A stretch of draws with one temperature."""

    number: int
    first_draw: int
    sample_ids: NDArray[np.int64]  # (W,), of the draws first_draw, first_draw + 1, ...
    distances: NDArray[np.float32]  # (W,), of those samples; NaN where the plan has none
    stretches: NDArray[np.int64]  # ascending, from 0 to W: draws between two of them are read together
    temperature: float  # math.inf: uniform
    effective_fraction: float  # r(temperature)
    phase: Literal["curriculum", "uniform"]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of xxh64 over the sample ids as little-endian int64; ranks compare it."""
        return xxhash.xxh64(np.ascontiguousarray(self.sample_ids, "<i8").data).hexdigest()


class Plan:
    """All windows of a run. `window(number)` depends on its argument and on what is given here, on nothing else.

    `samples` is N, `distances` (N,) in [0, 1] with 0 = most prototypical (None only for curriculum "none"), `draws`
    the run's length T, `hash64(seed, numbers, stream)` the source of randomness, `learned` the temperatures of the
    learned schedule, `shards` (N,), ascending, the shard of each sample (needed for order "shard" alone, which
    arranges what a window draws, and does not change it). Attributes: `learned`, `samples`, `draws`,
    `window_length` (W, in draws), `windows` (their number), `curriculum_draws` (G, 0 without a curriculum), `curve`
    (r of a temperature, None without a curriculum), `retries` (how many substitutes a draw has). Raises ValueError
    for distances that the curriculum cannot use, for a window that is no multiple of `batch_size`, and for want of
    shards.
    """

    retries = 16

    def __init__(
        self,
        config: CurriculumConfig,
        *,
        samples: int,
        distances: NDArray[np.float32] | None,
        draws: int,
        batch_size: int,
        seed: int,
        hash64: Hash64,
        learned: LearnedTemperature | None = None,
        shards: NDArray[np.int32] | None = None,
    ) -> None:
        _check(config, samples, distances, draws, batch_size)
        if config.learns and learned is None:
            raise ValueError("curriculum.temp_schedule is 'learned': the plan needs a LearnedTemperature")
        if config.order == "shard" and (shards is None or shards.shape != (samples,)):
            raise ValueError("curriculum.order is 'shard': the plan needs the shard of each sample")
        self.config, self.samples, self.draws = config, samples, draws
        self._shards = shards if config.order == "shard" else None
        self.window_length = config.window_length(samples, batch_size)
        self.windows = math.ceil(draws / self.window_length)
        self.curriculum_draws = 0
        self._distances = None if distances is None else np.asarray(distances, np.float32)
        self._h, self._seed, self._hash64, self.learned = self._distances, seed, hash64, learned
        self.curve: EffectiveFraction | None = None
        self._uniform_fraction = uniform_fraction(samples)
        self._block: tuple[int, NDArray[np.float32]] | None = None  # the last block and its h, in the block's order
        if config.name != "none":
            self.curriculum_draws = self.window_length * round(config.share * draws / self.window_length)
            self._h = Hardness(config, self._distances)
            self._lowest_h = float(self._h.min())
            self.curve = learned.curve if learned else EffectiveFraction(self._h)

    @property
    def clamped(self) -> bool:
        """Whether the schedule starts below r(tau -> 0), at a share of the data that no temperature reaches."""
        scheduled = self.curriculum_draws > 0 and self.config.temp_schedule != "constant"
        return scheduled and self.config.r0 < self.curve.lowest

    def known(self, number: int) -> Future[None] | None:
        """Done once window `number` has a temperature; None if it has one, as it always has but for learned ones."""
        in_curriculum = number * self.window_length < self.curriculum_draws
        return self.learned.known(number) if self.learned and in_curriculum else None

    def window(self, number: int) -> WindowPlan:
        """The plan of draws [number W, (number + 1) W), cut at T; IndexError outside [0, windows).

        LookupError while its learned temperature is not known.
        """
        tau = self.temperature(number)
        first = number * self.window_length
        count = min(self.window_length, self.draws - first)
        in_curriculum = first < self.curriculum_draws
        fraction = self.curve(tau) if in_curriculum else self._uniform_fraction
        if not in_curriculum and self.config.uniform == "epochs":
            ids = self._passes(first, count)
        elif self.config.resampling == "multinomial":
            ids = self._multinomial(np.arange(first, first + count), STREAM_SAMPLE, tau)
        else:
            ids = self._systematic(number, count, tau)
        phase: Literal["curriculum", "uniform"] = "curriculum" if in_curriculum else "uniform"
        if self._shards is None:
            stretches = np.minimum(np.arange(0, count + STRETCH, STRETCH), count)
        else:
            ids, stretches = arrange(ids, self._shards, self._key(number, STREAM_ARRANGE), self._hash64)
        return WindowPlan(number, first, ids, self._distances_of(ids), stretches, tau, fraction, phase)

    def substitutes(
        self, window_number: int, draws: NDArray[np.int64], retry: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Sample ids and distances, both (n,), for `draws` (n,) of one window whose samples so far were bad.

        They follow the window's p_tau, in a uniform pass all samples alike, whatever the resampling; those of `retry`
        0, 1, ... are independent. IndexError for a window outside [0, windows) or a retry outside [0, retries).
        """
        if not 0 <= retry < self.retries:
            raise IndexError(f"retry {retry} of a plan with retries 0 to {self.retries - 1}")
        ids = self._multinomial(draws, STREAM_SUBSTITUTE + retry, self.temperature(window_number))
        return ids, self._distances_of(ids)

    def _distances_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.full(len(ids), np.nan, np.float32) if self._distances is None else self._distances[ids]

    def temperature(self, number: int) -> float:
        """tau of window `number`, which is that of its first draw; IndexError outside [0, windows)."""
        if not 0 <= number < self.windows:
            raise IndexError(f"window {number} of a plan with windows 0 to {self.windows - 1}")
        first = number * self.window_length
        if first >= self.curriculum_draws:
            return math.inf
        if self.config.temp_schedule == "constant":
            return self.config.temperature
        if self.learned:
            return self.learned.temperature(number)
        schedule = SCHEDULES[self.config.temp_schedule]
        return self.curve.inverse(schedule(first / self.curriculum_draws, self.config.r0, self._uniform_fraction))

    def _multinomial(self, draws: NDArray[np.int64], stream: int, tau: float) -> NDArray[np.int64]:
        """Independent draws with replacement, by cumulative sum and search: exact for any N, in float64."""
        points = _unit(self._hash64(self._seed, draws, stream))
        order = np.argsort(points)
        ids = np.empty(len(points), np.int64)
        ids[order] = self._search(self._h, tau, points[order])
        return ids

    def _systematic(self, number: int, count: int, tau: float) -> NDArray[np.int64]:
        """A comb of W equally spaced teeth over the images in the block's order, its draws in keyed random order."""
        size = math.ceil(self.samples / self.window_length)  # windows in a block
        block, turn = divmod(number, size)
        images = KeyedPermutation(self.samples, self._key(block, STREAM_BLOCK), self._hash64)
        h = None if math.isinf(tau) else self._block_h(block, images)
        # The combs of a block's windows interlock to one comb of size * W teeth.
        start = _unit(self._hash64(self._seed, block, STREAM_COMB))[0] + turn / size
        teeth = (np.arange(self.window_length) + start % 1.0) / self.window_length
        order = KeyedPermutation(self.window_length, self._key(number, STREAM_ORDER), self._hash64)
        return images(self._search(h, tau, teeth)[order(np.arange(count))])

    def _search(
        self, h: Hardness | NDArray[np.float32] | None, tau: float, points: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Where ascending `points` in [0, 1) fall among the images laid end to end, each as wide as its p_tau.

        At infinite `tau` all are equally wide and `h` is not looked at. Otherwise `h` is passed over twice, in chunks
        that fit the cache: for their weights, then to search inside them. No array of N sums is made.
        """
        points = np.minimum(points, 1 - 2.0**-53)  # a tooth may have been rounded to 1
        if math.isinf(tau):
            return (points * self.samples).astype(np.int64)
        starts = range(0, self.samples, _CHUNK)
        ends = np.cumsum([weights(h[start : start + _CHUNK], tau, self._lowest_h).sum() for start in starts])
        points *= ends[-1]
        cuts = [0, *np.searchsorted(points, ends)]
        found = np.empty(len(points), np.int64)
        for number, start in enumerate(starts):
            inside = slice(cuts[number], cuts[number + 1])
            if inside.start == inside.stop:
                continue
            sums = np.cumsum(weights(h[start : start + _CHUNK], tau, self._lowest_h))
            within = points[inside] - (ends[number - 1] if number else 0)
            # The first image whose sum exceeds the point never has weight 0; below the last sum there always is one.
            within = np.minimum(within, np.nextafter(sums[-1], 0))
            found[inside] = start + np.searchsorted(sums, within, side="right")
        return found

    def _block_h(self, block: int, images: KeyedPermutation) -> Hardness | NDArray[np.float32]:
        """h in the block's order; up to _KEPT images it is kept for the block's other windows, to be quicker."""
        ordered = Hardness(self.config, self._distances, images)
        if self.samples > _KEPT:
            return ordered
        kept = self._block
        if kept is not None and kept[0] == block:
            return kept[1]
        h = np.concatenate([ordered[start : start + _CHUNK] for start in range(0, self.samples, _CHUNK)])
        self._block = block, h
        return h

    def _passes(self, first: int, count: int) -> NDArray[np.int64]:
        """Every image once in each stretch of N draws from the curriculum's end on; `count` draws from `first` on."""
        start, ids = first - self.curriculum_draws, np.empty(count, np.int64)
        done = 0
        while done < count:
            number, position = divmod(start + done, self.samples)
            length = min(count - done, self.samples - position)
            images = KeyedPermutation(self.samples, self._key(number, STREAM_PASS), self._hash64)
            ids[done : done + length] = images(np.arange(position, position + length))
            done += length
        return ids

    def _key(self, number: int, stream: int) -> int:
        return int(self._hash64(self._seed, number, stream)[0])


def _unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of 53 random bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _check(
    config: CurriculumConfig, samples: int, distances: NDArray[np.float32] | None, draws: int, batch_size: int
) -> None:
    for name, value in (("samples", samples), ("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}: a plan needs at least 1")
    if distances is None:
        if config.name != "none":
            raise ValueError(f"curriculum.name is {config.name!r}, which needs distances: build prototypes first")
        return
    if distances.shape != (samples,):
        raise ValueError(f"distances have shape {distances.shape}: one for each of the {samples} samples is needed")
    if not (distances.min() >= 0 and distances.max() <= 1):  # false for NaN as well
        raise ValueError(
            f"distances reach from {distances.min()} to {distances.max()}, not from 0 to 1: rebuild the prototypes"
        )
