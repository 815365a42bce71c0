"""Training that kills itself with SIGKILL at an exact point, in a real process (see `ranks`)."""

import os
import signal
from pathlib import Path

from helpers import ranks


def start(folder: Path, *arguments: str, at: str, rank: int = 0, size: int = 1, **environment: str) -> list:
    """As `ranks.start`, but `rank` dies at "step N" (after its update, before anything is written) or at "write N".

    A write is an fsync or rename by this process, counted from 1.
    """
    place = {"DIE_AT": at, "DIE_RANK": str(rank)}
    return ranks.start(folder, *arguments, size=size, before=arm, **environment, **place)


def arm() -> None:
    """Set the point at which this process dies, and shrink its model."""
    ranks.shrink_model()
    kind, number = os.environ["DIE_AT"].split()
    if os.environ["RANK"] != os.environ["DIE_RANK"]:
        return
    if kind == "step":
        from mimcl.model.trainer import Trainer

        steps = Trainer.steps

        def dying(self, *arguments):
            for step in steps(self, *arguments):
                if step.number == int(number):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield step

        Trainer.steps = dying
        return
    left = [int(number)]

    def counted(write):
        def dying(*arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)

        return dying

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
