"""Which folder and configuration a run gets, and when it may go on."""

from dataclasses import replace
from pathlib import Path

import pytest

from mimcl.cli.config import ConfigError, override, write_yaml
from mimcl.cli.recipes import cpu_small
from mimcl.cli.run import draws_of, open_run, resolve
from mimcl.model import checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved_run(folder: Path, **values) -> None:
    folder.mkdir(parents=True)
    write_yaml(folder / "config.yaml", resolve(override(cpu_small(), values), 256, "reference"))
    checkpoint.save(folder / "checkpoints", 3, {}, {}, {}, 1)


def test_names_follow_the_recipe_and_count_up(here):
    run = open_run("cifar_tiny", {"curriculum.name": "anti"}, None, resume=False)
    assert run.folder == Path("runs/cifar_tiny-anti-random")
    assert run.checkpoint is None
    run.folder.mkdir(parents=True)
    assert open_run("cifar_tiny", {"curriculum.name": "anti"}, None, False).folder.name == "cifar_tiny-anti-random-2"


def test_an_existing_run_is_not_overwritten(here):
    saved_run(here / "a")
    with pytest.raises(ConfigError, match="exists; give another --out, or --resume"):
        open_run(None, {}, here / "a", resume=False)


def test_resume_starts_where_there_is_nothing_yet(here):
    run = open_run("cpu_small", {"seed": 4}, here / "new", resume=True)
    assert (run.folder, run.checkpoint, run.config.seed) == (here / "new", None, 4)
    with pytest.raises(ConfigError, match="--out runs/NAME --resume"):
        open_run(None, {}, None, resume=True)


def test_resume_keeps_the_runs_own_configuration(here):
    saved_run(here / "a", **{"seed": 9, "curriculum.name": "anti"})
    run = open_run(None, {"data.decoder": "reference"}, here / "a", resume=True)
    assert run.checkpoint == here / "a" / "checkpoints" / "00000003"
    assert (run.config.seed, run.config.curriculum.name, run.config.data.decoder) == (9, "anti", "reference")


def test_resume_takes_the_very_same_command_again(here):
    asked = {"optim.warmup_epochs": 40.0, "trainer.epochs": 10, "trainer.precision": "auto", "curriculum.window": None}
    saved_run(here / "a", **asked)  # kept as one epoch of warm-up, a precision of this machine, 256 draws
    config = open_run(None, asked, here / "a", resume=True).config
    assert config.optim.warmup_epochs == 1
    assert config.curriculum.window == 256
    assert config.trainer.precision in ("bfloat16", "float32")
    with pytest.raises(ConfigError, match="optim.warmup_epochs is 0.5"):
        open_run(None, asked | {"optim.warmup_epochs": 0.5}, here / "a", resume=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1}, "seed is 1 but the run .* has 9"),
        ({"curriculum.name": "proto"}, "curriculum.name is 'proto' but the run .* has 'anti'"),
        ({"data.batch_size": 128}, "data.batch_size is 128 but the run .* has 64"),
        ({"trainer.epochs": 51}, r"trainer.epochs is 51.0 but the run .* has 50.0"),
        ({"model.name": "vit_base"}, "model.name"),
        ({"optim.base_lr": 1.0}, "optim.base_lr"),
    ],
)
def test_resume_refuses_another_run(here, values, message):
    saved_run(here / "a", **{"seed": 9, "curriculum.name": "anti"})
    with pytest.raises(ConfigError, match=message):
        open_run(None, values, here / "a", resume=True)


def test_resume_refuses_another_recipe(here):
    saved_run(here / "a")
    with pytest.raises(ConfigError, match="recipe is mae_b16 but the run .* has cpu_small"):
        open_run("mae_b16", {}, here / "a", resume=True)


def test_length_is_whole_batches_that_hold_the_epochs():
    config = cpu_small()

    def draws(epochs, samples):
        return draws_of(replace(config, trainer=replace(config.trainer, epochs=epochs)), samples)

    assert draws(1, 500) == 512
    assert draws(50, 500) == 25_024
    assert draws(0.1, 640) == 64
    assert draws(0.001, 500) == 64
    assert draws(2, 640) == 1280


def test_resolving_leaves_nothing_open():
    config = resolve(override(cpu_small(), {"trainer.epochs": 10}), 256, "reference")
    assert config.trainer.precision in ("bfloat16", "float32")
    assert config.curriculum.window == 256
    assert config.data.decoder == "reference"
    assert config.optim.warmup_epochs == 1  # a tenth of the run
    assert resolve(config, 256, "reference") == config


def test_several_processes_are_refused_for_now(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        open_run(None, {}, None, resume=False)
