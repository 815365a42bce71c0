"""Records a pre-training run: windows, reports, evaluations, draw counts and checkpoints."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.config import Config, without_secrets, write_yaml
from mimcl.cli.evaluate.results_file import format_value
from mimcl.cli.run.online import Found
from mimcl.cli.run.recorder import Recorder, Show, Snapshot
from mimcl.cli.run.resume import LEARNED
from mimcl.cli.run.sides import relative_cost
from mimcl.cli.run.trackers import trackers_of_run
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.resolution import Resolution
from mimcl.model.steps import Step
from mimcl.model.trainer import Trainer
from mimcl.pipeline.draw_counts import DrawCounts
from mimcl.pipeline.plan import Window
from mimcl.pipeline.read_plan import ReadStats
from mimcl.pipeline.stream import Batch

_NOTHING = np.empty(0, np.int64)
_QUANTILES = (0.1, 0.5, 0.9)


class RunRecorder(Recorder):
    """The recorder of a pre-training run, and an observer of its steps: it logs windows and counts their draws."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        plan: Plan,
        sides: Resolution,
        trainer: Trainer,
        fingerprints: dict[str, str | None],
        counts: DrawCounts,
        show: Show,
        warn: Callable[[str], None],
    ) -> None:
        """`config` is the resolved configuration; `counts` says how often each sample was drawn so far."""
        config = without_secrets(config)
        super().__init__(
            folder,
            trainer,
            config.data.batch_size,
            show,
            warn,
            keep_last=config.trainer.keep_last,
            keep_every_steps=config.trainer.keep_every_steps or 0,
            sinks=trackers_of_run(folder, config, warn),
        )
        self._config, self._plan, self._sides, self._trainer = config, plan, sides, trainer
        self._fingerprints, self._counts = fingerprints, counts
        write_yaml(folder / "config.yaml", config)
        self._window: Window | None = None
        self._observing = threading.Lock()  # a step may be abandoned at any point, and saved by another thread
        # A window that began before the position is in the log already.
        self._last_logged = math.ceil(trainer.position / plan.window_length) - 1

    def observe(self, batch: Batch, per_sample_loss: Tensor) -> None:
        """Log a window when its first micro-batch arrives."""
        with self._observing:
            self._observe(batch)

    def _observe(self, batch: Batch) -> None:
        if batch.window is self._window:
            return
        window = self._window = batch.window
        if window.number <= self._last_logged:
            return
        self._last_logged = window.number
        if self._saver.writing:  # the counts as they are
            self._counts = self._counts.without(_NOTHING)
        self._counts.add(window.sample_ids)
        self.log(
            {
                "window": window.number,
                "draw": window.first_draw,
                **_difficulty(window),
                **self._gradient(window),
                "digest": window.digest,
                **_reads(batch.read_stats),
                **_quantiles(window.distances),
                "coverage": self._counts.coverage,
                "max_repeats": self._counts.max_repeats,
            }
        )

    def write(self, step: Step) -> None:
        """Log the report of a step, and begin to save a checkpoint when one is due."""
        figures, report, window = "", step.report, self._current_window()
        if report:
            values = asdict(report)
            of_masker = values.pop("masking")
            self.log(values | of_masker | _difficulty(window) | self._size(report.draw))
            figures = (
                f"loss {report.loss:.4f}  lr {report.lr:.2e}  {report.images_per_second:,.0f} img/s  "
                f"data-wait {report.data_wait:.0%}  tau {window.temperature:.3g}  r {window.effective_fraction:.3f}"
            )
            if report.nonfinite_steps:
                figures += f"  {report.nonfinite_steps} steps skipped (no finite gradient)"
        self._show(step.number, figures)
        if step.number % self._config.trainer.checkpoint_every_steps == 0:
            self.begin_save()

    def evaluated(self, found: Sequence[Found]) -> None:
        """Log evaluations of the model at the trainer's position; called before `write` of the same step.

        Then the checkpoint of that step has them, and a resumed run does not evaluate again.
        """
        for name, values, settings in found:
            line = {"evaluation": name, "draw": self._trainer.position, "values": values}
            if settings:
                line["settings"] = settings
            self.log(line, {f"{name}/{value}": number for value, number in values.items()})
            shown = "  ".join(f"{value} {format_value(value, number)}" for value, number in values.items())
            self._show(self._step, f"{name}  {shown}")

    def snapshot(self) -> Snapshot:
        with self._observing:
            return self._snapshot()

    def _snapshot(self) -> Snapshot:
        window, position = self._current_window(), self._trainer.position
        # A window whose first step did not finish begins again after a resume.
        begins_again = window.first_draw >= position
        counts = self._counts.without(window.sample_ids) if begins_again else self._counts
        meta = {
            "position": position,
            "samples": len(counts.counts),
            "config": asdict(self._config),
            "fingerprints": self._fingerprints,
            "window": {"number": window.number, "digest": window.digest},
        }
        state = self._trainer.state_dict()
        if self._plan.learned:
            state[LEARNED] = self._plan.learned.state_dict()
        return Snapshot(
            self._trainer.tensors(),
            state,
            meta,
            uncopied={"draw_counts": torch.from_numpy(counts.counts.view(np.int32))},
            write_first=partial(counts.save, self._folder / "draw_counts.npy"),
        )

    def _current_window(self) -> Window:
        assert self._window is not None, "nothing was drawn yet"
        return self._window

    def _size(self, draw: int) -> dict[str, float]:
        """Side and relative cost of the step that ended at `draw`, where a resolution curriculum changes them."""
        if not self._sides.changes:
            return {}
        side = self._sides.side_at(draw - self._config.data.batch_size)
        return {"image_size": side, "relative_cost": relative_cost(self._config, side)}

    def _gradient(self, window: Window) -> dict[str, float]:
        """The two terms that led to the window's temperature, where it is learned."""
        if not self._plan.learned or window.phase != "curriculum":
            return {}
        terms = self._plan.learned.gradient(window.number)
        return {"temperature_gradient_loss": terms.loss, "temperature_gradient_entropy": terms.entropy}


def _difficulty(window: Window) -> dict[str, float]:
    return {"temperature": window.temperature, "effective_fraction": window.effective_fraction}


def _reads(figures: ReadStats | None) -> dict[str, float]:
    """What this machine reads in the window, where that is planned."""
    if figures is None:
        return {}
    return {
        "read_amplification": figures.amplification,
        "requests": figures.requests,
        "shards_touched": figures.shards,
    }


def _quantiles(distances: NDArray[np.float32]) -> dict[str, float]:
    values = np.quantile(distances, _QUANTILES).tolist()
    return {f"distance_q{round(100 * q)}": value for q, value in zip(_QUANTILES, values, strict=True)}
