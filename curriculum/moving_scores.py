"""Scores of all images that change during a run, such as losses: a curriculum by what is known of the images so far.

A score is any number, higher = harder; scaled by the lowest and the highest score of all images to [0, 1], it takes the
place of the distance to a prototype. A change that is made after a step of window w takes effect in window w + 2 (see
`WindowGate`), one that is made before the first step in window 0. So what a window draws is a pure function of the
changes and the draws after which they were made, whatever was planned ahead, on any number of processes.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.difficulty import Difficulty
from mimcl.curriculum.window_gate import WindowGate


class _Version:
    """The scores of all images from window `first` on, until the next version begins."""

    def __init__(self, first: int, scores: NDArray[np.float32]) -> None:
        self.first, self.scores = first, scores
        self.difficulty: Difficulty | None = None  # computed when the first window is planned


class MovingScores:
    """The scores of each window. Changes come from the training thread, windows are planned in another one.

    `scores` is (N,). Raises ValueError for scores that are not finite or all equal, and for windows of fewer than 4
    batches, for which training would wait (see `WindowGate`).
    """

    def __init__(
        self,
        scores: ArrayLike,
        config: CurriculumConfig,
        *,
        samples: int,
        batch_size: int,
        balance: Balance | None = None,
    ) -> None:
        self._config, self._balance, self._samples = config, balance, samples
        self._window_length = config.window_length(samples, batch_size)
        if self._window_length < 4 * batch_size:
            raise ValueError(
                f"curriculum.window is {self._window_length} draws; scores that change need at least 4 batches "
                f"({4 * batch_size}); raise it, or leave it out"
            )
        self._versions = [_Version(0, self._checked(scores))]
        self._position = 0  # changes are made after the draws before it
        self._gate = WindowGate(1)

    def advance(self, position: int) -> None:
        """Note that the batch that ends before draw `position` is wanted: changes from now on are made after it."""
        self._position = position
        window = (position - 1) // self._window_length
        self._gate.open(window + 1)
        current = max((place for place, version in enumerate(self._versions) if version.first <= window), default=0)
        self._versions = self._versions[current:]

    def set(self, scores: ArrayLike) -> None:
        """Replace all scores, (N,). Raises ValueError as the constructor does; then nothing changes."""
        checked = self._checked(scores)
        self._pending()[:] = checked

    def update(self, sample_ids: ArrayLike, scores: ArrayLike) -> None:
        """Change the scores (n,) of some images (n,); of an image that is there twice the last one counts.

        Raises ValueError for unknown ids, another number of scores, and scores that are not finite; then nothing
        changes.
        """
        ids, values = np.asarray(sample_ids), np.asarray(scores, np.float32)
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or values.shape != ids.shape:
            raise ValueError(
                f"an update needs as many scores as sample ids, which are integers; got {values.shape} scores, "
                f"{ids.shape} ids of type {ids.dtype}"
            )
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._samples):
            unknown = ids[(ids < 0) | (ids >= self._samples)][0]
            raise ValueError(f"sample id {unknown} is unknown: ids are 0 to {self._samples - 1}")
        _require_finite(values)
        if len(ids):
            self._pending()[ids] = values

    def when_ready(self, window: int) -> Future[None] | None:
        """Return a future that is done once the scores of `window` are final; None if they are. Thread-safe."""
        return self._gate.when_open(window)

    def difficulty(self, window: int) -> Difficulty:
        """Return the difficulty of a window from the current one on. Raises ValueError if all its scores are equal."""
        version = next(v for v in reversed(self._versions) if v.first <= window)
        if version.difficulty is None:
            version.difficulty = Difficulty(self._config, scaled(version.scores), self._balance)
        return version.difficulty

    def state_dict(self) -> dict[str, Any]:
        """Return the scores of the current window and all later ones; the tensors are copies."""
        import torch  # only now: commands that are refused import none of it

        return {"versions": [(v.first, torch.tensor(v.scores)) for v in self._versions], "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state. Raises ValueError for the scores of another number of images."""
        versions = [_Version(first, self._checked(scores.numpy())) for first, scores in state["versions"]]
        self._versions, self._gate = versions, WindowGate(1)
        self.advance(state["position"])

    def _checked(self, scores: ArrayLike) -> NDArray[np.float32]:
        checked = np.array(scores, np.float32)  # a copy
        if checked.shape != (self._samples,):
            raise ValueError(
                f"scores have shape {checked.shape}; there must be one for each of {self._samples:,} images"
            )
        _require_finite(checked)
        if checked.min() == checked.max():
            raise ValueError(f"all scores are equal ({checked[0]:g}); a curriculum needs different ones")
        return checked

    def _pending(self) -> NDArray[np.float32]:
        """The scores that a change now changes: those of the first window that is not final, copied when it begins."""
        window = (self._position - 1) // self._window_length + 2 if self._position else 0
        if self._versions[-1].first < window:
            self._versions = [*self._versions, _Version(window, self._versions[-1].scores.copy())]
        self._versions[-1].difficulty = None  # before the first step there may be one
        return self._versions[-1].scores


def scaled(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale scores (N,) by the lowest and the highest to [0, 1]. Raises ValueError if all are equal."""
    low, high = np.float64(scores.min()), np.float64(scores.max())
    if low == high:
        raise ValueError(f"all scores are equal ({low:g}); a curriculum needs different ones")
    return ((scores - low) / (high - low)).astype(np.float32)


def _require_finite(scores: NDArray[np.float32]) -> None:
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"the score at position {place} is {scores[place]}; scores must be finite")
