"""What goes on beside the steps of a run: its folder is written, all ranks watch, signals ask for a stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from types import TracebackType

from mimcl.cli.config import Config
from mimcl.cli.console import training_bar, warn, warn_before_exit
from mimcl.cli.run.folder import Run
from mimcl.cli.run.health import Watch
from mimcl.cli.run.online_knn import OnlineKnn
from mimcl.cli.run.recorder import Recorder
from mimcl.cli.run.signals import StopSignals
from mimcl.curriculum.plan import Plan
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.distributed import DistributedError, World, barrier
from mimcl.model.metrics import Outcome, Report
from mimcl.model.trainer import Trainer
from mimcl.pipeline.draw_counts import DrawCounts
from mimcl.pipeline.files import DataError


class Supervisor:
    """Gives the trainer its observers, what follows each step, and whether to stop, while the block lasts.

    When the block ends with the run or a stop, what was trained is saved, on rank 0, and the other ranks wait for it:
    torchrun ends all of them when one leaves early. It is saved as well when bad data or a lost process ends the run.
    Raises DataError in the end when too many samples were bad.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        plan: Plan,
        trainer: Trainer,
        marks: dict[str, str | None],
        counts: DrawCounts,
        world: World,
        online_knn: OnlineKnn | None = None,
        released: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`released` is entered around what decodes images itself: the stream's, which holds no decoder meanwhile."""
        self._online_knn, self._released, self._draws = online_knn, released, plan.draws
        self._trainer, self._batch_size, self._world_size = trainer, config.data.batch_size, world.size
        self._learned, self._signals = plan.learned, StopSignals(warn_before_exit)
        with ExitStack() as until_the_end:
            until_the_end.enter_context(self._signals)
            self._watch = Watch(run.folder, trainer.position, config.data.max_bad, world.rank == 0, warn)
            self.observers = [self._watch]
            self._recorder: Recorder | None = None
            if world.rank == 0:
                bar = training_bar(trainer.position // self._batch_size, plan.draws // self._batch_size)
                show = until_the_end.enter_context(bar)
                self._recorder = Recorder(run.folder, config, plan, trainer, marks, counts, show, warn)
                self.observers.append(until_the_end.enter_context(closing(self._recorder)))
            self._until_the_end = until_the_end.pop_all()

    def after_step(self, step: int, report: Report | None, outcomes: list[Outcome]) -> None:
        """To be called after each step, as the trainer does."""
        self._signals.step_done()
        self._tell(outcomes)
        # Who is asked to stop has seconds; all ranks know it of the same step. A run that is at its end does look up.
        stops = any(outcome.stop for outcome in outcomes) and self._trainer.position < self._draws
        if self._online_knn and not stops and self._online_knn.is_due(self._trainer.position, self._batch_size):
            self._look_up()
        if self._recorder:
            self._recorder.after_step(step, report)

    def _look_up(self) -> None:
        """On all ranks; written down before the checkpoint of the same step, so that a resume does not do it again."""
        with self._trainer.paused(), self._signals.pausing(), self._released():
            found = self._online_knn()
        if self._recorder:
            self._recorder.evaluated(self._online_knn.name, found)

    def _tell(self, outcomes: list[Outcome]) -> None:
        if self._learned:  # before anything that may fail: a checkpoint made then has to have them
            self._learned.add(outcomes)
        self._watch.after_step(outcomes, self._batch_size)

    def stop(self) -> bool:
        """Whether this process was asked to stop, or has to."""
        return self._signals.requested or self._watch.excess is not None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._until_the_end:
            self._signals.be_patient()
            if error is None:
                if self._recorder:
                    self._recorder.save()
                barrier()
            elif self._recorder and isinstance(error, DataError | DistributedError):
                self._save_alone()
        if error is None and self._watch.excess:
            raise DataError(self._watch.excess)

    def _save_alone(self) -> None:
        """Saves when no other rank can be asked any more; not where their part of what happened would be missing."""
        pending = self._trainer.flush()
        if self._world_size > 1 and any(outcome.bad or not outcome.finite for outcome in pending):
            return
        self._tell(pending)
        try:
            self._recorder.save()
        except CheckpointError as failure:  # what ended the run is to be told as well
            warn(str(failure))
