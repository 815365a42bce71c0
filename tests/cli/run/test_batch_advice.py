"""Advice on batches that are too large for the data."""

import shlex
from pathlib import Path

import pytest

from mimcl.cli import options
from mimcl.cli.config import flatten, override, parse_settings
from mimcl.cli.recipes import recipe
from mimcl.cli.run import batch_advice as module
from mimcl.cli.run.batch_advice import batch_advice

LEARNED = {"masking.name": "learned"}


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "has_cuda", lambda: False)


@pytest.mark.parametrize(
    ("values", "samples", "words"),
    [
        ({}, 400, "--batch-size 32 --epochs 57"),
        ({"trainer.epochs": 3.0}, 400, "--batch-size 32 --epochs 3"),
        (LEARNED, 64, "--masking learned --batch-size 32 --epochs 360"),
        ({"data.root": "my data", "seed": 3}, 3000, "--data 'my data' --seed 3 --batch-size 256 --epochs 7.6"),
        ({"optim.base_lr": 1e-3, "optim.betas": [0.8, 0.9]}, 400, "--set 'optim.betas=[0.8, 0.9]' --out new"),
    ],
)
def test_the_advice_is_a_whole_command(values, samples, words):
    line = batch_advice(override(recipe("mae_b16"), values), samples, out=Path("new"))
    assert "mimcl train --recipe mae_b16 " in line
    assert line.endswith("--out new")
    assert words in line
    assert line.count("\n") == 0


def test_the_command_has_the_same_values_but_batch_and_epochs():
    values = {"curriculum.name": "proto", "curriculum.slice": 0.5, "optim.base_lr": 1e-3, "trainer.compile": True}
    values |= {"data.prefetch": 2, "curriculum.window": 640, "masking.mask_ratio": 0.6, "report": False}
    config = override(recipe("cpu_small"), values)
    words = shlex.split(batch_advice(config, 64).partition("one that fits: ")[2])
    assert words[:4] == ["mimcl", "train", "--recipe", "cpu_small"]
    named = {"--curriculum": "curriculum.name", "--slice": "curriculum.slice", "--lr": "optim.base_lr"}
    named |= {"--batch-size": "data.batch_size", "--epochs": "trainer.epochs", "--mask-ratio": "masking.mask_ratio"}
    found, rest = {}, words[4:]
    while rest:
        flag = rest.pop(0)
        if flag == "--compile":
            found["trainer.compile"] = True
        elif flag == "--set":
            found |= parse_settings([rest.pop(0)])
        else:
            found |= parse_settings([f"{named[flag]}={rest.pop(0)}"])
    again = flatten(override(recipe("cpu_small"), found))
    assert again == flatten(config) | {"data.batch_size": 8, "trainer.epochs": 130.0}


@pytest.mark.parametrize(
    ("samples", "values"), [(50_000, {}), (400, {"data.batch_size": 50}), (1, LEARNED | {"data.batch_size": 32})]
)
def test_a_batch_that_fits_needs_no_advice(samples, values):
    assert batch_advice(override(recipe("mae_b16"), values), samples) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optim.base_lr": 0.001, "curriculum.slice": 0.5}, {"lr": "0.001", "slice": "0.5", "set": []}),
        ({"trainer.compile": False, "log.wandb": None}, {"set": ["trainer.compile=false", "log.wandb=null"]}),
        ({"trainer.epochs": 44.0, "seed": 0}, {"epochs": "44", "seed": 0, "set": []}),
    ],
)
def test_values_become_flags(values, expected):
    assert options.flags(values) == expected
