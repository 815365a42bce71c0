"""The protocol of a plan, which says what sample each draw is, and plans over given samples."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

STRETCH = 1 << 12  # draws


class Window(Protocol):
    """Consecutive draws with one temperature, as a frozen dataclass; the stream only passes some fields on.

    Draws [stretches[k], stretches[k + 1]) of the window are a stretch: they are read together, ahead of their use.
    `digest` is a hash of the sample ids, which ranks compare.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def number(self) -> int: ...
    @property
    def first_draw(self) -> int: ...
    @property
    def sample_ids(self) -> NDArray[np.int64]: ...
    @property
    def distances(self) -> NDArray[np.float32]: ...
    @property
    def stretches(self) -> NDArray[np.int64]: ...
    @property
    def temperature(self) -> float: ...
    @property
    def effective_fraction(self) -> float: ...
    @property
    def phase(self) -> str: ...
    @property
    def digest(self) -> str: ...


class Plan(Protocol):
    """Which sample each of `draws` draws is, in windows of `window_length` draws.

    A draw whose sample is bad gets the substitute of retry 0, or of retry 1 if that is bad as well, and so on. With
    `retries` 0, samples are never replaced.
    """

    @property
    def draws(self) -> int: ...
    @property
    def window_length(self) -> int: ...
    @property
    def retries(self) -> int: ...

    def when_ready(self, number: int) -> Future[None] | None:
        """A future that is done once window `number` can be planned; None if it already can. Called by any thread."""

    def window(self, number: int) -> Window: ...

    def substitutes(
        self, window_number: int, draws: NDArray[np.int64], retry: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Sample ids and distances, both (n,), for draws (n,) of one window; retry in [0, retries)."""


class InOrderPlan:
    """Reads given samples in order, for features, evaluation and pictures: draw g is sample_ids[g]."""

    window_length = 1 << 16
    retries = 0  # the features of another image would be wrong; see ReadOptions.keep_bad

    def __init__(self, sample_ids: NDArray[np.int64]) -> None:
        self.draws, self._sample_ids = len(sample_ids), sample_ids

    def when_ready(self, number: int) -> None:
        return None

    def window(self, number: int) -> Window:
        first = number * self.window_length
        sample_ids = self._sample_ids[first : first + self.window_length]
        distances = np.full(len(sample_ids), np.nan, np.float32)
        stretches = np.minimum(np.arange(0, len(sample_ids) + STRETCH, STRETCH), len(sample_ids))
        return _InOrderWindow(number, first, sample_ids, distances, stretches)

    def substitutes(
        self, window_number: int, draws: NDArray[np.int64], retry: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        raise IndexError(f"retry {retry} of a plan without substitutes")


class SubsetPlan:
    """Applies a plan to some of the samples: its sample k is sample_ids[k]."""

    def __init__(self, plan: Plan, sample_ids: NDArray[np.int64]) -> None:
        self._plan, self._sample_ids = plan, sample_ids
        self.draws, self.window_length, self.retries = plan.draws, plan.window_length, plan.retries

    def when_ready(self, number: int) -> Future[None] | None:
        return self._plan.when_ready(number)

    def window(self, number: int) -> Window:
        window = self._plan.window(number)
        return replace(window, sample_ids=self._sample_ids[window.sample_ids])

    def substitutes(
        self, window_number: int, draws: NDArray[np.int64], retry: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        sample_ids, distances = self._plan.substitutes(window_number, draws, retry)
        return self._sample_ids[sample_ids], distances


@dataclass(frozen=True)
class _InOrderWindow:
    number: int
    first_draw: int
    sample_ids: NDArray[np.int64]
    distances: NDArray[np.float32]
    stretches: NDArray[np.int64]
    temperature: float = math.inf
    effective_fraction: float = math.nan
    phase: str = "in order"

    @property
    def digest(self) -> str:
        return xxhash.xxh64(np.ascontiguousarray(self.sample_ids, "<i8").data).hexdigest()
