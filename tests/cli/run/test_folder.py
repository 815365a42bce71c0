"""Which folder and configuration a run gets, and when it may go on."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.damage import flip

from mimcl.cli.config import Config, flatten, override, write_yaml
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import cpu_small
from mimcl.cli.run.folder import claimed, open_run
from mimcl.cli.run.resolve import draws_of, resolve
from mimcl.cli.run.resume import resume_run
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.plan import Plan
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.trainer import Trainer
from mimcl.pipeline.augment import hash64


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reported():
    return []


def resolved(**values):
    return resolve(override(cpu_small(), values), 256, "reference")


def saved_run(folder: Path, step=3, **values) -> Path:
    """A run with a checkpoint; config.yaml is of another moment, as after a kill, and says nothing that counts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", resolved(seed=77))
    meta = {"config": asdict(resolved(**values))}
    return checkpoint.save(folder / "checkpoints", step, {}, {}, meta, keep_last=9)


def test_names_follow_the_recipe_and_count_up(here):
    run = open_run("cifar_tiny", {"curriculum.name": "anti"}, None, resume=False)
    assert run.folder == Path("runs/cifar_tiny-anti-random")
    assert not run.resumed
    assert not run.folder.exists()
    run.folder.mkdir(parents=True)
    assert open_run("cifar_tiny", {"curriculum.name": "anti"}, None, False).folder.name == "cifar_tiny-anti-random-2"


def test_an_existing_run_is_not_overwritten(here):
    saved_run(here / "a")
    with pytest.raises(ConfigError, match="--out, or --resume"):
        open_run(None, {}, here / "a", resume=False)
    (here / "empty").mkdir()
    assert open_run("cpu_small", {}, here / "empty", resume=False).folder == here / "empty"


def test_resume_starts_where_there_is_nothing_yet(here):
    run = open_run("cpu_small", {"seed": 4}, here / "new", resume=True)
    assert (run.folder, run.resumed, run.config.seed) == (here / "new", False, 4)
    with pytest.raises(ConfigError, match="--out runs/NAME --resume"):
        open_run(None, {}, None, resume=True)


def test_resume_takes_the_configuration_that_the_checkpoint_was_saved_with(here, reported):
    saved_run(here / "a", **{"seed": 9, "curriculum.name": "anti", "optim.base_lr": 3e-4})
    run = open_run(None, {"data.prefetch": 7}, here / "a", True, (), reported.append)
    assert run.resumed
    assert run.checkpoints == here / "a" / "checkpoints"
    expected = flatten(resolved(**{"seed": 9, "curriculum.name": "anti", "optim.base_lr": 3e-4}))
    assert flatten(run.config) == expected | {"data.prefetch": 7}
    assert reported == []


def test_a_run_killed_before_its_first_checkpoint_keeps_its_configuration(here):
    folder = here / "a"
    (folder / "checkpoints" / "00000003.tmp").mkdir(parents=True)  # half-written
    write_yaml(folder / "config.yaml", resolved(seed=5))
    run = open_run("cpu_small", {"trainer.log_every_steps": 3}, folder, resume=True)
    assert (run.resumed, run.config.seed, run.config.trainer.log_every_steps) == (False, 5, 3)
    assert open_run(None, {"seed": 6}, folder, True, ["seed"]).config.seed == 6
    with pytest.raises(ConfigError, match="seed is 6 but the run .* has 5"):
        open_run(None, {"seed": 6}, folder, resume=True)


def test_a_damaged_meta_is_passed_over_in_one_line_with_the_configuration_before(here, reported):
    saved_run(here / "a", 3, seed=1)
    flip(saved_run(here / "a", 4, seed=2) / "meta.json", 40)
    run = open_run(None, {}, here / "a", True, (), reported.append)
    assert run.config.seed == 1
    (line,) = reported
    assert "00000004" in line


@pytest.mark.parametrize("also_gone", [False, True])
def test_with_all_checkpoints_damaged_nothing_starts_anew(here, reported, also_gone):
    for step in (3, 4):
        path = saved_run(here / "a", step)
        (path / "meta.json").unlink()
        if also_gone:
            [file.unlink() for file in path.iterdir()]
            path.rmdir()
    with pytest.raises(CheckpointError, match="no checkpoint in "):
        open_run("cpu_small", {}, here / "a", True, (), reported.append)
    assert len(reported) == (0 if also_gone else 2)


def test_resume_takes_the_very_same_command_again(here):
    asked = {"optim.warmup_epochs": 40.0, "trainer.epochs": 10, "trainer.precision": "auto", "curriculum.window": None}
    saved_run(here / "a", **asked)  # kept as one epoch of warm-up, a precision of this machine, 256 draws
    config = open_run(None, asked, here / "a", resume=True).config
    assert config.optim.warmup_epochs == 1
    assert config.curriculum.window == 256
    assert config.trainer.precision in ("bfloat16", "float32")
    with pytest.raises(ConfigError, match="optim.warmup_epochs is 0.5"):
        open_run(None, asked | {"optim.warmup_epochs": 0.5}, here / "a", resume=True)


FREE = {
    "data.root": "elsewhere",
    "curriculum.prototypes": "other",
    "data.decoder": "dali-cpu",
    "data.decode_threads": 77,
    "data.keep_decoded": True,
    "data.micro_batch_size": 32,
    "data.prefetch": 9,
    "data.stall_timeout": 5.0,
    "data.max_bad": 0.5,
    "trainer.log_every_steps": 3,
    "trainer.checkpoint_every_steps": 7,
    "trainer.keep_last": 8,
    "trainer.keep_every_steps": 50,
    "trainer.max_nonfinite": 9,
    "trainer.online_knn_epochs": 2.0,
    "trainer.online_rank_epochs": 2.0,
    "log.wandb": "trial",
    "log.mlflow": "sqlite:///mlflow.db",
    "report": False,
}
FIXED = {  # another value of each, and what it may say
    "seed": 1,
    "data.image_size": 96,
    "data.batch_size": 128,
    "curriculum.name": "proto",
    "curriculum.temp_schedule": "linear",
    "curriculum.r0": 0.3,
    "curriculum.share": 0.5,
    "curriculum.temperature": 0.7,
    "curriculum.learned_eta": 0.5,
    "curriculum.learned_beta": 0.5,
    "curriculum.learned_may_fall": True,
    "curriculum.resampling": "systematic",
    "curriculum.balance": True,
    "curriculum.resolution": "efficient",
    "curriculum.uniform": "replacement",
    "curriculum.order": "shard",
    "curriculum.slice": 0.25,
    "curriculum.window": 512,
    "masking.name": "block",
    "masking.mask_ratio": 0.6,
    "masking.clock": "step",
    "hard_patches.start_share": 0.5,
    "hard_patches.end_share": 0.0,
    "hard_patches.predictor_depth": 2,
    "hard_patches.ranking": "absolute",
    "hard_patches.ranking_weight": 0.5,
    "hard_patches.start_momentum": 0.99,
    "hard_patches.end_momentum": 0.999,
    "hard_patches.momentum_epochs": 50.0,
    "hard_patches.momentum_share": 0.5,
    "learned_masking.depth": 3,
    "learned_masking.heads": 2,
    "learned_masking.gauss_weight": 0.5,
    "learned_masking.kl_weight": 0.5,
    "learned_masking.kl_reduction": "mean",
    "learned_masking.diversity_weight": 0.5,
    "learned_masking.group_size": 16,
    "learned_masking.second_every": 2,
    "init": "mae.pth",
    "model.name": "vit_base",
    "model.patch_size": 16,
    "model.decoder_width": 128,
    "model.decoder_depth": 4,
    "model.decoder": "cross",
    "model.predict_share": 0.5,
    "model.norm_pix_loss": False,
    "optim.base_lr": 1.0,
    "optim.weight_decay": 0.5,
    "optim.warmup_epochs": 3.0,
    "optim.betas": (0.8, 0.9),
    "data.scaled_decode": True,
    "trainer.epochs": 51.0,
    "trainer.compile": True,
    "trainer.deterministic": True,
    "trainer.precision": "float32",
}


def test_every_field_is_known_to_be_free_or_fixed():
    assert flatten(cpu_small()).keys() == FREE.keys() | FIXED.keys() | {"recipe", "chosen_by_auto"}


@pytest.mark.parametrize(("key", "value"), FIXED.items())
def test_what_must_not_change_is_refused_with_both_values_unless_allowed(here, key, value):
    had = override(Config(), flatten(resolved(**{"seed": 9, "trainer.precision": "bfloat16"})))
    saved_run(here / "a", **{"seed": 9, "trainer.precision": "bfloat16"})
    with pytest.raises(ConfigError) as raised:
        open_run(None, {key: value}, here / "a", resume=True)
    assert str(raised.value.format_message()) == (
        f"{key} is {value!r} but the run in {here / 'a'} has {flatten(had)[key]!r}; leave it out, or allow it with "
        f"--allow-change {key}"
    )
    run = open_run(None, {key: value}, here / "a", True, [key])
    assert flatten(run.config) == flatten(had) | {key: value}
    assert (run.resumed, run.allowed) == (True, {key})
    with pytest.raises(ConfigError, match="but the run in"):  # one does not allow another
        open_run(None, {key: value, "seed": 10, "optim.base_lr": 0.7}, here / "a", True, [key])


def test_what_no_draw_depends_on_may_change_with_a_word_about_bits(here, reported):
    saved_run(here / "a")
    run = open_run(None, FREE, here / "a", True, (), reported.append)
    assert [line.split()[0] for line in reported] == ["data.decoder", "data.micro_batch_size", "data.keep_decoded"]
    assert flatten(run.config) == flatten(resolved()) | FREE


def test_a_shorter_run_is_allowed_with_the_warm_up_that_follows_and_not_beyond_its_position(stopped, reported):
    run = open_run(None, {"trainer.epochs": 2}, stopped, True, ["trainer.epochs"])
    assert (run.config.trainer.epochs, run.config.optim.warmup_epochs) == (2, 0.2)
    plan = Plan(CurriculumConfig(), samples=64, distances=None, draws=8, batch_size=8, seed=0, hash64=hash64)
    with pytest.raises(ConfigError, match="draw 8, .*draw 16"):
        resumed_at(stopped, reported, ["trainer.epochs"], plan)


def test_a_file_is_no_run_folder(here):
    (here / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; .*--out"):
        open_run(None, {}, here / "file", resume=True)


def test_an_unknown_field_cannot_be_allowed(here):
    with pytest.raises(ConfigError, match=r"--allow-change optim.lr: .*index or prototypes"):
        open_run(None, {}, here / "a", True, ["seed", "optim.lr"])
    assert open_run("cpu_small", {}, here / "a", True, ["index", "prototypes"]).config.seed == 0


def test_resume_refuses_another_recipe(here):
    saved_run(here / "a")
    with pytest.raises(ConfigError, match="recipe is mae_b16 but the run .* has cpu_small"):
        open_run("mae_b16", {}, here / "a", resume=True)
    assert open_run("cpu_small", {}, here / "a", resume=True).resumed
    assert open_run("auto", {}, here / "a", resume=True).config.recipe == "cpu_small"


def test_a_run_restarted_by_torchrun_needs_resume(here, monkeypatch):
    saved_run(here / "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    open_run("cpu_small", {}, here / "b", resume=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for folder in (here / "a", here / "b", None):
        with pytest.raises(ConfigError, match="--out runs/NAME --resume"):
            open_run("cpu_small", {}, folder, resume=False)
    assert open_run(None, {}, here / "a", resume=True).resumed


def test_a_run_that_is_being_written_is_left_alone(here):
    with claimed(here / "a"):
        if os.fork() == 0:  # another process
            try:
                with claimed(here / "a"):
                    os._exit(0)
            except ConfigError as error:
                os._exit(3 if "another process" in str(error) else 1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
    with claimed(here / "a"):
        pass
    (here / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"), claimed(here / "file" / "a"):
        pass


def small_trainer():
    model = MaskedAutoencoderViT(
        16, 8, 16, 1, 1, decoder_width=16, decoder_depth=1, decoder_heads=1, norm_pix_loss=True
    )
    model.initialise(torch.Generator().manual_seed(0))
    return Trainer(
        model,
        RandomMasker(model.num_patches, 0.75),
        TrainerConfig(epochs=4),
        OptimConfig(),
        samples=64,
        draws=256,
        batch_size=8,
        micro_batches=1,
        precision="float32",
    )


def small_plan(seed=0):
    return Plan(
        CurriculumConfig(), samples=64, distances=None, draws=256, batch_size=8, seed=seed, hash64=hash64
    )  # fmt: skip


FINGERPRINTS = {"index": "11aa", "prototypes": None}


@pytest.fixture
def stopped(here):
    """A run with checkpoints at steps 1 and 2; weights differ."""
    trainer, plan = small_trainer(), small_plan()
    for step in (1, 2):
        trainer.position = step * 8
        with torch.no_grad():
            trainer.model.cls_token.fill_(step)
        meta = {
            "config": asdict(resolved()),
            "fingerprints": FINGERPRINTS,
            "window": {"number": 0, "digest": plan.window(0).digest},
        }
        folder = here / "a" / "checkpoints"
        state = trainer.state_dict() | {"draw_counts": torch.full((64,), step, dtype=torch.int32)}
        checkpoint.save(folder, step, trainer.tensors(), state, meta, keep_last=9)
    return here / "a"


def resumed_at(folder, reported, allowed=(), plan=None, fingerprints=FINGERPRINTS):
    run = open_run(None, {}, folder, True, allowed, reported.append)
    trainer = small_trainer()
    counts = resume_run(trainer, plan or small_plan(), run, fingerprints, True, reported.append)
    assert (counts.counts == trainer.position // 8).all()
    return trainer.position // 8, trainer.model.cls_token.unique().tolist()


def test_the_newest_complete_checkpoint_is_loaded(stopped, reported):
    assert resumed_at(stopped, reported) == (2, [2.0])
    assert reported == []


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "meta.json"])
def test_a_damaged_one_is_passed_over_with_one_line_in_all(stopped, reported, name):
    flip(stopped / "checkpoints" / "00000002" / name, 100)
    assert resumed_at(stopped, reported) == (1, [1.0])
    (line,) = reported
    assert line.endswith("trying the previous one")
    flip(stopped / "checkpoints" / "00000001" / "state.pt", 100)
    with pytest.raises(CheckpointError, match="no checkpoint in "):
        resumed_at(stopped, reported)


@pytest.mark.parametrize(("what", "then"), [("index", "11aa"), ("prototypes", "None")])
def test_other_data_are_refused_with_both_fingerprints_unless_allowed(stopped, reported, what, then):
    now = FINGERPRINTS | {what: "22bb"}
    message = rf"the {what} changed .*00000002 .*\(fingerprint {then}, now 22bb\).*--allow-change {what}$"
    with pytest.raises(CheckpointError, match=message):
        resumed_at(stopped, reported, fingerprints=now)
    other = {"index": "prototypes", "prototypes": "index"}[what]
    with pytest.raises(CheckpointError, match=message):
        resumed_at(stopped, reported, [other], fingerprints=now)
    assert resumed_at(stopped, reported, [what], fingerprints=now) == (2, [2.0])


def test_another_plan_is_refused_unless_a_change_of_what_it_follows_from_was_allowed(stopped, reported):
    for allowed in ((), ("trainer.compile",)):
        with pytest.raises(CheckpointError, match="the draws of window 0 differ"):
            resumed_at(stopped, reported, allowed, plan=small_plan(seed=1))
    assert resumed_at(stopped, reported, ["seed"], plan=small_plan(seed=1)) == (2, [2.0])


def test_a_checkpoint_of_another_model_is_refused_in_one_line(stopped, reported):
    path = stopped / "checkpoints" / "00000002"
    saved = checkpoint.load(path)
    tensors = saved.tensors | {"cls_token": torch.zeros(1, 1, 17)}
    checkpoint.save(stopped / "checkpoints", 2, tensors, saved.state, saved.meta, keep_last=9)
    with pytest.raises(CheckpointError, match="00000002 .*cls_token") as raised:
        resumed_at(stopped, reported)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_without_what_the_masker_needs_is_refused_by_its_name(stopped, reported):
    trainer, path = small_trainer(), stopped / "checkpoints" / "00000002"
    trainer.masker.teacher = torch.nn.Linear(2, 2)
    run = open_run(None, {}, stopped, True)
    message = rf"^{path} does not fit the model of this run: it has no masker.teacher \(2 tensors missing\)"
    with pytest.raises(CheckpointError, match=message):
        resume_run(trainer, small_plan(), run, FINGERPRINTS, True, reported.append)


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


@pytest.mark.parametrize(
    ("given", "steps", "kept"), [(None, 4000, 1000), (None, 1125, 400), (None, 3, 200), (0, 4000, 0)]
)
def test_about_every_quarter_of_a_run_a_checkpoint_stays_for_good(given, steps, kept):
    config = override(cpu_small(), {"trainer.keep_every_steps": given})  # saved every 200 steps
    assert resolve(config, 256, "reference", steps).trainer.keep_every_steps == kept
