"""Records training with labels: checkpoints, figures, and in the end its result."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from mimcl.cli.console import console, warn
from mimcl.cli.run.recorder import Recorder, Show, Snapshot
from mimcl.model import checkpoint
from mimcl.model.classifier_weights import DESCRIPTION
from mimcl.model.steps import Step, StepLoop
from mimcl.pipeline.files import atomic_file, write_json
from mimcl.pipeline.stream import Batch

LEFT_OUT = "left_out"  # key of the number of bad val images beside the accuracies
_LOG_EVERY = 20  # steps
_SAVE_EVERY = 512_000  # images: what a kill costs at most
_SAVES, _FEWEST = 10, 20  # a shorter run is saved so often, but not after fewer steps than that


def save_every(batch_size: int, steps: int) -> int:
    """Return after how many steps a checkpoint is saved, in a training of `steps`."""
    return max(1, min(_SAVE_EVERY // batch_size, max(_FEWEST, steps // _SAVES)))


class FitRecorder(Recorder):
    """The recorder of training with labels; it writes settings.json, and result.json once all is done.

    `tidy` then leaves only the weights in the folder, in weights.safetensors.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        loop: StepLoop[Batch],
        tensors: Callable[[], dict[str, Tensor]],
        batch_size: int,
        show: Show,
        decoder: str,
    ) -> None:
        """`tensors()` is the state of the module. Warn if training resumes in the folder with another decoder."""
        before = (_read(folder / "settings.json") or {}).get("decoder", decoder)
        if loop.position and before != decoder:
            warn(f"decoder changes from {before!r} to {decoder!r}: same draws, but results are not bit-identical")
        with atomic_file(folder / "settings.json") as file:
            file.write(json.dumps(settings | {"decoder": decoder}, indent=1).encode())
        super().__init__(folder, loop, batch_size, show, warn, keep_last=2, keep_every_steps=0)
        self._loop, self._tensors = loop, tensors
        self._restart_clock()

    def snapshot(self) -> Snapshot:
        return Snapshot(self._tensors(), self._loop.state_dict(), {"position": self._loop.position})

    @staticmethod
    def values(folder: Path) -> dict[str, float] | None:
        """Return the result that the folder has, with LEFT_OUT; None where there is none yet."""
        return _read(folder / "result.json")

    @staticmethod
    def describe(folder: Path, about: Mapping[str, Any]) -> None:
        """Write what the weights of the folder are, unless it says so already."""
        if _read(folder / DESCRIPTION) != about:
            write_json(folder / DESCRIPTION, about)

    @staticmethod
    def tidy(folder: Path) -> None:
        """Replace the checkpoints of a folder that has its result by the weights of the last one, and print where."""
        checkpoints, weights = folder / "checkpoints", folder / "weights.safetensors"
        for last in checkpoint.candidates(checkpoints)[:1]:
            with suppress(FileNotFoundError):  # moved already by a process that was killed then
                os.replace(last / weights.name, weights)
        shutil.rmtree(checkpoints, ignore_errors=True)
        if weights.exists():
            console.print(f"weights: {weights.stat().st_size / 1e6:,.1f} MB kept in {weights}")

    def write(self, step: Step, last: bool) -> None:
        """Log the outcomes of steps; `last` says whether this step ends the training."""
        figures = ""
        for outcome in step.outcomes:
            if not outcome.finite:
                warn(f"step {outcome.step} was skipped: no finite gradient")
            if outcome.step == 1 or outcome.step % _LOG_EVERY == 0 or (last and outcome.step == step.number):
                line = {"loss": outcome.loss, "lr": outcome.lr, "grad_norm": outcome.grad_norm}
                self.log({"step": outcome.step, "draw": outcome.step * self._batch_size, **line})
                figures = f"loss {outcome.loss:.4f}  lr {outcome.lr:.2e}  {self._images_per_second():,.0f} img/s"
        self._show(step.number, figures)

    def evaluated(self, values: dict[str, float]) -> None:
        """Log accuracies on the val images."""
        self.log({"step": self._step, "draw": self._loop.position, **values})
        self._show(self._step, "val  " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in values.items()))
        self._restart_clock()

    def finish(self, values: dict[str, float], left_out: int) -> None:
        """Write the result, and how many val images were bad and skipped: from now on the folder is complete."""
        self.evaluated(values)
        self._log.sync()
        with atomic_file(self._folder / "result.json") as file:
            file.write(json.dumps(values | {LEFT_OUT: left_out}).encode())

    def _restart_clock(self) -> None:
        self._since, self._from = time.perf_counter(), self._loop.position

    def _images_per_second(self) -> float:
        images, seconds = self._loop.position - self._from, time.perf_counter() - self._since
        self._restart_clock()
        return images / seconds


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; None where there is none, or not a complete one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
