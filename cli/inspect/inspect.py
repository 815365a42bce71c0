"""`mimcl inspect`: describe a folder of shards, a run, a checkpoint or a set of prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mimcl.cli.inspect.checkpoint import CheckpointDescription
    from mimcl.cli.inspect.prototypes import PrototypesDescription
    from mimcl.cli.inspect.run import RunDescription
    from mimcl.cli.inspect.shards import ShardsDescription

    Description = ShardsDescription | RunDescription | CheckpointDescription | PrototypesDescription


def inspect_command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Folder or URL of shards, or a run, checkpoint or prototype folder.")
    ] = "shards",
    json_format: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Describe shards, a run, a checkpoint or prototypes: counts, sizes, classes, fingerprints, progress."""
    from mimcl.cli.console import console
    from mimcl.cli.json_output import to_json

    found = inspect(path)
    if json_format:
        print(to_json(found))
        return
    lines = found.lines()
    width = max(len(label) for label, _ in lines) + 2
    for label, text in lines:
        console.print(f"{label:{width}}{text}".rstrip())


def inspect(path: str | Path) -> Description:
    """Describe what is at `path` without changing it; `lines()` of the result are pairs of label and text.

    Raises DataError if mimcl does not know it or an index is damaged; CheckpointError, ConfigError, PrototypeError.
    """
    from mimcl.model.checkpoint_path import named_checkpoint, named_run
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.remote.urls import url_of

    if url_of(path):
        from mimcl.cli.inspect.shards import describe_shards

        return describe_shards(path)
    path = Path(path)
    if (path / "dataset.json").exists():
        from mimcl.cli.inspect.shards import describe_shards

        return describe_shards(path)
    if (path / "prototypes.json").exists():
        from mimcl.cli.inspect.prototypes import describe_prototypes

        return describe_prototypes(path)
    if checkpoint := named_checkpoint(path):
        from mimcl.cli.inspect.checkpoint import describe_checkpoint

        return describe_checkpoint(checkpoint)
    run = named_run(path)
    if (run / "config.yaml").exists() or (run / "checkpoints").is_dir():
        from mimcl.cli.inspect.run import describe_run

        return describe_run(run)
    what = "is a file" if path.is_file() else "is not a mimcl folder" if path.is_dir() else "does not exist"
    raise DataError(f"{path} {what}; give a folder of shards, a run, a checkpoint or prototypes")
