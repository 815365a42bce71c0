"""What a build computes of every image: features, which are clustered, or a loss, which is the difficulty itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.console import console
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.reconstruction_loss import ReconstructionLoss
from mimcl.cli.encoders.split_features import on_images
from mimcl.cli.prototypes.build_config import LOSS, BuildConfig
from mimcl.cli.prototypes.workspace import Extractor
from mimcl.cli.run.resolve import has_bfloat16
from mimcl.curriculum.features import FeatureExtractor, build_extractor
from mimcl.model.digest import weights_digest
from mimcl.model.distributed import gather
from mimcl.model.world import World
from mimcl.pipeline.cores import worker_count
from mimcl.pipeline.stream import Batch


@dataclass(frozen=True)
class Measure:
    """A measure of images, the same on all ranks."""

    extractor: Extractor
    of_batch: Callable[[Batch], NDArray[np.float32]]  # (B, D)
    settings: dict[str, Any]  # that the numbers depend on, besides images and the extractor's constants
    label: str  # of the progress bar
    about: dict[str, Any]  # for prototypes.json


def measure_features(config: BuildConfig, world: World) -> Measure:
    """Return the features that `config` names. Raises ValueError, CheckpointError."""
    extractor, reason = _extractor(config, world)
    if world.rank == 0:
        console.print(f"features: {extractor.name} ({reason}){_reduced(extractor)}")
    about = {"features": extractor.name, "features_reason": reason, "precision": extractor.precision}
    settings = {
        "features": extractor.name,
        "precision": extractor.precision,
        "learned_with_seed": config.seed if extractor.fit_images else None,
    }
    return Measure(extractor, on_images(extractor), settings, "features", about)


def measure_loss(checkpoint: Path, config: BuildConfig, world: World) -> Measure:
    """Return the reconstruction loss of a run, checkpoint or file of weights. Raises CheckpointError."""
    encoder = Encoder.load(checkpoint)
    extractor = ReconstructionLoss.of(encoder, config.seed)
    how = {
        "precision": extractor.precision,
        "masks": extractor.masks,
        "mask_ratio": extractor.mask_ratio,
        "seed": config.seed,
    }
    if world.rank == 0:
        if encoder.note:
            console.print(encoder.note)
        console.print(
            f"difficulty: reconstruction loss of {encoder.path}, mean of {extractor.masks} random masks that remove "
            f"{extractor.mask_ratio:.0%}{_reduced(extractor)}"
        )
    about = {"name": f"{LOSS}{encoder.path}", "weights": weights_digest(encoder.tensors), **how}
    return Measure(extractor, extractor, {"difficulty": LOSS, **how}, "losses", about)


def _reduced(extractor: Extractor) -> str:
    return ", in bfloat16" if extractor.precision == "bfloat16" else ""


def _extractor(config: BuildConfig, world: World) -> tuple[FeatureExtractor, str]:
    """Build the same extractor on all ranks; rank 0 decides what `auto` is."""
    spec, seed, precision = config.features, config.seed, config.precision
    if spec.startswith("mae:"):
        return MaeFeatures.load(Path(spec.removeprefix("mae:"))), "requested"
    if precision == "auto":
        precision = "bfloat16" if gather("yes" if has_bfloat16() else "no")[0] == "yes" else "float32"
    threads, device = worker_count(world.local_size), world.inference_device()
    build = partial(build_extractor, threads=threads, precision=precision, device=device)
    if spec != "auto" or world.size == 1:
        return build(spec, seed)
    found = build(spec, seed) if world.rank == 0 else None
    name = gather(found[0].name if found else "")[0]
    return found or build(name, seed)
