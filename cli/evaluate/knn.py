"""Nearest neighbours: the features of a trained encoder beside those of the same encoder untrained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.encoder import Encoder
from mimcl.cli.evaluate.labelled import Labelled
from mimcl.cli.evaluate.results import record
from mimcl.cli.extract import extract, open_decoder
from mimcl.cli.mae_features import MaeFeatures
from mimcl.model.distributed import World, connected
from mimcl.model.evaluate.knn import knn as by_neighbours

_PATIENCE = 600.0  # seconds that a process waits for another


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
    untrained: dict[str, float]  # the same of weights as a run draws them

    def standard_error(self, share: float) -> float:
        """Of a share of the queries: sqrt(p (1 - p) / M)."""
        return math.sqrt(share * (1 - share) / self.queries)


def knn(
    path: Path, data: Path | None = None, k: int = 20, decoder: str = "auto", world: World | None = None
) -> KnnResult:
    """nn and knn of an encoder and of the same untrained, on mean-pooled patch tokens of central crops.

    `path` is a run, a checkpoint or a file of weights; `data` None takes the shards that it was trained on. The result
    is written down beside the run as well. Raises DataError when the shards have no val split or cannot tell classes
    apart, CheckpointError when there is no encoder.
    """
    world = world or World()
    encoder = Encoder.load(path)
    config = encoder.config
    data = Path(config.data.root) if data is None else data
    splits = Labelled.load(data)
    device = world.device()
    trained, untrained = (
        MaeFeatures(str(path), encoder.model(trained=known).to(device), config.trainer.precision)
        for known in (True, False)
    )

    def both(images: torch.Tensor) -> NDArray[np.float32]:
        """Their features side by side, so that every image is decoded once."""
        return np.concatenate([trained(images), untrained(images)], axis=1)

    opened = open_decoder(decoder, trained.image_size, splits.train, splits.val)
    with connected(world, device, _PATIENCE):
        bank, queries = (
            np.split(extract(index, both, opened, index.split, world), 2, axis=1)
            for index in (splits.train, splits.val)
        )
    shares = [
        dict(by_neighbours(known, splits.train.label, asked, splits.val.label, k, device=device))
        for known, asked in zip(bank, queries, strict=True)
    ]
    result = KnnResult(encoder.path, data, *splits.counts, splits.classes, k, *shares)
    if world.rank == 0:
        values = shares[0] | {f"untrained_{name}": share for name, share in shares[1].items()}
        record(encoder, "knn", values, {"k": k, "bank": result.bank, "queries": result.queries}, splits.val)
    return result
