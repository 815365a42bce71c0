"""What goes on beside the steps of a run: its folder is written, all ranks watch, signals ask for a stop."""

from __future__ import annotations

from contextlib import ExitStack, closing
from types import TracebackType

from mimcl.cli.config import Config
from mimcl.cli.console import last_words, training_bar, warn
from mimcl.cli.record import Recorder
from mimcl.cli.run import Run
from mimcl.cli.stop import StopSignals
from mimcl.cli.watch import Watch
from mimcl.curriculum.sampler import Plan
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.distributed import DistributedError, barrier
from mimcl.model.metrics import Outcome, Report
from mimcl.model.trainer import Trainer
from mimcl.pipeline.files import DataError


class Supervisor:
    """Gives the trainer its observers, what follows each step, and whether to stop, while the block lasts.

    When the block ends with the run or a stop, what was trained is saved, on rank 0, and the other ranks wait for it:
    torchrun ends all of them when one leaves early. It is saved as well when bad data or a lost process ends the run.
    """

    def __init__(
        self, run: Run, config: Config, plan: Plan, trainer: Trainer, marks: dict[str, str | None], is_first: bool
    ) -> None:
        self._batch_size = config.data.batch_size
        self._watch = Watch(run.folder, trainer.position, config.data.max_bad, is_first, warn)
        self.observers = [self._watch]
        self._recorder: Recorder | None = None
        self._until_the_end = ExitStack()
        if is_first:
            bar = training_bar(trainer.position // self._batch_size, plan.draws // self._batch_size)
            show = self._until_the_end.enter_context(bar)
            self._recorder = Recorder(run.folder, config, plan, trainer, marks, show, warn)
            self.observers.append(self._until_the_end.enter_context(closing(self._recorder)))
        self._signals = StopSignals(last_words)

    def after_step(self, step: int, report: Report | None, outcomes: list[Outcome]) -> None:
        """To be called after each step, as the trainer does."""
        self._signals.step_done()
        try:
            self._watch.after_step(outcomes, self._batch_size)
        finally:
            if self._recorder:
                self._recorder.after_step(step, report)

    def stop(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signals.requested

    def __enter__(self) -> Supervisor:
        self._until_the_end.enter_context(self._signals)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._until_the_end:
            self._signals.be_patient()
            if self._recorder and error is None:
                self._recorder.save()
            elif self._recorder and isinstance(error, DataError | DistributedError):
                try:
                    self._recorder.save()
                except CheckpointError as failure:  # what ended the run is to be told as well
                    warn(str(failure))
            if error is None:
                barrier()
