"""The image of each draw, planned window by window: a pure function of (seed, window, schedule, distances or scores).

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

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.difficulty import BELOW_1, Difficulty
from mimcl.curriculum.hashing import Hash64, unit_interval
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.moving_scores import MovingScores
from mimcl.curriculum.permutation import KeyedPermutation
from mimcl.curriculum.schedules import Schedule, schedule_of
from mimcl.curriculum.shard_order import STRETCH, arrange
from mimcl.curriculum.temperature import EffectiveFraction, uniform_fraction

# Stream numbers make the uses of the seed independent; those below 16 are used for pixels.
STREAM_SAMPLE = 16  # multinomial: a number in [0, 1) per draw
STREAM_BLOCK = 17  # systematic: the order of the images in a block
STREAM_COMB = 18  # systematic: the offset of a block's first comb
STREAM_ORDER = 19  # systematic: the order of a window's draws
STREAM_PASS = 20  # uniform: the order of the images in a pass
STREAM_ARRANGE = 21  # order "shard": the order of the shards, and of the draws within
# 22 is used in `subset.py`.
STREAM_SUBSTITUTE = 32  # plus the retry, 0 to 15: a number in [0, 1) per draw whose sample is bad


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

    `samples` is N, `distances` (N,) in [0, 1] with 0 = most prototypical (None only for curriculum "none", or with
    `scores`, which change during the run), `draws` the run's length T, `hash64(seed, numbers, stream)` the source of
    randomness, `learned` the temperatures of the learned schedule, `shards` (N,), ascending, the shard of each sample
    (required for order "shard", which reorders the draws of a window but draws the same samples), `balance` that of the
    images, `schedule` replaces the configured one. Attributes: `learned`, `balance`, `samples`, `draws`,
    `window_length` (W, in draws), `windows` (their number), `curriculum_draws` (G, 0 without a curriculum), `curve` (r
    of a temperature; None without a curriculum, and with scores, whose r changes), `retries` (the number of
    substitutes for a bad draw). Raises ValueError for distances that the curriculum cannot use, a window that is not a
    multiple of `batch_size`, and missing shards.
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
        balance: Balance | None = None,
        scores: MovingScores | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        _check(config, samples, distances, scores, draws, batch_size)
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
        self._seed, self._hash64, self.learned, self.balance, self._scores = seed, hash64, learned, balance, scores
        self._fixed: Difficulty | None = None  # without scores
        fixed = config.name != "none" and not config.learns
        self._schedule = schedule or (schedule_of(config) if fixed else None)
        self._uniform_fraction = uniform_fraction(samples)
        self._block: tuple[int, KeyedPermutation] | None = None  # the last block, and its order
        if config.name != "none":
            self.curriculum_draws = self.window_length * round(config.share * draws / self.window_length)
            if self._distances is not None:
                self._fixed = Difficulty(config, self._distances, balance, learned.curve if learned else None)

    @property
    def curve(self) -> EffectiveFraction | None:
        """r of a temperature; None without a curriculum, and with scores, whose r changes."""
        return self._fixed.curve if self._fixed else None

    @property
    def clamped(self) -> bool:
        """Whether the schedule starts below r(tau -> 0), which no temperature reaches."""
        if not self.curriculum_draws or self.curve is None or self.config.temp_schedule == "constant":
            return False
        return self.config.r0 < self.curve.lowest

    def when_ready(self, number: int) -> Future[None] | None:
        """Return a future that is done once all that window `number` depends on is known; None if it is."""
        if self._scores:
            return self._scores.when_ready(number)
        in_curriculum = number * self.window_length < self.curriculum_draws
        return self.learned.when_ready(number) if self.learned and in_curriculum else None

    def window(self, number: int) -> WindowPlan:
        """Plan draws [number W, (number + 1) W), cut at T. Raises IndexError outside [0, windows).

        Raises LookupError while the window's temperature is still to be learned.
        """
        tau, difficulty = self.temperature(number), self._difficulty(number)
        first = number * self.window_length
        count = min(self.window_length, self.draws - first)
        in_curriculum = first < self.curriculum_draws
        fraction = difficulty.curve(tau) if difficulty else self._uniform_fraction
        if not in_curriculum and self.config.uniform == "epochs":
            ids = self._passes(first, count)
        elif self.config.resampling == "multinomial":
            ids = self._multinomial(np.arange(first, first + count), STREAM_SAMPLE, difficulty, tau)
        else:
            ids = self._systematic(number, count, difficulty, tau)
        phase: Literal["curriculum", "uniform"] = "curriculum" if in_curriculum else "uniform"
        if self._shards is None:
            stretches = np.minimum(np.arange(0, count + STRETCH, STRETCH), count)
        else:
            ids, stretches = arrange(ids, self._shards, self._key(number, STREAM_ARRANGE), self._hash64)
        return WindowPlan(number, first, ids, self._distances_of(number, ids), stretches, tau, fraction, phase)

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
        difficulty, tau = self._difficulty(window_number), self.temperature(window_number)
        ids = self._multinomial(draws, STREAM_SUBSTITUTE + retry, difficulty, tau)
        return ids, self._distances_of(window_number, ids)

    def temperature(self, number: int) -> float:
        """Return tau of window `number`, that of its first draw. Raises IndexError outside [0, windows)."""
        if not 0 <= number < self.windows:
            raise IndexError(f"window {number} of a plan with windows 0 to {self.windows - 1}")
        difficulty = self._difficulty(number)
        if difficulty is None:
            return math.inf
        if self.learned:
            return self.learned.temperature(number)
        assert self._schedule is not None
        return self._schedule(number * self.window_length / self.curriculum_draws, difficulty.curve)

    def _difficulty(self, number: int) -> Difficulty | None:
        """What a window draws by; None after the curriculum and without one."""
        if number * self.window_length >= self.curriculum_draws:
            return None
        return self._scores.difficulty(number) if self._scores else self._fixed

    def _distances_of(self, number: int, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        distances = self._scores.difficulty(number).distances if self._scores else self._distances
        return np.full(len(ids), np.nan, np.float32) if distances is None else distances[ids]

    def _multinomial(
        self, draws: NDArray[np.int64], stream: int, difficulty: Difficulty | None, tau: float
    ) -> NDArray[np.int64]:
        """Draw independently with replacement, by cumulative sum and search in float64: exact for any N."""
        points = unit_interval(self._hash64(self._seed, draws, stream))
        order = np.argsort(points)
        ids = np.empty(len(points), np.int64)
        ids[order] = self._find(difficulty, tau, points[order])
        return ids

    def _systematic(self, number: int, count: int, difficulty: Difficulty | None, tau: float) -> NDArray[np.int64]:
        """Draw by W equally spaced points (a comb) over the images in the block's order, in keyed random order."""
        size = math.ceil(self.samples / self.window_length)  # windows in a block
        block, turn = divmod(number, size)
        images = self._order_of(block)
        # The combs of a block's windows interleave to one comb of size * W points.
        start = unit_interval(self._hash64(self._seed, block, STREAM_COMB))[0] + turn / size
        points = (np.arange(self.window_length) + start % 1.0) / self.window_length
        order = KeyedPermutation(self.window_length, self._key(number, STREAM_ORDER), self._hash64)
        return images(self._find(difficulty, tau, points, images)[order(np.arange(count))])

    def _find(
        self,
        difficulty: Difficulty | None,
        tau: float,
        points: NDArray[np.float64],
        order: KeyedPermutation | None = None,
    ) -> NDArray[np.int64]:
        """The positions in `order` of the images at `points`; without `difficulty` all are equally wide."""
        if difficulty is None:
            return (np.minimum(points, BELOW_1) * self.samples).astype(np.int64)
        return difficulty.find(points, tau, order)

    def _order_of(self, block: int) -> KeyedPermutation:
        """Return the order of the images in a block: the same object for all its windows, planned in turn."""
        kept = self._block
        if kept is None or kept[0] != block:
            kept = self._block = block, KeyedPermutation(self.samples, self._key(block, STREAM_BLOCK), self._hash64)
        return kept[1]

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
    config: CurriculumConfig,
    samples: int,
    distances: NDArray[np.float32] | None,
    scores: MovingScores | None,
    draws: int,
    batch_size: int,
) -> None:
    for name, value in (("samples", samples), ("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if distances is None:
        if config.name != "none" and scores is None:
            raise ValueError(f"curriculum.name is {config.name!r}, which needs distances; build prototypes first")
        return
    if distances.shape != (samples,):
        raise ValueError(f"distances have shape {distances.shape}, not ({samples},); rebuild the prototypes")
    if not (distances.min() >= 0 and distances.max() <= 1):  # false for NaN as well
        raise ValueError(
            f"distances are from {distances.min()} to {distances.max()}, not from 0 to 1; rebuild the prototypes"
        )
