"""`mimcl prototypes build`: the distance of every image to its prototype."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mimcl.curriculum.features import FeatureExtractor
    from mimcl.pipeline.index import ShardIndex

prototypes = typer.Typer(no_args_is_help=True, help="Prototype sets: how typical each image is.")


@prototypes.callback()
def _group() -> None:
    pass
