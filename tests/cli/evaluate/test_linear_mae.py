"""The linear probe by MAE's recipe on packed images: what it learns, and that it goes on exactly."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.colour_runs import colour_runs, small_encoder
from helpers.typed import error_line, mimcl
from safetensors.torch import load_file

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate import fit_recorder
from mimcl.cli.evaluate import frozen_probe as probe_module
from mimcl.cli.evaluate.linear_mae import linear_mae
from mimcl.model.steps import StepLoop
from mimcl.model.world import World

SHORT = {"epochs": 2, "batch_size": 24, "decoder": "reference", "base_lr": 100.0}  # 5 steps


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_encoder(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed colours in shards/, the same with train labels at random in permuted/, and a run of two steps in run/."""
    return colour_runs(tmp_path_factory.mktemp("home"), run="auto")


def folder_of(run: Path) -> Path:
    (folder,) = (run / "evaluation" / "linear").iterdir()
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(folder_of(run) / "weights.safetensors")


def test_colours_are_learned_and_the_encoder_stays_as_it_was(run, capsys):
    before = Encoder.load(run).tensors
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = linear_mae(run, None, 30, 30, "reference", base_lr=20.0)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    assert found.trained["linear"] >= 0.9
    assert found.trained["linear_top5"] == 1
    assert (found.train, found.val, found.classes, found.settings["recipe"]) == (60, 33, 3, "mae")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["evaluation"], line["values"]) == ("linear", found.trained)
    assert set(weights(run)) == {"head.weight", "head.bias", "mean", "variance", "seen"}
    after = Encoder.load(run).tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_prints_a_table(home, run, monkeypatch, capsys):
    words = ["eval", "linear", str(run), "--recipe", "mae", "--epochs", "2", "--decoder", "reference"]
    assert mimcl(monkeypatch, home, *words, "--batch-size", "24", "--base-lr", "100") == 0
    said = capsys.readouterr().out.splitlines()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["values"] == linear_mae(run, **SHORT).trained
    row = next(line for line in said if line.startswith("linear  "))
    assert f"{100 * line['values']['linear']:.1f} ±" in row
    capsys.readouterr()
    assert mimcl(monkeypatch, home, *words, "--base-lr", "0") == 2
    assert "base_lr is 0.0; it must be above 0" in capsys.readouterr().err


def test_labels_at_random_are_not_learned(run):
    found = linear_mae(run, Path("permuted"), 30, 30, "reference", base_lr=20.0)
    assert found.trained["linear"] < 0.75


def test_its_defaults_are_maes_and_few_images_get_a_word(run, capsys):
    found = linear_mae(run, epochs=1, decoder="reference")
    said = capsys.readouterr().out
    assert "batch_size 16384 reduced to 60" in said
    assert "LARS moves the weights by" in said
    assert "--epochs, or use --recipe fast" in said
    settings = found.settings
    assert (settings["base_lr"], settings["momentum"], settings["trust"], settings["statistics_of"]) == (
        0.1,
        0.9,
        1e-3,
        60,
    )
    assert (settings["warmup_epochs"], settings["smallest_crop"]) == (0.2, 0.08)


def test_a_piece_of_one_image_is_bad_usage(home, run, monkeypatch, capfd):
    assert mimcl(monkeypatch, home, "eval", "linear", str(run), "--recipe", "mae", "--batch-size", "1") == 2
    complaint = error_line(capfd.readouterr().err)
    assert "batch_size 1 " in complaint
    assert "give --batch-size 2 or more" in complaint
    with pytest.raises(ConfigError, match="batch_size 7 .*--batch-size 8"):
        linear_mae(run, batch_size=7, world=World(0, 4, 0, 4))
    with pytest.raises(ConfigError, match="batch_size 3 .* 4 processes"):
        linear_mae(run, batch_size=3, world=World(0, 4, 0, 4))


def test_broken_off_and_run_again_it_ends_with_the_same_bits(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_recorder, "_SAVE_EVERY", 2 * 24)  # images
    other = Path(shutil.copytree(run, tmp_path / "other"))
    linear_mae(other, **SHORT)
    make_step = StepLoop._step

    def breaking(self, *arguments):
        if self.position == 3 * 24:
            raise RuntimeError("broken off")
        return make_step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepLoop, "_step", breaking)
        with pytest.raises(RuntimeError, match="broken off"):
            linear_mae(run, **SHORT)
    assert (folder_of(run) / "checkpoints" / "latest").read_text() == "00000002\n"
    linear_mae(run, **SHORT)
    first, second = weights(other), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (folder_of(run) / "metrics.jsonl").read_bytes() == (folder_of(other) / "metrics.jsonl").read_bytes()


def probe_and_leave() -> None:
    """In place of a command, with batch statistics of 12 images."""
    ranks.shrink_model()
    probe_module._MICRO_BATCH = 12
    if os.environ["RANK"] != "0":  # has another disk, without the result
        fit_recorder.FitRecorder.values = lambda folder: sys.exit("looked for itself")
    linear_mae(Path(sys.argv[1]), **SHORT, world=World.from_environment())
    sys.exit()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_end_with_the_weights_of_one(home, run, tmp_path):
    """Micro-batches are cut alike, 12 images each, which batch statistics are of."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    ranks.run(home, str(other), before=probe_and_leave)
    ranks.run(home, str(run), before=probe_and_leave, size=2)
    first, second = weights(other), weights(run)
    assert (first.pop("seen"), second.pop("seen")) == (10, 5)  # of a process
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-2, msg=name)
    ranks.run(home, str(run), before=probe_and_leave, size=2)
    assert "has the result already" in ranks.output(home)
