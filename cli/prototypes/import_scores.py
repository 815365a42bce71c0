"""`mimcl prototypes import`: make a prototype set from anybody's scores of the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimcl.cli.prototypes import set_options

if TYPE_CHECKING:
    from mimcl.curriculum.prototypes import PrototypeSet


def import_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="NAME.npy with a number for each train image, in row order; or .csv or .parquet with the columns key "
            "and score, and cluster if there are clusters.",
        ),
    ],
    data: set_options.Data = "shards",
    name: set_options.Name = None,
    out: set_options.Out = None,
    overwrite: set_options.Overwrite = False,
) -> None:
    """Make a prototype set from scores of the train images, such as losses; higher = harder.

    Scores are scaled to distances: 0 = the lowest, 1 = the highest. Keys are the names in the shards' tar files,
    without the endings.
    """
    from mimcl.cli.console import console

    _, found = import_scores(file, data, name=name, out=out, overwrite=overwrite)
    scores, (smallest, largest) = found.info["scores"], found.info["cluster_sizes"]
    clusters = found.info["k"]
    sizes = f", {clusters:,} clusters of {smallest:,} to {largest:,} images" if clusters > 1 else ""
    console.print(
        f"scores of {found.info['samples']:,} images: {scores['lowest']:.4g} to {scores['highest']:.4g}{sizes}"
    )
    console.print(set_options.written(data, name, out))


def import_scores(
    file: str | Path,
    data: str | Path = "shards",
    *,
    name: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, PrototypeSet]:
    """Make a prototype set from scores in a file, as `mimcl prototypes import` does.

    Args:
        file: npy with a number for each train image, in the order of the index; or csv or parquet with the columns key
            and score, and optionally cluster. Higher scores are harder. They are scaled to distances in [0, 1].
        data: Folder or URL of shards.
        name: Name of the set beside the shards; None is "default".
        out: Folder of the set, instead of `name`.
        overwrite: Whether to replace a set of this name.

    Returns:
        The folder of the set, and the set, as `build_prototypes` does.

    Raises:
        ConfigError: Options do not go together.
        DataError: The file does not have exactly one score for each image.
        PrototypeError: A set of this name exists, or it cannot be written.
    """
    from mimcl.cli.prototypes.destination import Destination
    from mimcl.cli.prototypes.score_file import read_scores, require_kind
    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.curriculum.score_set import make_score_set
    from mimcl.model.world import World
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.index import ShardIndex

    file, name = Path(file), set_options.set_name(name, out)
    require_kind(file)
    index = ShardIndex.load(data)
    destination = Destination(index, name, Path(out) if out else None, overwrite)
    destination.require_writable()
    destination.require_free()
    found = read_scores(file, index)
    source = {"name": file.name, "xxh128": found.digest}
    try:
        made = make_score_set(found.scores, found.cluster, source, {"index_fingerprint": index.fingerprint})
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None

    # Only now: these import torch, which takes seconds, and what needs none has been refused by here.
    from mimcl.cli.encoders.lock import lock
    from mimcl.cli.prototypes.rank_zero import on_first_rank

    sets = destination.folder.parent
    with lock(sets, World()):

        def write() -> None:
            destination.require_free()  # another process may have made it while this one waited for the lock
            destination.write(made)

        on_first_rank(World(), write, sets)
    return destination.folder, PrototypeSet.load(destination.folder, index.fingerprint)
