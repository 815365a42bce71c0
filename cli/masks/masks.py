"""`mimcl masks`: draw the masks and reconstructions of a run at several checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def masks_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: runs/NAME.")],
    out: Annotated[Path, typer.Option(help="PNG file for the picture.")] = Path("masks.png"),
    images: Annotated[int, typer.Option(min=1, help="Rows: images, evenly spaced in the train split.")] = 8,
    checkpoints: Annotated[
        int, typer.Option(min=1, help="Columns: checkpoints, evenly spaced from the first one kept to the last.")
    ] = 4,
    data: Annotated[str | None, typer.Option(help="Folder or URL of the shards.", show_default="the run's")] = None,
) -> None:
    """Draw crops with their scores, masks and reconstructions at several checkpoints of a run."""
    from mimcl.cli.console import console

    steps = masks(run, out, images, checkpoints, data)
    console.print(f"wrote {out}: {run} at step {', '.join(f'{step:,}' for step in steps)}")


def masks(run: Path, out: Path, images: int = 8, checkpoints: int = 4, data: str | Path | None = None) -> list[int]:
    """Write the picture to `out` and return the steps that it shows; `run` may also be a single checkpoint.

    Crops are those of evaluation, mask keys those of the run's first draws, the same at every checkpoint. Raises
    CheckpointError, DataError.
    """
    from mimcl.cli.encoders.saved import load_weights, samples_of
    from mimcl.cli.evenly_spaced import evenly_spaced
    from mimcl.cli.screen import printable
    from mimcl.model import checkpoint
    from mimcl.model.checkpoint_path import named_checkpoint, named_run, resolve
    from mimcl.pipeline.files import DataError, atomic_file, remedy
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.sources.names import from_fs, to_utf8

    single = named_checkpoint(run)
    found = [single] if single else sorted(checkpoint.candidates(named_run(run) / "checkpoints")) or [resolve(run)]
    config = checkpoint.read_meta(found[-1])["config"]
    index = ShardIndex.load(config["data"]["root"] if data is None else data)

    from mimcl.cli.encoders.reconstruction import reconstruct  # only now: they import torch, which takes seconds
    from mimcl.cli.masks.masks_picture import Snapshot, draw_picture
    from mimcl.cli.prototypes.gallery import images_of

    crops = images_of(index, evenly_spaced(index.samples, images), config["data"]["image_size"])
    snapshots = []
    for place in evenly_spaced(len(found), checkpoints):
        saved = load_weights(found[place])
        epoch = saved.meta["position"] / samples_of(saved)
        snapshots.append(Snapshot(saved.meta["step"], epoch, reconstruct(saved, crops, config["seed"])))
    model, masking = config["model"], config["masking"]
    name = printable(to_utf8(from_fs(str(run))))
    title = (
        f"{name}: {model['name']}/{model['patch_size']} at {config['data']['image_size']} px, "
        f"masking {masking['name']} {masking['mask_ratio']:g}"
    )
    picture = draw_picture(title, crops, snapshots)
    try:
        with atomic_file(out) as file:
            file.write(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); {remedy(error, 'give another --out')}") from None
    return [snapshot.step for snapshot in snapshots]
