"""What a run leaves behind while it goes: metrics, draw counts, checkpoints, and the line of figures on the screen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.config import Config, without_secrets, write_yaml
from mimcl.cli.run.resume import LEARNED
from mimcl.cli.run.trackers import trackers_of_run
from mimcl.curriculum.plan import Plan, WindowPlan
from mimcl.model.async_checkpoint import Saver
from mimcl.model.metrics import Report
from mimcl.model.run_log import RunLog, TensorBoard
from mimcl.model.trainer import Trainer
from mimcl.pipeline.draw_counts import DrawCounts
from mimcl.pipeline.read_plan import ReadStats
from mimcl.pipeline.stream import Batch

_NOTHING = np.empty(0, np.int64)
_QUANTILES = (0.1, 0.5, 0.9)


class Recorder:
    """An observer of the trainer, on rank 0 alone, that writes the run folder from the trainer's position on."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        plan: Plan,
        trainer: Trainer,
        fingerprints: dict[str, str | None],
        counts: DrawCounts,
        show: Callable[[int, str], None],
        warn: Callable[[str], None],
    ) -> None:
        config = without_secrets(config)
        self._folder, self._config, self._plan, self._trainer = folder, config, plan, trainer
        self._fingerprints, self._show = fingerprints, show
        self._saver = Saver(
            folder / "checkpoints",
            keep_last=config.trainer.keep_last,
            keep_every_steps=config.trainer.keep_every_steps,
            warn=warn,
        )
        self._safe = trainer.position  # where training can go on from, whatever happens
        write_yaml(folder / "config.yaml", config)
        self._counts = counts
        self._window: WindowPlan | None = None
        # A window begun before the position has been written down already.
        self._last_begun = math.ceil(trainer.position / plan.window_length) - 1
        sinks = [TensorBoard(folder, trainer.position, warn), *trackers_of_run(folder, config, warn)]
        self._log = RunLog(folder, trainer.position, warn, sinks)

    def close(self) -> None:
        """Ends the files and waits for a checkpoint that is being written."""
        self._log.close()
        self._saver.close()

    def observe(self, batch: Batch, per_sample_loss: Tensor) -> None:
        """Writes down a window when its first micro-batch arrives."""
        if batch.window is self._window:
            return
        self._window = batch.window
        if self._window.number <= self._last_begun:
            return
        self._last_begun = self._window.number
        if self._saver.writing:  # the counts as they are
            self._counts = self._counts.without(_NOTHING)
        self._counts.add(self._window.sample_ids)
        self._log.write(
            {
                "window": self._window.number,
                "draw": self._window.first_draw,
                **self._difficulty(),
                **self._gradient(),
                "digest": self._window.digest,
                **_reads(batch.read_stats),
                **_quantiles(self._window.distances),
                "coverage": self._counts.coverage,
                "max_repeats": self._counts.max_repeats,
            }
        )

    def after_step(self, step: int, report: Report | None) -> None:
        """Logs a report, and begins to save a checkpoint when it is time."""
        figures = ""
        if report:
            figures = asdict(report)
            of_masker = figures.pop("masking")
            self._log.write(figures | of_masker | self._difficulty())
            figures = (
                f"loss {report.loss:.4f}  lr {report.lr:.2e}  {report.images_per_second:,.0f} img/s  "
                f"data-wait {report.data_wait:.0%}  tau {self._window.temperature:.3g}  "
                f"r {self._window.effective_fraction:.3f}"
            )
            if report.nonfinite_steps:
                figures += f"  {report.nonfinite_steps} steps without a finite gradient skipped"
        self._show(step, figures)
        if step % self._config.trainer.checkpoint_every_steps == 0:
            self._save()

    def evaluated(self, evaluation: str, values: dict[str, float]) -> None:
        """Writes down what was found out about the model at the trainer's position."""
        line = {"evaluation": evaluation, "draw": self._trainer.position, "values": values}
        self._log.write(line, {f"{evaluation}/{name}": value for name, value in values.items()})
        shares = "  ".join(f"{name} {value:.1%}" for name, value in values.items())
        self._show(self._trainer.position // self._config.data.batch_size, f"{evaluation}  {shares}")

    def save(self) -> None:
        """Saves where training is now, unless that is saved already, and waits until it is on the disk.

        Raises CheckpointError.
        """
        if written := self._saver.flush():
            self._safe = written * self._config.data.batch_size
        if self._trainer.position != self._safe:
            self._save()
            self._saver.finish()

    def _save(self) -> None:
        trainer, window = self._trainer, self._window
        # A window whose first step did not come to its end begins again after a resume.
        begins_again = window.first_draw >= trainer.position
        counts = self._counts.without(window.sample_ids) if begins_again else self._counts
        meta: dict[str, Any] = {
            "position": trainer.position,
            "samples": len(counts.counts),
            "config": asdict(self._config),
            "fingerprints": self._fingerprints,
            "window": {"number": window.number, "digest": window.digest},
        }
        step = trainer.position // self._config.data.batch_size
        state = trainer.state_dict()
        if self._plan.learned:
            state[LEARNED] = self._plan.learned.state_dict()

        def write_first() -> None:
            counts.save(self._folder / "draw_counts.npy")
            self._log.sync()

        uncopied = {"draw_counts": torch.from_numpy(counts.counts.view(np.int32))}
        self._saver.start(step, trainer.tensors(), state, meta, write_first, uncopied)

    def _difficulty(self) -> dict[str, float]:
        return {"temperature": self._window.temperature, "effective_fraction": self._window.effective_fraction}

    def _gradient(self) -> dict[str, float]:
        """The two terms that led to the window's temperature, where it is learned."""
        if not self._plan.learned or self._window.phase != "curriculum":
            return {}
        terms = self._plan.learned.gradient(self._window.number)
        return {"temperature_gradient_loss": terms.loss, "temperature_gradient_entropy": terms.entropy}


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
