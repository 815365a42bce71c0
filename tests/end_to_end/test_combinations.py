"""Every combination of curriculum, masking and temperature schedule trains."""

import itertools
import json
import math
import sys
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from helpers.images import write_flat

from mimcl.cli.config import Config
from mimcl.cli.main import main
from mimcl.cli.run.folder import open_run
from mimcl.cli.train import train_run
from mimcl.model import mae
from mimcl.model.forward_backward import ForwardBackward

IMAGES, BATCH, PATCHES, REMOVED = 40, 8, 16, 12
WINDOW = 4 * BATCH  # the shortest for a learned temperature
STEPS = 6  # of which the last two have a temperature of their own
SMALL = {
    "report": False,
    "trainer.epochs": STEPS * BATCH / IMAGES,
    "trainer.precision": "float32",
    "data.decoder": "reference",
    "data.image_size": 32,
    "data.batch_size": BATCH,
    "data.decode_threads": 1,
    "curriculum.window": WINDOW,
    "masking.mask_ratio": REMOVED / PATCHES,
    "model.patch_size": 8,
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "learned_masking.group_size": 4,
}


def choices(section: Any, field: str) -> list[str]:
    """Return the values that a field of a configuration may have, without aliases."""
    names = get_args(get_type_hints(type(section))[field])
    return [name for name in names if getattr(replace(section, **{field: name}), field) == name]


CURRICULA = choices(Config().curriculum, "name")
SCHEDULES = choices(Config().curriculum, "temp_schedule")
MASKINGS = choices(Config().masking, "name")


def marks(masking: str, fast: bool) -> list[pytest.MarkDecorator]:
    """Return the marks of a combination; those that are not `fast` are exhaustive with all maskings but one."""
    return [] if fast else [pytest.mark.slow, *([pytest.mark.exhaustive] if masking != "learned" else [])]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Packed images with prototypes; vit_tiny is 20 times smaller."""
    folder = tmp_path_factory.mktemp("home")
    write_flat(folder / "images", IMAGES)
    out = str(folder / "shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))
        for command in (
            ["shard", str(folder / "images"), "--out", out],
            ["prototypes", "build", "--data", out, "--features", "pixels", "--k", "4"],
        ):
            patch.setattr(sys, "argv", ["mimcl", *command])
            with pytest.raises(SystemExit, match="0"):
                main()
        yield out


@pytest.fixture
def masks(monkeypatch):
    """Record every mask that training uses."""
    seen, backward = [], ForwardBackward.backward

    def record(self, *what):
        passed = backward(self, *what)
        seen.append(passed.mask.mask)
        return passed

    monkeypatch.setattr(ForwardBackward, "backward", record)
    return seen


@pytest.mark.parametrize(
    ("curriculum", "masking", "schedule"),
    [
        pytest.param(*names, marks=marks(names[1], names[2] == "cosine"))
        for names in itertools.product(CURRICULA, MASKINGS, SCHEDULES)
        if (names[0], names[2]) != ("subset", "learned")
    ],
)
def test_it_trains(shards, masks, tmp_path, curriculum, masking, schedule):
    names = {"curriculum.name": curriculum, "masking.name": masking, "curriculum.temp_schedule": schedule}
    run = open_run("cpu_small", SMALL | {"data.root": shards} | names, tmp_path / "run", resume=False)
    assert train_run(run)

    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (config["curriculum"]["name"], config["curriculum"]["temp_schedule"]) == (curriculum, schedule)
    assert config["masking"]["name"] == masking
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps, windows = ([line for line in lines if kind in line] for kind in ("step", "window"))
    assert [line["step"] for line in steps] == [1, STEPS]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert not any(line["nonfinite_steps"] for line in steps)
    assert [line["temperature"] is None for line in windows] == [curriculum == "none"] * 2
    assert [path.name for path in run.checkpoints.iterdir() if path.is_dir()] == [f"{STEPS:08d}"]
    for mask in masks:
        assert mask.shape == (BATCH, PATCHES)
        assert torch.equal(mask.sum(dim=1), torch.full((BATCH,), float(REMOVED)))
    assert len(masks) >= STEPS


@pytest.mark.parametrize(
    ("curriculum", "masking", "schedule", "decoder"),
    [
        pytest.param(*names, marks=marks(names[1], names[2:] == ("cosine", "self")))
        for names in itertools.product(CURRICULA, MASKINGS, ("cosine", "learned"), ("self", "cross"))
        if (names[0], names[2]) != ("subset", "learned")
    ],
)
def test_it_trains_with_crops_that_grow(shards, masks, tmp_path, curriculum, masking, schedule, decoder):
    names = {"curriculum.name": curriculum, "masking.name": masking, "curriculum.temp_schedule": schedule}
    names |= {"curriculum.resolution": "16:0.3,24:0.4,32", "model.decoder": decoder}
    names |= {"model.predict_share": 0.5 if decoder == "cross" else 1.0}
    run = open_run("cpu_small", SMALL | {"data.root": shards} | names, tmp_path / "run", resume=False)
    assert train_run(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert [(line["step"], line["image_size"]) for line in steps] == [(1, 16), (STEPS, 32)]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert [mask.shape[1] for mask in masks[:STEPS]] == [4, 4, 9, 9, 16, 16]
    for mask in masks:
        assert mask.sum(dim=1).unique().item() == mask.shape[1] - int(mask.shape[1] / 4)


def test_all_choices_are_among_them():
    assert {*CURRICULA} == {"none", "proto", "anti", "subset"}
    colours = {"green", "blue", "red", "purple"}
    assert {*MASKINGS} == {"random", "block", "grid", "hard-patches", "learned"} | colours
    assert {*SCHEDULES} == {"cosine", "linear", "exponential", "step", "constant", "learned"}
