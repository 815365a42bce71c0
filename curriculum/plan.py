"""The image of each draw, planned window by window: a pure function of (seed, window, schedule, distances).

During the curriculum a window draws from p_tau (Lin et al., CVPR 2025) at the temperature of its first draw. After it,
every image is drawn exactly once per pass, in keyed order, or draws continue with replacement at infinite tau.
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
from mimcl.curriculum.hashing import Hash64, unit_interval
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.permutation import KeyedPermutation
from mimcl.curriculum.shard_order import STRETCH, arrange
from mimcl.curriculum.temperature import SCHEDULES, EffectiveFraction, uniform_fraction, weights

# Stream numbers make the uses of the seed independent; those below 16 are used for pixels.
STREAM_SAMPLE = 16  # multinomial: a number in [0, 1) per draw
STREAM_BLOCK = 17  # systematic: the order of the images in a block
STREAM_COMB = 18  # systematic: the offset of a block's first comb
STREAM_ORDER = 19  # systematic: the order of a window's draws
STREAM_PASS = 20  # uniform: the order of the images in a pass
STREAM_ARRANGE = 21  # order "shard": the order of the shards, and of the draws within
STREAM_SUBSTITUTE = 32  # plus the retry, 0 to 15: a number in [0, 1) per draw whose sample is bad

_CACHED_IMAGES = 1 << 25  # up to here a block's h is cached: 128 MB; planning slows down by half without it
_CHUNK = 1 << 16  # images per chunk: 512 KB of weights


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Consecutive draws with one temperature."""

    number: int
    first_draw: int
    sample_ids: NDArray[np.int64]  # (W,), of the draws first_draw, first_draw + 1, ...
    distances: NDArray[np.float32]  # (W,), of those samples; NaN without prototypes
    stretches: NDArray[np.int64]  # boundaries, ascending from 0 to W: draws between two of them are read together
    temperature: float  # math.inf: uniform
    effective_fraction: float  # r(temperature)
    phase: Literal["curriculum", "uniform"]

    @property
    def digest(self) -> str:
        """xxh64 of the sample ids as little-endian int64, 16 hexadecimal digits; ranks compare it."""
        return xxhash.xxh64(np.ascontiguousarray(self.sample_ids, "<i8").data).hexdigest()


class Plan:
    """All windows of a run. `window(number)` depends on its argument and the constructor's arguments only.

    `samples` is N, `distances` (N,) in [0, 1] with 0 = most prototypical (None only for curriculum "none"), `draws`
    the run's length T, `hash64(seed, numbers, stream)` the source of randomness, `learned` the temperatures of the
    learned schedule, `shards` (N,), ascending, the shard of each sample (required for order "shard", which reorders
    the draws of a window but draws the same samples). Attributes: `learned`, `samples`, `draws`, `window_length` (W,
    in draws), `windows` (their number), `curriculum_draws` (G, 0 without a curriculum), `curve` (r of a temperature,
    None without a curriculum), `retries` (the number of substitutes for a bad draw). Raises ValueError for distances
    that the curriculum cannot use, a window that is not a multiple of `batch_size`, and missing shards.
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
            raise ValueError("curriculum.temp_schedule is 'learned'; pass a LearnedTemperature")
        if config.order == "shard" and (shards is None or shards.shape != (samples,)):
            raise ValueError("curriculum.order is 'shard'; pass the shard of each sample")
        self.config, self.samples, self.draws = config, samples, draws
        self._shards = shards if config.order == "shard" else None
        self.window_length = config.window_length(samples, batch_size)
        self.windows = math.ceil(draws / self.window_length)
        self.curriculum_draws = 0
        self._distances = None if distances is None else np.asarray(distances, np.float32)
        self._h: Hardness | None = None
        self._seed, self._hash64, self.learned = seed, hash64, learned
        self.curve: EffectiveFraction | None = None
        self._uniform_fraction = uniform_fraction(samples)
        self._block: tuple[int, NDArray[np.float32]] | None = None  # the last block and its h, in the block's order
        if config.name != "none" and self._distances is not None:
            self.curriculum_draws = self.window_length * round(config.share * draws / self.window_length)
            self._h = Hardness(config, self._distances)
            self._lowest_h = float(self._h.min())
            self.curve = learned.curve if learned else EffectiveFraction(self._h)

    @property
    def clamped(self) -> bool:
        """Whether the schedule starts below r(tau -> 0), which no temperature reaches."""
        if not self.curriculum_draws or self.curve is None or self.config.temp_schedule == "constant":
            return False
        return self.config.r0 < self.curve.lowest

    def when_ready(self, number: int) -> Future[None] | None:
        """Return a future that is done once window `number` has a temperature; None if it has one already."""
        in_curriculum = number * self.window_length < self.curriculum_draws
        return self.learned.when_ready(number) if self.learned and in_curriculum else None

    def window(self, number: int) -> WindowPlan:
        """Plan draws [number W, (number + 1) W), cut at T. Raises IndexError outside [0, windows).

        Raises LookupError while the window's temperature is still to be learned.
        """
        tau = self.temperature(number)
        first = number * self.window_length
        count = min(self.window_length, self.draws - first)
        in_curriculum = first < self.curriculum_draws
        fraction = self.curve(tau) if self.curve and in_curriculum else self._uniform_fraction
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
        """Return sample ids and distances, both (n,), to replace the bad samples of `draws` (n,) of one window.

        They are drawn independently from the window's p_tau (uniform after the curriculum) for every kind of
        resampling; `retry` 0, 1, ... gives independent ones. Raises IndexError for a window outside [0, windows) or a
        retry outside [0, retries).
        """
        if not 0 <= retry < self.retries:
            raise IndexError(f"retry {retry} of a plan with retries 0 to {self.retries - 1}")
        ids = self._multinomial(draws, STREAM_SUBSTITUTE + retry, self.temperature(window_number))
        return ids, self._distances_of(ids)

    def _distances_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.full(len(ids), np.nan, np.float32) if self._distances is None else self._distances[ids]

    def temperature(self, number: int) -> float:
        """Return tau of window `number`, that of its first draw. Raises IndexError outside [0, windows)."""
        if not 0 <= number < self.windows:
            raise IndexError(f"window {number} of a plan with windows 0 to {self.windows - 1}")
        first = number * self.window_length
        if first >= self.curriculum_draws or self.curve is None:
            return math.inf
        if self.config.temp_schedule == "constant":
            return self.config.temperature
        if self.learned:
            return self.learned.temperature(number)
        schedule = SCHEDULES[self.config.temp_schedule]
        return self.curve.inverse(schedule(first / self.curriculum_draws, self.config.r0, self._uniform_fraction))

    def _multinomial(self, draws: NDArray[np.int64], stream: int, tau: float) -> NDArray[np.int64]:
        """Draw independently with replacement, by cumulative sum and search in float64: exact for any N."""
        points = unit_interval(self._hash64(self._seed, draws, stream))
        order = np.argsort(points)
        ids = np.empty(len(points), np.int64)
        ids[order] = self._search(self._h, tau, points[order])
        return ids

    def _systematic(self, number: int, count: int, tau: float) -> NDArray[np.int64]:
        """Draw by W equally spaced points (a comb) over the images in the block's order, in keyed random order."""
        size = math.ceil(self.samples / self.window_length)  # windows in a block
        block, turn = divmod(number, size)
        images = KeyedPermutation(self.samples, self._key(block, STREAM_BLOCK), self._hash64)
        h = None if self._h is None or math.isinf(tau) else self._block_h(self._h, block, images)
        # The combs of a block's windows interleave to one comb of size * W points.
        start = unit_interval(self._hash64(self._seed, block, STREAM_COMB))[0] + turn / size
        points = (np.arange(self.window_length) + start % 1.0) / self.window_length
        order = KeyedPermutation(self.window_length, self._key(number, STREAM_ORDER), self._hash64)
        return images(self._search(h, tau, points)[order(np.arange(count))])

    def _search(
        self, h: Hardness | NDArray[np.float32] | None, tau: float, points: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Find the images at ascending `points` in [0, 1), if they lie end to end, each as wide as its p_tau.

        At infinite `tau` (the only one that allows `h` None) all are equally wide. Otherwise `h` is read twice, in
        chunks that fit the cache: to sum their weights, then to search in them. No array of N sums is made.
        """
        points = np.minimum(points, 1 - 2.0**-53)  # a point may have been rounded to 1
        if h is None or math.isinf(tau):
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
            # The first image whose sum exceeds the point never has weight 0; below the last sum there is always one.
            within = np.minimum(within, np.nextafter(sums[-1], 0))
            found[inside] = start + np.searchsorted(sums, within, side="right")
        return found

    def _block_h(self, h: Hardness, block: int, images: KeyedPermutation) -> Hardness | NDArray[np.float32]:
        """Return h in the block's order; up to _CACHED_IMAGES images it is cached for the block's other windows."""
        ordered = h.permuted(images)
        if self.samples > _CACHED_IMAGES:
            return ordered
        cached = self._block
        if cached is not None and cached[0] == block:
            return cached[1]
        made = np.concatenate([ordered[start : start + _CHUNK] for start in range(0, self.samples, _CHUNK)])
        self._block = block, made
        return made

    def _passes(self, first: int, count: int) -> NDArray[np.int64]:
        """Return `count` draws from draw `first` on: each image once per pass of N draws after the curriculum."""
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


def _check(
    config: CurriculumConfig, samples: int, distances: NDArray[np.float32] | None, draws: int, batch_size: int
) -> None:
    for name, value in (("samples", samples), ("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if distances is None:
        if config.name != "none":
            raise ValueError(f"curriculum.name is {config.name!r}, which needs distances; build prototypes first")
        return
    if distances.shape != (samples,):
        raise ValueError(f"distances have shape {distances.shape}, not ({samples},); rebuild the prototypes")
    if not (distances.min() >= 0 and distances.max() <= 1):  # false for NaN as well
        raise ValueError(
            f"distances are from {distances.min()} to {distances.max()}, not from 0 to 1; rebuild the prototypes"
        )
