"""What training with labels leaves behind while it goes: checkpoints, figures, and in the end its result."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mimcl.cli.console import console, warn
from mimcl.model import checkpoint
from mimcl.model.async_checkpoint import Saver
from mimcl.model.evaluate.supervised import Supervised
from mimcl.model.metrics import Outcome
from mimcl.model.run_log import RunLog, TensorBoard
from mimcl.pipeline.files import atomic_file

_LOG_EVERY = 20  # steps
_SAVE_EVERY = 512_000  # images: what a kill costs at most
_SAVES, _FEWEST = 10, 20  # a shorter run is saved so often, but not after fewer steps than that


def save_every(batch_size: int, steps: int) -> int:
    """After how many steps a checkpoint is saved, of a run of `steps`."""
    return max(1, min(_SAVE_EVERY // batch_size, max(_FEWEST, steps // _SAVES)))


class FitRecord:
    """Rank 0's writer of a folder: settings.json, metrics.jsonl, checkpoints/, and result.json once all is done.

    Of a folder that is done `tidy` leaves the weights alone, in weights.safetensors.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        training: Supervised,
        batch_size: int,
        show: Callable[[int, str], None],
        decoder: str,
    ) -> None:
        """Warns where training goes on in the folder with another decoder than it had."""
        self._folder, self._training, self._batch_size, self._show = folder, training, batch_size, show
        before = (_read(folder / "settings.json") or {}).get("decoder", decoder)
        if training.position and before != decoder:
            warn(f"decoder changes from {before!r} to {decoder!r}: the same draws, but not the same bits")
        with atomic_file(folder / "settings.json") as file:
            file.write(json.dumps(settings | {"decoder": decoder}, indent=1).encode())
        self._saver = Saver(folder / "checkpoints", keep_last=2, keep_every_steps=0, warn=warn)
        self._log = RunLog(folder, training.position, warn, [TensorBoard(folder, training.position, warn)])
        self._saved = training.position
        self._restart_clock()

    @staticmethod
    def values(folder: Path) -> dict[str, float] | None:
        """The result that the folder has; None where there is none yet."""
        return _read(folder / "result.json")

    @staticmethod
    def tidy(folder: Path) -> None:
        """Keeps of the checkpoints of a folder that has its result the last one's weights, and says where they are."""
        checkpoints, weights = folder / "checkpoints", folder / "weights.safetensors"
        for last in checkpoint.candidates(checkpoints)[:1]:
            with suppress(FileNotFoundError):  # moved already, by a process that was killed then
                os.replace(last / weights.name, weights)
        shutil.rmtree(checkpoints, ignore_errors=True)
        if weights.exists():
            console.print(f"weights: {weights.stat().st_size / 1e6:,.1f} MB stay in {weights}")

    def after_step(self, step: int, outcomes: list[Outcome], last: bool) -> None:
        """Logs what became of steps."""
        figures = ""
        for outcome in outcomes:
            if not outcome.finite:
                warn(f"no finite gradient in step {outcome.step}, which was skipped")
            if outcome.step == 1 or outcome.step % _LOG_EVERY == 0 or (last and outcome.step == step):
                line = {"loss": outcome.loss, "lr": outcome.lr, "grad_norm": outcome.grad_norm}
                self._log.write({"step": outcome.step, "draw": outcome.step * self._batch_size, **line})
                figures = f"loss {outcome.loss:.4f}  lr {outcome.lr:.2e}  {self._images_per_second():,.0f} img/s"
        self._show(step, figures)

    def judged(self, step: int, values: dict[str, float]) -> None:
        """Logs accuracies on the val images."""
        self._log.write({"step": step, "draw": step * self._batch_size, **values})
        self._show(step, "val  " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in values.items()))
        self._restart_clock()

    def begin_to_save(self) -> None:
        """Saves where training is while it goes on; what was logged by now is on the disk before."""
        training = self._training
        step = training.position // self._batch_size
        meta = {"position": training.position}
        self._saver.start(step, training.module.state_dict(), training.state_dict(), meta, self._log.sync)

    def save(self) -> None:
        """Saves where training is, unless that is saved already, and waits until it is on the disk."""
        if written := self._saver.flush():
            self._saved = written * self._batch_size
        if self._training.position != self._saved:
            self.begin_to_save()
            self._saver.finish()

    def finish(self, values: dict[str, float]) -> None:
        """Writes the result down: from now on the folder is complete."""
        self.judged(self._training.position // self._batch_size, values)
        self._log.sync()
        with atomic_file(self._folder / "result.json") as file:
            file.write(json.dumps(values).encode())

    def close(self) -> None:
        self._log.close()
        self._saver.close()

    def _restart_clock(self) -> None:
        self._since, self._from = time.perf_counter(), self._training.position

    def _images_per_second(self) -> float:
        images, seconds = self._training.position - self._from, time.perf_counter() - self._since
        self._restart_clock()
        return images / seconds


def _read(path: Path) -> dict[str, Any] | None:
    """A file of JSON; None where there is none, or none that is whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
