"""A run of two steps on colours, fine-tuned until it tells them apart; five val images have a wrong class."""

from pathlib import Path

import pytest

from helpers.colours import write_split_colours
from helpers.typed import mimcl

TRAIN, VAL = 20, 25  # images of each of three colours; 75 val images are more than a batch
_SMALL = ("data.image_size=32", "model.patch_size=16", "data.batch_size=12", "model.decoder_depth=1")
_FLOAT32 = ("trainer.precision=float32", "report=false")
_TUNING = {"epochs": 4, "batch_size": 12, "mixing_group": 4, "base_lr": 0.004, "mixup": 0, "cutmix": 0, "drop_path": 0}


def settings(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def write_run(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write images/, shards/ and run/, without a fine-tuning."""
    write_split_colours(folder / "images", TRAIN, VAL)
    for number in range(70, 75):  # so that an accuracy of 100 % proves nothing by accident
        (folder / "images" / "val" / "red" / f"{number:04d}.png").rename(
            folder / "images" / "val" / "blue" / f"{number:04d}.png"
        )
    assert mimcl(patch, folder, "shard", "images") == 0
    words = [word for setting in (*_SMALL, *_FLOAT32) for word in ("--set", setting)]
    run = ("--recipe", "cpu_small", "--epochs", "0.4", "--decoder", "reference", "--out", "run")
    assert mimcl(patch, folder, "train", *run, *words) == 0


def finetune(folder: Path, patch: pytest.MonkeyPatch, **changed: object) -> Path:
    """Fine-tune run/; return the folder of the fine-tuning."""
    before = set(folder.glob("run/evaluation/finetune/*"))
    words = settings(_TUNING | changed)
    assert mimcl(patch, folder, "eval", "finetune", "run", "--decoder", "reference", *words) == 0
    (made,) = set(folder.glob("run/evaluation/finetune/*")) - before
    return made
