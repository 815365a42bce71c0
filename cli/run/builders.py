"""Builds the parts of a pre-training run from its configuration."""

from __future__ import annotations

import torch

from mimcl.cli.config import Config
from mimcl.cli.encoders.initial_weights import InitResult, load_initial_weights
from mimcl.cli.run.folder import Run
from mimcl.cli.run.keep_decoded import keep_decoded
from mimcl.cli.run.requests import keeps_whole_shards
from mimcl.cli.run.training_data import TrainingData
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masker import Masker
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.resolution import Resolution
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.mae import build
from mimcl.model.trainer import Trainer
from mimcl.model.world import World
from mimcl.pipeline.augment import random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.stream import Batch, ReadOptions, Stream


def build_model(
    run: Run, data: TrainingData, sides: Resolution, device: torch.device
) -> tuple[MaskedAutoencoder, Masker, InitResult | None]:
    """Return the model and its masker on `device`, and where the weights came from if the run was given some.

    Raises ValueError for sizes that do not fit, CheckpointError for initial weights that do not.
    """
    config = run.config
    model = build(config.model, config.data.image_size, config.seed)
    init_result = load_initial_weights(model, config.model, config.init) if config.init and not run.resumed else None
    if sides.changes:
        model.add_grids(side // model.patch_size for side in sides.sides)
    model.to(device)
    masker = make_masker(
        config.masking,
        model,
        MaskingSchedule(config.masking.clock, config.trainer.epochs, data.draws / data.index.samples),
        hard_patches=config.hard_patches,
        learned=config.learned_masking,
        seed=config.seed,
    )
    return model, masker, init_result


def build_decoder(config: Config, data: TrainingData, shares: BatchShares, device: torch.device) -> tuple[Decoder, str]:
    """Return the decoder of the run, and the line that says which and why. Raises DataError."""
    threads = decode_threads(shares.local_size, config.data.decode_threads)
    wanted = config.data
    if wanted.keep_decoded:
        return keep_decoded(data.index, wanted.image_size, threads, device, shares)
    return make_decoder(
        wanted.decoder, wanted.image_size, shares.longest, threads, data.index.largest, wanted.scaled_decode
    )


def build_shares(config: Config, world: World, group_size: int) -> BatchShares:
    """Return this process's share of each batch. Raises ValueError for sizes that do not fit."""
    sizes = config.data.batch_size, config.data.micro_batch_size
    return BatchShares(*sizes, world.rank, world.size, world.local_size, group_size)


def build_trainer(
    model: MaskedAutoencoder, masker: Masker, config: Config, data: TrainingData, shares: BatchShares
) -> Trainer[Batch]:
    """Return the trainer of a run with the resolved configuration `config`."""
    precision = config.trainer.precision
    assert precision != "auto", "the configuration must be resolved"
    return Trainer(
        model,
        masker,
        config.trainer,
        config.optim,
        samples=data.index.samples,
        draws=data.draws,
        batch_size=shares.batch_size,
        micro_batches=len(shares.micro_batches),
        precision=precision,
        # One graph is as fast or faster, but delivers all gradients when its backward pass is complete: then none
        # of them is sent to other processes while the others are computed.
        compile_unit="blocks" if shares.world_size > 1 else "whole",
    )


def build_stream(
    plan: Plan,
    config: Config,
    data: TrainingData,
    decoder: Decoder,
    shares: BatchShares,
    sides: Resolution,
    trainer: Trainer[Batch],
) -> Stream:
    """Return the stream of batches from the trainer's position on. Raises ValueError for sizes that do not fit."""
    return Stream(
        plan,
        data.index,
        decoder,
        random_crops(config.seed),
        shares,
        ReadOptions(
            config.data.prefetch,
            config.curriculum.order == "shard",
            config.data.stall_timeout,
            keeps_whole_shards(plan, data.index),
        ),
        seed=config.seed,
        start=trainer.position,
        device=trainer.model.device,
        side_at=sides.side_at,
    )
