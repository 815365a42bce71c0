"""Ends a training so that nothing is lost: it is saved on rank 0 while the other ranks wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mimcl.cli.console import warn
from mimcl.cli.run.health import Health
from mimcl.cli.run.recorder import Recorder
from mimcl.cli.run.signals import StopSignals
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.distributed import barrier
from mimcl.model.trainer import Trainer
from mimcl.model.world import DistributedError, World
from mimcl.pipeline.files import DataError


@contextmanager
def saved_at_end(
    recorder: Recorder | None, signals: StopSignals, take_in_pending: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Save what was trained when the block ends, by its end or by a stop; `recorder` is None on ranks other than 0.

    The other ranks wait for it: torchrun ends all of them when one leaves early. When bad data or a lost process ends
    the block, rank 0 saves as well if `take_in_pending()`: outcomes that are still to come belong to it.
    """
    try:
        yield
    except BaseException as error:
        signals.disable_timeout()
        if recorder and isinstance(error, DataError | DistributedError) and take_in_pending():
            try:
                recorder.save()
            except CheckpointError as failure:  # what ended the training must be reported too
                warn(str(failure))
        raise
    signals.disable_timeout()
    if recorder:
        recorder.save()
    barrier()


def saved_position(recorder: Recorder | None, take_in_pending: Callable[[], object]) -> bool:
    """Save the position before the step under way, while it cannot change; True where that is another rank's part.

    False if `take_in_pending()` is: an outcome that belongs to the position cannot be taken in. Raises CheckpointError.
    """
    if recorder and take_in_pending() is False:
        return False
    if recorder:
        recorder.save()
    return True


def take_in_pending(trainer: Trainer, temperature: LearnedTemperature | None, health: Health, world: World) -> bool:
    """Take in the outcome that is still to come; False where the other ranks' part of it would be missing."""
    pending = trainer.flush()
    if world.size > 1 and any(outcome.bad or not outcome.finite for outcome in pending):
        return False
    if temperature:
        temperature.update(pending)
    health.check(pending)
    return True
