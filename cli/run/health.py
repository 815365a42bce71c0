"""Health checks of a run on all ranks: identical windows, bad samples, steps without a finite gradient."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.json_output import json_ready
from mimcl.model.distributed import agree, from_first, gather
from mimcl.model.jsonl import JsonlWriter, keep_lines
from mimcl.model.metrics import Outcome
from mimcl.pipeline.data_config import bad_allowed
from mimcl.pipeline.files import write_json
from mimcl.pipeline.plan import Window
from mimcl.pipeline.stream import Batch
from mimcl.pipeline.substitutes import BadSample


class _Seen(NamedTuple):
    """What is kept of a micro-batch: not its images, which would fill the device."""

    position: int
    draws: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    distances: Tensor
    losses: Tensor
    bad: tuple[BadSample, ...]
    temperature: float


class Health:
    """An observer of the trainer on every rank. Rank 0 writes quarantine.jsonl and nonfinite/STEP.json.

    All ranks know the outcome of a step one step later. Only then, and only if there is something to report, do they
    exchange more than numbers.
    """

    def __init__(
        self,
        folder: Path,
        position: int,
        batch_size: int,
        max_bad: float,
        is_first: bool,
        warn: Callable[[str], None],
        find_all: str = "they are listed there",
    ) -> None:
        """`max_bad` is the share of the draws so far that may be bad samples; 10 are always allowed.

        `find_all` says how to find all bad samples of the data.
        """
        self._folder, self._batch_size, self._max_bad = folder, batch_size, max_bad
        self._is_first, self._warn = is_first, warn
        self._find_all = find_all
        self._quarantine = folder / "quarantine.jsonl"
        self._lines = JsonlWriter(self._quarantine, warn)
        earlier = keep_lines(self._quarantine, lambda line: line["draw"] < position) if is_first else []
        self._bad, self._bad_shards = from_first(len(earlier)), Counter(line["shard"] for line in earlier)
        self.excess: str | None = None  # why the run has to end
        self._window: Window | None = None
        self._seen: deque[_Seen] = deque()  # of the last two steps: outcomes come one step late

    def observe(self, batch: Batch, per_sample_loss: Tensor) -> None:
        """Compare a new window with the other ranks', and remember what this step consists of."""
        if batch.window is not self._window:
            self._window = batch.window
            agree(f"window {batch.window.number} of the plan", batch.window.digest)
        columns = batch.draws, batch.sample_ids, batch.distances, per_sample_loss
        self._seen.append(_Seen(batch.position, *columns, batch.bad, batch.window.temperature))

    def check(self, outcomes: Sequence[Outcome]) -> None:
        """Record what the outcomes report; set `excess` on all ranks when too many samples were bad."""
        for outcome in outcomes:
            end = outcome.step * self._batch_size
            step = [seen for seen in tuple(self._seen) if seen.position == end]  # it may grow meanwhile
            if not outcome.finite:
                self._dump(outcome, step)
            if outcome.bad:
                self._note_bad([asdict(bad) for seen in step for bad in seen.bad], end)
            while self._seen and self._seen[0].position <= end:
                self._seen.popleft()

    def _dump(self, outcome: Outcome, step: list[_Seen]) -> None:
        columns = ("draw", "sample_id", "distance", "loss")
        rows = [
            dict(zip(columns, row, strict=True))
            for seen in step
            for row in zip(*(column.tolist() for column in seen[1:5]), strict=True)
        ]
        draws = [row for rows in gather(json.dumps(rows)) for row in json.loads(rows)]
        if not self._is_first:
            return
        path = self._folder / "nonfinite" / f"{outcome.step:08d}.json"
        content = asdict(outcome) | {"temperature": step[0].temperature, "draws": draws}
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, json_ready(content, nonfinite=str))
            where = f"its draws are in {path}"
        except OSError as error:
            where = f"{path} cannot be written ({error.strerror})"
        self._warn(f"step {outcome.step} was skipped: no finite gradient; {where}")

    def _note_bad(self, mine: list[dict[str, Any]], position: int) -> None:
        rows = sorted((row for rows in gather(json.dumps(mine)) for row in json.loads(rows)), key=lambda r: r["draw"])
        self._bad += len(rows)
        self._bad_shards.update(row["shard"] for row in rows)
        if self._is_first:
            self._lines.write(rows)
            for row in rows[:3]:
                self._warn(f"sample {row['key']} of {row['shard']} is bad and was replaced: {row['reason']}")
        allowed = bad_allowed(self._max_bad, position)
        if self._bad > allowed:
            worst = ", ".join(f"{count} in {shard}" for shard, count in self._bad_shards.most_common(3))
            self.excess = (
                f"{self._bad} bad samples in {position:,} draws are more than the {allowed:,.0f} allowed ({worst}); "
                f"see {self._quarantine}, repair the shards ({self._find_all}), or raise --max-bad"
            )
