"""`mimcl shard`: pack images into webdataset shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimcl.cli.data.packing_ranks import default_workers, packing_ranks
from mimcl.cli.data.sources import SourceKind, SourceOptions

if TYPE_CHECKING:
    from mimcl.pipeline.shards import PackConfig, Ranks


def shard_command(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Folder with train/ (and val/), with class folders, or flat (no labels); a tar, tar of tars or zip of "
            "such a folder; a parquet file or a folder of them; a folder of webdataset shards.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for shards and indices.", show_default="shards", rich_help_panel="Shards"),
    ] = None,
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="Text file of PATH or PATH<tab>CLASS lines, relative to SRC, which is not scanned.",
            rich_help_panel="Source",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Text file of classes in label order, one per line, perhaps with descriptions.",
            rich_help_panel="Source",
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(help="Source of the val split, of any kind that SRC may be.", rich_help_panel="Source"),
    ] = None,
    val_labels: Annotated[
        Path | None,
        typer.Option(
            help="Text file of val labels: FILENAME CLASS lines (or CSV), or CLASS lines in file name order.",
            rich_help_panel="Source",
        ),
    ] = None,
    source_kind: Annotated[
        SourceKind | None,
        typer.Option(
            help="Kind of SRC, if its files can be read in two ways.",
            show_default="found out",
            rich_help_panel="Source",
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Parquet column with the images.", rich_help_panel="Source")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Parquet column with the labels, or none.", rich_help_panel="Source")
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option(
            help="Field of KEY.json with the label, for webdatasets.",
            show_default="KEY.cls, then label",
            rich_help_panel="Source",
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Index the webdataset shards in SRC in place, without rewriting them.",
            rich_help_panel="Shards",
        ),
    ] = False,
    shard_mb: Annotated[
        int, typer.Option(min=1, help="Size of a shard in MB (10^6 bytes).", rich_help_panel="Shards")
    ] = 256,
    short_side: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shrink larger images to this short side in pixels; 0 keeps the original bytes.",
            rich_help_panel="Shards",
        ),
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes, one shard at a time.", show_default="one per core and GB", rich_help_panel="Shards"
        ),
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, help="Share of the images to move into a val split, 0 to 1.", rich_help_panel="Source"
        ),
    ] = 0.0,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image fully, not only its header.", rich_help_panel="Checks")
    ] = False,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Skip exact duplicates and list them.", rich_help_panel="Checks")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier packing in --out.", rich_help_panel="Shards")
    ] = False,
) -> None:
    """Pack images into webdataset shards with an index; unusable images are skipped and listed.

    If it is killed, the same command resumes. Under torchrun, each process packs its share.
    """
    from mimcl.model.world import World
    from mimcl.pipeline.shards import RankZeroError

    rank = World.from_environment().rank
    try:
        description = shard(**context.params)
    except RankZeroError:  # rank 0 prints the error
        raise typer.Exit(1) from None
    if rank == 0:
        _print_summary(description, source if adopt else out or Path("shards"), "adopted" if adopt else "packed into")


def _print_summary(description: dict[str, Any], out: Path, done: str) -> None:
    from mimcl.cli.console import console, counted
    from mimcl.cli.suggest import prototypes_build

    for split, part in description["splits"].items():
        size = sum(shard["bytes"] for shard in part["shards"]) / 1e6
        classes = part["classes"]
        labels = counted(len(classes), "class", "classes") if classes else "no labels"
        images = counted(part["samples"], "image")
        console.print(f"{split}: {images}, {labels}, {size:,.1f} MB, shards: {len(part['shards'])}")
    if rejected := description["packed"]["rejected"]:
        console.print(f"skipped: {rejected:,} files, listed with reasons in {out / 'rejected.jsonl'}")
    if duplicates := description["packed"].get("duplicates"):
        console.print(f"skipped: {duplicates:,} exact duplicates, listed in {out / 'duplicates.jsonl'}")
    if across := description["packed"].get("across_splits"):
        console.print(f"kept: {across:,} val images that are also in train, listed in {out / 'duplicates.jsonl'}")
    console.print(f"{done} {out}/ · next: {prototypes_build(out)}")


def shard(
    source: str | Path,
    out: str | Path | None = None,
    *,
    list_file: str | Path | None = None,
    classes: str | Path | None = None,
    val: str | Path | None = None,
    val_labels: str | Path | None = None,
    source_kind: SourceKind | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_key: str | None = None,
    adopt: bool = False,
    shard_mb: int = 256,
    short_side: int = 0,
    workers: int | None = None,
    holdout: float = 0.0,
    decode: bool = False,
    dedup: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pack images into webdataset shards with an index, as `mimcl shard` does.

    Shows a progress bar. If it is killed, the same call resumes. Started by torchrun, each process packs its share.

    Args:
        source: Folder with train/ (and val/), with class folders, or flat; tar, tar of tars, zip, parquet or shards.
        out: Folder for the shards; None is "shards", and with `adopt` the source itself.
        list_file: Text file of paths in `source`, which is then not scanned, optionally each with a tab and its class.
        classes: Text file with one class per line, in the order of the labels.
        val: Source of the val split.
        val_labels: Text file with the labels of the val split.
        source_kind: What `source` is, where its files can be read in two ways.
        image_column: Parquet column with the images.
        label_column: Parquet column with the labels, or "none".
        label_key: Field of KEY.json with the label, for webdataset shards.
        adopt: Whether to index existing webdataset shards in place, without rewriting them.
        shard_mb: Size of a shard in MB (10^6 bytes).
        short_side: Pixels to which the short side of larger images is shrunk; 0 keeps the original bytes.
        workers: Number of processes; None is one per core and GB of free memory.
        holdout: Share of the images to move into a val split, 0 to 0.99.
        decode: Whether to decode every image completely, not only its header.
        dedup: Whether to skip exact duplicates, and list them.
        overwrite: Whether to replace an earlier packing in `out`.

    Returns:
        The content of dataset.json: "splits" has the samples, classes and shards of each split, "packed" what was
        skipped.

    Raises:
        ConfigError: Options do not go together.
        DataError: Images cannot be read, or shards cannot be written.
    """
    from mimcl.cli.data.adopt import adopt_shards, refuse_packing
    from mimcl.cli.errors import usage_errors
    from mimcl.pipeline.shards import PackConfig

    source, out = Path(source), _path(out)
    options = SourceOptions(
        _path(list_file),
        _path(classes),
        _path(val),
        _path(val_labels),
        holdout=holdout,
        image_column=image_column,
        label_column=label_column,
        label_key=label_key,
        kind=source_kind,
    )
    with packing_ranks() as ranks:
        with usage_errors():
            config = PackConfig(shard_mb, short_side, workers, decode, dedup, default_workers())
        if adopt:
            refuse_packing(source, out, config, options)
            own = workers or config.cores
            return adopt_shards(source, options, workers=own, decode=decode, overwrite=overwrite)
        return _pack(source, out or Path("shards"), config, options, overwrite, ranks)


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given else None


def _pack(
    source: Path, out: Path, config: PackConfig, options: SourceOptions, overwrite: bool, ranks: Ranks
) -> dict[str, Any]:
    """Pack with a progress bar; with several processes, rank 0 shows its progress."""
    from mimcl.cli.bars import image_bar
    from mimcl.cli.console import busy, console
    from mimcl.cli.data.sources import open_source
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.shards import pack

    for given in filter(None, (source, options.val)):
        if out.resolve().is_relative_to(given.resolve()):
            raise DataError(f"{out} is inside {given}, so its shards would be read as images; give another --out")
    with busy(f"listing {source}", shown=ranks.rank == 0):
        found = open_source(source, options)
    show = console.print if ranks.rank == 0 else lambda line: None
    for note in found.notes:
        show(note)
    share = -(-found.num_items // ranks.size) * (1 + config.dedup)
    label = "packing" if ranks.size == 1 else f"packing, process 1 of {ranks.size}"
    with image_bar(label, share, shown=ranks.rank == 0) as advance:
        return pack(found, out, config, overwrite=overwrite, on_progress=advance, on_message=show, ranks=ranks)
