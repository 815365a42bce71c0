"""What one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mimcl.curriculum.prototypes import PrototypeError
from mimcl.model.distributed import World, gather
from mimcl.pipeline.files import DataError


def on_first_rank(world: World, work: Callable[[], None], folder: Path) -> None:
    """Rank 0 works, writing to `folder`, while the others wait; what it cannot do is an error on all, in its words."""
    said = ""
    if world.rank == 0:
        try:
            work()
        except (PrototypeError, DataError, ValueError) as error:
            said = str(error)
        except OSError as error:
            said = (
                f"{folder} cannot be written to ({error.strerror or error}); make room and go on with the same command"
            )
    if said := gather(said)[0]:
        raise PrototypeError(said)
