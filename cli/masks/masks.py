"""`mimcl masks`: what the masker of a run removes, and what the model makes of the rest, as training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def masks_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="runs/NAME.")],
    out: Annotated[Path, typer.Option(help="The picture, a PNG file.")] = Path("masks.png"),
    images: Annotated[int, typer.Option(min=1, help="Rows: images spread evenly over the train split.")] = 8,
    checkpoints: Annotated[
        int, typer.Option(min=1, help="Columns: checkpoints spread evenly from the first that was kept to the last.")
    ] = 4,
    data: Annotated[str | None, typer.Option(help="Folder or URL of shards. (default: the run's)")] = None,
) -> None:
    """Draw crops with the masker's scores, masks and reconstructions at several checkpoints of a run."""
    from mimcl.cli.console import console

    steps = masks(run, out, images, checkpoints, data)
    console.print(f"wrote {out}: {run} at step {', '.join(f'{step:,}' for step in steps)}")


def masks(run: Path, out: Path, images: int = 8, checkpoints: int = 4, data: str | Path | None = None) -> list[int]:
    """Writes the picture to `out` and returns the steps that it shows; `run` may be one checkpoint as well.

    Crops are those of evaluation, mask keys those of the run's first draws, the same at every checkpoint. Raises
    CheckpointError, DataError.
    """
    from mimcl.cli.encoders.reconstruction import reconstruct
    from mimcl.cli.encoders.restore import load_weights, samples_of
    from mimcl.cli.masks.masks_picture import Moment, draw_picture
    from mimcl.cli.prototypes.gallery import images_of
    from mimcl.model import checkpoint
    from mimcl.pipeline.files import DataError, atomic_file
    from mimcl.pipeline.index import ShardIndex

    found = sorted(checkpoint.candidates(run / "checkpoints")) or [checkpoint.resolve(run)]
    config = checkpoint.read_meta(found[-1])["config"]
    index = ShardIndex.load(config["data"]["root"] if data is None else data)
    crops = images_of(index, spread(index.samples, images), config["data"]["image_size"])
    moments = []
    for place in spread(len(found), checkpoints):
        saved = load_weights(found[place])
        epoch = saved.meta["position"] / samples_of(saved)
        moments.append(Moment(saved.meta["step"], epoch, reconstruct(saved, crops, config["seed"])))
    model, masking = config["model"], config["masking"]
    title = (
        f"{run}: {model['name']}/{model['patch_size']} at {config['data']['image_size']} px, "
        f"masking {masking['name']} {masking['mask_ratio']:g}"
    )
    picture = draw_picture(title, crops, moments)
    try:
        with atomic_file(out) as file:
            file.write(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; give another --out") from None
    return [moment.step for moment in moments]


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """Up to `wanted` of the numbers 0 ... count - 1, evenly spaced, with both ends; the last one alone for one."""
    import numpy as np

    return np.linspace(count - 1, 0, min(wanted, count)).astype(np.int64)[::-1]
