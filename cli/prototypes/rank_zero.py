"""Work that rank 0 does for all ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mimcl.curriculum.prototypes import PrototypeError
from mimcl.model.world import World
from mimcl.pipeline.files import DataError, is_forbidden, remedy

WRITE_ELSEWHERE = "give a folder of yours with --out FOLDER, and --prototypes FOLDER later, for training"


def on_first_rank(world: World, work: Callable[[], None], folder: Path) -> None:
    """Run `work`, which writes to `folder`, on rank 0 while the others wait; an error is raised on all ranks."""
    from mimcl.model.distributed import gather

    message = ""
    if world.rank == 0:
        try:
            work()
        except (PrototypeError, DataError, ValueError) as error:
            message = str(error)
        except OSError as error:
            advice = f"{remedy(error, 'make room')} and run the command again"
            if is_forbidden(error):
                advice = WRITE_ELSEWHERE
            message = f"{folder} cannot be written ({error.strerror or error}); {advice}"
    if message := gather(message)[0]:
        raise PrototypeError(message)
