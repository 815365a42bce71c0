"""`mimcl eval attentive` on packed images: what it learns, that it goes on exactly, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import ranks
from helpers.colour_runs import colour_runs, small_encoder
from helpers.typed import error_line, mimcl
from safetensors.torch import load_file

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate import attentive as module
from mimcl.cli.evaluate import fit_recorder, frozen_probe
from mimcl.cli.evaluate.attentive import attentive
from mimcl.model.steps import StepLoop
from mimcl.model.world import World

pytestmark = pytest.mark.slow  # trains

SHORT = {"values": {"epochs": 2, "batch_size": 24}, "decoder": "reference"}  # 5 steps


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_encoder(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed colours in shards/, and a run of two steps in run/."""
    return colour_runs(tmp_path_factory.mktemp("home"), run="auto")


def folder_of(run: Path) -> Path:
    (folder,) = (run / "evaluation" / "attentive").iterdir()
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(folder_of(run) / "weights.safetensors")


def test_colours_are_learned_and_the_encoder_stays_as_it_was(run, capsys):
    before = Encoder.load(run).tensors
    found = attentive(run, None, values={"epochs": 40, "batch_size": 30, "base_lr": 0.05}, decoder="reference")
    assert found.trained["attentive"] >= 0.9
    assert found.trained["attentive_top5"] == 1
    assert (found.train, found.val, found.classes, found.settings["recipe"]) == (60, 33, 3, "fast")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["evaluation"], line["values"]) == ("attentive", found.trained)
    names = {
        "queries",
        "values",
        *(f"probe.{name}" for name in ("head.weight", "head.bias", "mean", "variance", "seen")),
    }
    assert set(weights(run)) == names
    after = Encoder.load(run).tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_prints_a_table_and_what_to_do_next(home, run, monkeypatch, capsys):
    words = ["eval", "attentive", str(run), "--decoder", "reference"]
    assert mimcl(monkeypatch, home, *words, "--epochs", "2", "--batch-size", "24", "--queries", "8") == 0
    line, said = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]), capsys.readouterr().out
    assert line["settings"]["queries"] == 8
    assert weights(run)["queries"].shape == (8, 64)
    assert f"{100 * line['values']['attentive']:.1f} ±" in said
    assert f"next: mimcl report {run}" in said
    assert mimcl(monkeypatch, home, *words, "--epochs", "2", "--batch-size", "24", "--queries", "8") == 0
    assert "has the result already" in capsys.readouterr().out


def test_its_recipes_are_the_published_one_and_one_for_few_images(run, capsys):
    published = attentive(run, None, "mae", {"epochs": 1}, "reference").settings
    said = capsys.readouterr().out
    assert "batch_size 4096 reduced to 60" in said
    assert "--epochs, or use --recipe fast" in said
    assert [published[name] for name in ("base_lr", "momentum", "trust", "queries")] == [0.1, 0.9, 1e-3, 32]
    steps = module._MIN_STEPS
    assert steps == 300
    module._MIN_STEPS = 12
    try:
        fast = attentive(run, decoder="reference")
        module._MIN_STEPS = 3
        shorter = attentive(run, decoder="reference")
    finally:
        module._MIN_STEPS = steps
    assert [fast.settings[name] for name in ("epochs", "batch_size", "base_lr")] == [12.0, 60, 0.03]
    assert shorter.settings["epochs"] == 10


@pytest.mark.parametrize("recipe", ["fast", "mae"])
def test_broken_off_and_run_again_it_ends_with_the_same_bits(run, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(fit_recorder, "_SAVE_EVERY", 2 * 24)  # images
    other = Path(shutil.copytree(run, tmp_path / "other"))
    whole = attentive(other, recipe=recipe, **SHORT)
    make_step = StepLoop._step

    def breaking(self, *arguments):
        if self.position == 3 * 24:
            raise RuntimeError("broken off")
        return make_step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepLoop, "_step", breaking)
        with pytest.raises(RuntimeError, match="broken off"):
            attentive(run, recipe=recipe, **SHORT)
    assert (folder_of(run) / "checkpoints" / "latest").read_text() == "00000002\n"
    assert attentive(run, recipe=recipe, **SHORT).trained == whole.trained
    first, second = weights(other), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


def probe_and_leave() -> None:
    """In place of a command, with batch statistics of 12 images."""
    ranks.shrink_model()
    frozen_probe._MICRO_BATCH = 12
    attentive(Path(sys.argv[1]), **SHORT, world=World.from_environment())
    sys.exit()


def test_two_processes_end_with_the_weights_of_one(home, run, tmp_path):
    """Micro-batches are cut alike, 12 images each, which batch statistics are of."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    ranks.run(home, str(other), before=probe_and_leave)
    ranks.run(home, str(run), before=probe_and_leave, size=2)
    first, second = weights(other), weights(run)
    assert (first.pop("probe.seen"), second.pop("probe.seen")) == (10, 5)  # of a process
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-2, msg=name)


def test_what_does_not_fit_is_refused(home, run, monkeypatch, capfd):
    capfd.readouterr()
    for words, message in (
        (["--queries", "7"], "--queries is 7; it must divide the width of a token, 64"),
        (["--epochs", "0"], "epochs is 0.0; it must be above 0"),
        (["--base-lr", "-1"], "base_lr is -1.0; it must be above 0"),
        (["--batch-size", "1"], "batch_size 1 would give micro-batches of one image"),
        (["--recipe", "slow"], "'slow' is not one of 'fast', 'mae'"),
    ):
        assert mimcl(monkeypatch, home, "eval", "attentive", str(run), *words) == 2
        assert message in error_line(capfd.readouterr().err)
    with pytest.raises(ConfigError, match="batch_size 3 .* 4 processes"):
        attentive(run, values={"batch_size": 3}, world=World(0, 4, 0, 4))
