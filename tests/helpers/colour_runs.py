"""Packed colours, and tiny encoders trained on them, to be evaluated with labels."""

from pathlib import Path

import pytest

from helpers.colours import write_split_colours
from helpers.typed import mimcl
from mimcl.model import mae

TRAIN, VAL = 20, 11  # of each of three colours
_SIZES = ("data.image_size=16", "data.batch_size=8", "data.micro_batch_size=8", "model.decoder_depth=1")


def small_encoder(patch: pytest.MonkeyPatch) -> None:
    """Make vit_tiny 20 times smaller."""
    patch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))


def colour_runs(folder: Path, **precisions: str) -> Path:
    """Pack colours into shards/, and with train labels at random into permuted/; train runs of two steps, by name."""
    write_split_colours(folder / "images", TRAIN, VAL)
    write_split_colours(folder / "others", TRAIN, VAL, shuffled=True)
    options = ["--recipe", "cpu_small", "--epochs", "0.2", "--decoder", "reference", "--set", "report=false"]
    options += [word for setting in _SIZES for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        small_encoder(patch)
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "shard", "others", "--out", "permuted") == 0
        for out, precision in precisions.items():
            assert mimcl(patch, folder, "train", *options, "--set", f"trainer.precision={precision}", "--out", out) == 0
    return folder
