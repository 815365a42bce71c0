"""Records a training in its folder, on rank 0: lines of metrics, checkpoints, and the figures on the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from mimcl.model.async_checkpoint import AsyncCheckpointer
from mimcl.model.run_log import RunLog, Sink, TensorBoard

Show = Callable[[int, str], None]  # of a step and its figures; empty for none


class Training(Protocol):
    """What is recorded: its next step begins at draw `position`."""

    @property
    def position(self) -> int: ...


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint.

    `uncopied` tensors belong to its state and must not change while it is written. `write_first` is called in the
    saving thread before: it writes what must not be older than the checkpoint.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    meta: dict[str, Any]
    uncopied: dict[str, Tensor] = field(default_factory=dict)
    write_first: Callable[[], None] = lambda: None


class Recorder:
    """The one writer of metrics.jsonl and checkpoints/ in a folder, from the training's position on.

    A subclass says what a checkpoint consists of (`snapshot`).
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        batch_size: int,
        show: Show,
        warn: Callable[[str], None],
        *,
        keep_last: int,
        keep_every_steps: int,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._folder, self._training, self._batch_size, self._show = folder, training, batch_size, show
        self._saver = AsyncCheckpointer(
            folder / "checkpoints", keep_last=keep_last, keep_every_steps=keep_every_steps, warn=warn
        )
        self._log = RunLog(folder, training.position, warn, [TensorBoard(folder, warn, training.position), *sinks])
        self._saved = training.position  # in a checkpoint that is complete, or where the training began

    def snapshot(self) -> Snapshot:
        """Return what a checkpoint of this moment consists of."""
        raise NotImplementedError

    @property
    def _step(self) -> int:
        return self._training.position // self._batch_size

    def log(self, line: Mapping[str, Any], numbers: Mapping[str, float] | None = None) -> None:
        """Write one line to metrics.jsonl, and its numbers, or those given instead, to TensorBoard and the trackers."""
        self._log.write(line, numbers)

    def begin_save(self) -> None:
        """Save this moment in the background; skipped, with a warning, while the last checkpoint is being written."""
        content = self.snapshot()

        def write_first() -> None:
            content.write_first()
            self._log.sync()  # a checkpoint must not outlive the lines before it

        self._saver.start(self._step, content.tensors, content.state, content.meta, write_first, content.uncopied)

    def save(self) -> None:
        """Save this moment, unless it is saved already, and wait until it is on the disk. Raises CheckpointError."""
        if written := self._saver.flush():
            self._saved = written * self._batch_size
        if self._training.position != self._saved:
            self.begin_save()
            self._saver.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and wait for a checkpoint that is being written."""
        self._log.close()
        self._saver.close()
