"""`mimcl eval`: how good the features of a trained encoder are, beside those of the same encoder untrained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mimcl.pipeline.index import ShardIndex

evaluate = typer.Typer(no_args_is_help=True, help="Quality of a trained encoder.")


@dataclass(frozen=True)
class KnnResult:
    """Shares, 0 to 1, of val images whose class is found among train images; nn by one neighbour, knn by a vote."""

    checkpoint: Path
    data: Path
    bank: int  # labelled train images
    queries: int  # labelled val images
    classes: int
    k: int
    trained: dict[str, float]  # "nn" and "knn"
    untrained: dict[str, float]  # the same of the weights that the run began with

    def standard_error(self, share: float) -> float:
        """Of a share of the queries: sqrt(p (1 - p) / M)."""
        return math.sqrt(share * (1 - share) / self.queries)


@evaluate.callback()
def _group() -> None:
    pass


@evaluate.command("knn")
def knn_command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="runs/NAME, or one of its checkpoints.")],
    data: Annotated[Path | None, typer.Option(help="Folder of shards. (default: the run's)")] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote in knn.")] = 20,
    decoder: Annotated[str, typer.Option(help="auto, dali-gpu, dali-cpu or reference.")] = "auto",
) -> None:
    """Classify the val images by their nearest train images, trained and untrained."""
    from mimcl.cli.console import console

    found = evaluate_knn(path, data, k, decoder)
    console.print(
        f"{found.checkpoint}: {found.queries:,} val images of {found.data} looked up among {found.bank:,} train "
        f"images, {found.classes:,} classes"
    )
    console.print(f"{'':10}{'nn':>17}{f'knn, k = {found.k}':>17}")
    for name, shares in (("trained", found.trained), ("untrained", found.untrained)):
        cells = [f"{100 * share:.1f} ± {100 * found.standard_error(share):.1f} %" for share in shares.values()]
        console.print(f"{name:10}" + "".join(f"{cell:>17}" for cell in cells))
    console.print("share of val images given their own class ± its standard error")


def evaluate_knn(path: Path, data: Path | None = None, k: int = 20, decoder: str = "auto") -> KnnResult:
    """nn and knn of a run or checkpoint and of its untrained encoder, on mean-pooled patch tokens of central crops.

    `data` None takes the shards that the run was trained on. Raises DataError when they have no val split or cannot
    tell classes apart, CheckpointError when there is no checkpoint.
    """
    import numpy as np
    import torch

    from mimcl.cli.extract import extract, open_decoder
    from mimcl.cli.mae_features import MaeFeatures
    from mimcl.model import checkpoint
    from mimcl.model.evaluate.knn import knn
    from mimcl.pipeline.index import ShardIndex, read_dataset

    path = checkpoint.resolve(path)
    saved = checkpoint.load(path)
    config = saved.meta["config"]
    data = Path(config["data"]["root"]) if data is None else data
    if "val" not in read_dataset(data)["splits"]:
        raise _unusable(f"{data} has no val split to look up")
    train, val = ShardIndex.load(data), ShardIndex.load(data, "val")
    classes = _classes(train, val)

    trained, untrained = (MaeFeatures(str(path), config, tensors) for tensors in (saved.tensors, None))

    def both(images: torch.Tensor) -> NDArray[np.float32]:
        """Their features side by side, so that every image is decoded once."""
        return np.concatenate([trained(images), untrained(images)], axis=1)

    opened = open_decoder(decoder, trained.image_size, train, val)
    bank = np.split(extract(train, both, opened, "train"), 2, axis=1)
    queries = np.split(extract(val, both, opened, "val"), 2, axis=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shares = [
        dict(knn(known, train.label, asked, val.label, k, device=device))
        for known, asked in zip(bank, queries, strict=True)
    ]
    counts = [int(np.count_nonzero(index.label >= 0)) for index in (train, val)]
    return KnnResult(path, data, *counts, classes, k, *shares)


def _classes(train: ShardIndex, val: ShardIndex) -> int:
    """The number of classes in train. Raises DataError unless both splits have labels and train two classes."""
    import numpy as np

    for index in (train, val):
        if not (index.label >= 0).any():
            raise _unusable(f"the {index.split} images of {index.root} have no labels")
    known = np.unique(train.label[train.label >= 0])
    if len(known) == 1:
        raise _unusable(f"the train images of {train.root} are all of one class, {train.classes[known[0]]}")
    return len(known)


def _unusable(what: str) -> Exception:
    from mimcl.pipeline.files import DataError

    return DataError(
        f"{what}; pack a folder that has a folder for each class, with a val split: mimcl shard SRC --holdout 0.1 "
        "--out FOLDER, then give --data FOLDER"
    )
