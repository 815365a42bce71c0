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


@evaluate.command("finetune")
def finetune_command(
    path: _Judged,
    data: _Data = None,
    epochs: Annotated[float | None, typer.Option(help="(default: 100; 50 for ViT-L and ViT-H)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of all processes together. (default: 1024)")] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once. (default: 128; 64 for ViT-L, 32 for ViT-H)")
    ] = None,
    base_lr: Annotated[
        float | None, typer.Option(help="Times batch size / 256. (default: 5e-4; 1e-3 for ViT-L and ViT-H)")
    ] = None,
    layer_decay: Annotated[float | None, typer.Option(help="(default: 0.65; 0.75 for ViT-L and ViT-H)")] = None,
    drop_path: Annotated[float | None, typer.Option(help="(default: 0.1; 0.2 for ViT-L, 0.3 for ViT-H)")] = None,
    seed: Annotated[int | None, typer.Option(help="(default: 0)")] = None,
    decoder: _Decoder = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: any of the settings that are printed at the start, such as mixup=0."),
    ] = None,
) -> None:
    """Train all of the encoder further to classify, by MAE's recipe for its size; under torchrun, in all processes.

    Stopped or killed, the same command goes on where it saved last.
    """
    from mimcl.cli.config import parse_settings
    from mimcl.cli.evaluate.finetune import finetune
    from mimcl.cli.evaluate.results import show
    from mimcl.model.distributed import World

    flags = {
        "epochs": epochs,
        "batch_size": batch_size,
        "base_lr": base_lr,
        "layer_decay": layer_decay,
        "drop_path": drop_path,
        "seed": seed,
    }
    values = {name: value for name, value in flags.items() if value is not None} | parse_settings(settings or [])
    world = World.from_environment()
    result = finetune(path, data, values, micro_batch_size, decoder, world)
    if world.rank == 0:
        show(result)
