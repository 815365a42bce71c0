"""`mimcl eval`: how good the features of a trained encoder are, by the field's protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

evaluate = typer.Typer(no_args_is_help=True, help="Quality of a trained encoder.")

_Judged = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="runs/NAME, one of its checkpoints, or weights: of MAE, timm or Hugging Face.",
    ),
]
_Data = Annotated[Path | None, typer.Option(help="Folder of shards. (default: the run's)")]
_Decoder = Annotated[str, typer.Option(help="auto, dali-gpu, dali-cpu or reference.")]


@evaluate.callback()
def _group() -> None:
    pass


@evaluate.command("knn")
def knn_command(
    path: _Judged,
    data: _Data = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote in knn.")] = 20,
    decoder: _Decoder = "auto",
) -> None:
    """Classify the val images by their nearest train images, trained and untrained."""
    from mimcl.cli.console import console
    from mimcl.cli.evaluate.knn import knn
    from mimcl.model.distributed import World

    world = World.from_environment()
    found = knn(path, data, k, decoder, world)
    if world.rank:
        return
    console.print(
        f"{found.checkpoint}: {found.queries:,} val images of {found.data} looked up among {found.bank:,} train "
        f"images, {found.classes:,} classes"
    )
    console.print(f"{'':10}{'nn':>17}{f'knn, k = {found.k}':>17}")
    for name, shares in (("trained", found.trained), ("untrained", found.untrained)):
        cells = [f"{100 * share:.1f} ± {100 * found.standard_error(share):.1f} %" for share in shares.values()]
        console.print(f"{name:10}" + "".join(f"{cell:>17}" for cell in cells))
    console.print("share of val images given their own class ± its standard error")
