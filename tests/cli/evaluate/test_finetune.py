"""`mimcl eval finetune` on packed images: what it learns, what it leaves behind, and that it goes on exactly."""

import hashlib
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ranks, stuck, torchruns
from helpers.bad_samples import flip_byte
from helpers.colour_runs import colour_runs, small_encoder
from helpers.colours import write_colours
from helpers.images import write_classes, write_flat
from helpers.typed import error_line, mimcl
from safetensors.torch import load_file

from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate import finetune as finetune_module
from mimcl.cli.evaluate import fit_recorder
from mimcl.cli.evaluate import linear_mae as linear_module
from mimcl.cli.evaluate.finetune import finetune
from mimcl.cli.evaluate.task import Course, Task, decoder_of, train_batches
from mimcl.model.evaluate.finetune_config import FinetuneConfig
from mimcl.model.evaluate.linear import LinearConfig
from mimcl.model.evaluate.supervised import LabelledObjective
from mimcl.model.steps import StepLoop
from mimcl.model.world import World
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

SHORT = {"epochs": 2, "batch_size": 24, "mixing_group": 4}  # 5 steps of 6 groups
PLAIN = {"rand_augment": 0, "mixup": 0, "cutmix": 0, "erasing": 0, "smallest_crop": 0.5}


def typed(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_encoder(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed colours; run/ is in float32, whose sums hardly depend on their order, half/ in bfloat16."""
    return colour_runs(tmp_path_factory.mktemp("home"), run="float32", half="bfloat16")


def folder_of(run: Path) -> Path:
    (folder,) = (run / "evaluation" / "finetune").iterdir()
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(folder_of(run) / "weights.safetensors")


def assert_close(one: Path, other: Path) -> None:
    """Weights that differ by no more than sums in another order make them."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=0, msg=name)


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines(folder_of(one)) == lines(folder_of(other))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_colours_are_learned_and_the_result_stands_where_it_should(home, run, monkeypatch, capsys, precision):
    if precision == "bfloat16":
        run = Path(shutil.copytree(home / "half", run.parent / "half"))
    settings = PLAIN | {"base_lr": 0.02, "epochs": 12, "layer_decay": 0.9, "judge_every_epochs": 6}
    words = ["eval", "finetune", str(run), "--batch-size", "12", "--decoder", "reference", *typed(settings)]
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert mimcl(monkeypatch, home, *words, "--set", "mixing_group=4") == 0
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    said = capsys.readouterr().out
    assert "60 images of 3 classes, 60 steps; using the recipe of vit_base" in said
    assert "val  top1 " in said
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["evaluation"] == "finetune"
    assert line["values"]["finetune"] >= 0.9
    assert line["values"]["finetune_top5"] == 1
    assert (line["settings"]["batch_size"], line["settings"]["precision"]) == (12, precision)
    judged = [line for line in lines(folder_of(run)) if "top1" in line]
    assert [line["step"] for line in judged] == [30, 60]
    assert judged[-1]["top1"] == json.loads((folder_of(run) / "result.json").read_text())["top1"]
    kept = folder_of(run) / "weights.safetensors"
    assert re.search(rf"weights: {kept.stat().st_size / 1e6:,.1f} MB .* {kept}", " ".join(said.split()))
    assert not (folder_of(run) / "checkpoints").exists()
    content = kept.read_bytes()
    kept.parent.joinpath("checkpoints", "00000060").mkdir(parents=True)  # as one that is killed right now leaves it
    kept.rename(kept.parent / "checkpoints" / "00000060" / kept.name)
    assert mimcl(monkeypatch, home, *words, "--set", "mixing_group=4") == 0
    assert kept.read_bytes() == content
    assert not (folder_of(run) / "checkpoints").exists()
    again = capsys.readouterr().out
    assert "has the result already" in again
    assert "step 1" not in again


def test_labels_at_random_are_not_learned(run):
    values = PLAIN | {"base_lr": 0.02, "epochs": 12, "batch_size": 12, "mixing_group": 4, "layer_decay": 0.9}
    found = finetune(run, Path("permuted"), values, decoder="reference")
    assert found.trained["finetune"] < 0.75
    assert (found.train, found.val, found.classes, found.data) == (60, 33, 3, "permuted")


def die(step: int) -> None:
    """Saves every second step, and kills the process in a step."""
    ranks.shrink_model()
    fit_recorder._SAVE_EVERY = 2 * SHORT["batch_size"]  # images
    make_step = StepLoop._step

    def dying(self, *arguments):
        if self.position // self._batch_size == step:
            written = partial(Path(os.environ["DIE_IN"]).glob, "evaluation/finetune/*/checkpoints/latest")
            torchruns.until(lambda: any(written()), "a checkpoint", Path(os.devnull))
            os.kill(os.getpid(), signal.SIGKILL)
        return make_step(self, *arguments)

    StepLoop._step = dying


def die_in_the_fourth() -> None:
    die(3)


def save_every_second() -> None:
    die(-1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_and_run_again_it_ends_with_the_same_bits(home, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    words = ["--decoder", "reference", *typed(SHORT)]
    ranks.run(home, "eval", "finetune", str(other), *words, before=save_every_second)
    killed = ranks.start(home, "eval", "finetune", str(run), *words, before=die_in_the_fourth, DIE_IN=str(run))
    ranks.finish(home, killed, -signal.SIGKILL)
    assert not (folder_of(run) / "result.json").exists()
    ranks.run(home, "eval", "finetune", str(run), *words, before=save_every_second)
    assert f"resuming at step 2 in {folder_of(run)}" in ranks.output(home)
    assert_same(run, other)


def test_a_judgement_that_was_broken_off_is_made_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_recorder, "_SAVE_EVERY", 2 * SHORT["batch_size"])
    other, values = Path(shutil.copytree(run, tmp_path / "other")), SHORT | {"judge_every_epochs": 1}
    finetune(other, None, values, decoder="reference")
    assert [line["step"] for line in lines(folder_of(other)) if "top1" in line] == [2, 5]

    def breaking(self, values):
        raise RuntimeError("broken off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_recorder.FitRecorder, "evaluated", breaking)  # of step 2, after which it is saved as well
        with pytest.raises(RuntimeError, match="broken off"):
            finetune(run, None, values, decoder="reference")
    finetune(run, None, values, decoder="reference")
    assert_same(run, other)


def test_a_signal_ends_it_saved_and_it_goes_on(home, run, tmp_path, monkeypatch, capfd):
    other = shutil.copytree(run, tmp_path / "other")
    finetune(other, None, SHORT, decoder="reference")
    make_step = StepLoop._step

    def asked(self, *arguments):
        if self.position // self._batch_size == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepLoop, "_step", asked)
        assert mimcl(monkeypatch, home, "eval", "finetune", str(run), "--decoder", "reference", *typed(SHORT)) == 75
    capfd.readouterr()
    settings = folder_of(run) / "settings.json"
    settings.write_text(settings.read_text().replace('"decoder": "reference"', '"decoder": "dali-cpu"'))
    assert mimcl(monkeypatch, home, "eval", "finetune", str(run), "--decoder", "reference", *typed(SHORT)) == 0
    warned = "decoder changes from 'dali-cpu' to 'reference': same draws, but results are not bit-identical"
    assert warned in capfd.readouterr().err
    assert json.loads(settings.read_text())["decoder"] == "reference"
    assert_same(run, other)


@pytest.mark.exhaustive
def test_a_step_that_does_not_end_is_abandoned_and_it_goes_on(home, run, tmp_path):
    other, words = shutil.copytree(run, tmp_path / "other"), ["eval", "finetune", "--decoder", "reference"]
    (process,) = ranks.start(home, *words, *typed(SHORT), str(run), before=stuck.decoder(2))
    torchruns.until(lambda: any(run.glob("evaluation/finetune/*/metrics.jsonl")), "the first step", home / "rank-0.log")
    time.sleep(2)
    os.kill(process.pid, signal.SIGTERM)
    ranks.finish(home, [process], code=75)
    assert f"it is in {folder_of(run)}; run the same command to resume" in ranks.output(home)
    ranks.run(home, *words, *typed(SHORT), str(run), before=ranks.shrink_model)
    assert "resuming at step 2 in" in ranks.output(home)
    ranks.run(home, *words, *typed(SHORT), str(other), before=ranks.shrink_model)
    assert_same(run, other)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_under_torchrun_the_losses_are_those_of_one_process(home, run, tmp_path):
    """The whole recipe, judged on 33 val images that 2 processes share unevenly."""
    other, log = shutil.copytree(run, tmp_path / "other"), tmp_path / "log"
    values = SHORT | {"drop_path": 0.5, "base_lr": 0.01, "judge_every_epochs": 1}
    words = ["eval", "finetune", "--decoder", "reference", *typed(values)]
    ranks.run(home, *words, str(other), before=ranks.shrink_model)
    small = "from helpers import ranks; ranks.shrink_model(); from mimcl.cli.main import main; main()"
    path = os.pathsep.join([str(Path(ranks.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = ["python", "-c", small, *words, str(run)]
    process = torchruns.start(log, ["--nproc-per-node", "2"], command, home, PYTHONPATH=path)
    try:
        assert process.wait(120) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    assert log.read_text().count("finetune_top5") == 1  # a table, by one of them
    one, two = lines(folder_of(other)), lines(folder_of(run))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 5, 5]
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    assert_close(run, other)


def test_micro_batches_do_not_matter_and_other_settings_have_another_folder(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    base = finetune(other, None, SHORT, decoder="reference")
    assert finetune(run, None, SHORT, micro_batch_size=8, decoder="reference").trained == base.trained
    assert_close(run, other)
    finetune(run, None, SHORT | {"seed": 1, "drop_path": 0}, decoder="reference")
    assert len(list((run / "evaluation" / "finetune").iterdir())) == 2


def test_every_part_of_the_recipe_takes_part(run):
    base = {"epochs": 2, "batch_size": 24, "mixing_group": 4, "base_lr": 0.01, "judge_every_epochs": 9}
    without = ({"mixup": 0, "cutmix": 0}, {"mixup": 0}, {"betas": [0.8, 0.9]}, {"smallest_crop": 1}, {"layer_decay": 1})
    zeros = (
        "rand_augment",
        "erasing",
        "label_smoothing",
        "drop_path",
        "weight_decay",
        "warmup_epochs",
        "rand_augment_std",
    )
    found = set()
    for changed in ({}, *without, *({name: 0} for name in zeros), {"min_lr": 0.001}, {"seed": 1}):
        finetune(run, None, base | {"drop_path": 0.5, "weight_decay": 10} | changed, decoder="reference")
    for folder in (run / "evaluation" / "finetune").iterdir():
        found.add(hashlib.sha256((folder / "weights.safetensors").read_bytes()).digest())
    assert len(found) == 15


def test_a_batch_larger_than_the_data_shrinks_to_whole_groups(run, capsys):
    found = finetune(run, None, {"epochs": 1, "mixing_group": 32, "warmup_epochs": 5}, decoder="reference")
    assert found.settings["batch_size"] == 32
    assert found.settings["warmup_epochs"] == 0.2
    assert "batch_size 1024 reduced to 32: 60 images, in groups of 32" in capsys.readouterr().out


def test_images_without_a_label_or_of_classes_that_train_lacks_do_not_count(home, run, monkeypatch):
    load = ShardIndex.load

    def changed(root: Path, split: str = "train") -> ShardIndex:
        index = load(root, split)
        label = index.label.copy()
        label[::4] = -1
        if split == "train":
            label[label == 1] = -1
        object.__setattr__(index, "label", label)
        return index

    monkeypatch.setattr(ShardIndex, "load", changed)
    task = Task.load(run, None, World())
    assert task.splits.classes == 2
    assert task.targets(np.array([0, 1, 2, -1], np.int32)).tolist() == [0, -1, 1, -1]
    found = finetune(run, None, SHORT, decoder="reference")
    assert found.train == np.count_nonzero(task.splits.train.label >= 0) == 30
    labels = task.splits.val.label
    assert found.val == np.count_nonzero((labels >= 0) & (labels != 1))
    assert found.unseen == np.count_nonzero(labels == 1)
    assert found.trained["finetune_top5"] == 1  # of two classes


def test_bad_val_images_do_not_count(home, run, tmp_path, capsys):
    shards = Path(shutil.copytree(home / "shards", tmp_path / "shards"))
    val = ShardIndex.load(shards, "val")
    for sample_id in (0, 3):
        flip_byte(val, sample_id)
    for _ in range(2):  # the second time the result is read
        assert finetune(run, str(shards), SHORT, decoder="reference").val == val.samples - 2
    assert capsys.readouterr().err.count("is bad and has no features") == 2


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (lambda folder: write_classes(folder, {"ant": 3, "bee": 3}), (), "has no val split"),
        (lambda folder: write_flat(folder, 8), ("--holdout", "0.25"), "have no labels"),
        (
            lambda folder: write_colours(folder, 8, colours={"red": (200, 0, 0)}),
            ("--holdout", "0.25"),
            "the same class",
        ),
    ],
)
def test_data_that_cannot_judge_is_one_line(home, run, tmp_path, monkeypatch, capfd, write, options, message):
    write(tmp_path / "images")
    assert mimcl(monkeypatch, tmp_path, "shard", "images", *options) == 0
    capfd.readouterr()
    assert mimcl(monkeypatch, home, "eval", "finetune", str(run), "--data", str(tmp_path / "shards")) == 1
    complaint = error_line(capfd.readouterr().err)
    assert message in complaint
    with pytest.raises(DataError, match=message):
        finetune(run, tmp_path / "shards")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "nowhere does not exist"),
        (["run", "--set", "mixupp=0"], 2, "unknown key 'mixupp'; did you mean mixup?"),
        (["run", "--set", "qqq=0"], 2, "unknown key 'qqq'; `mimcl keys` lists all"),
        (["run", "--drop-path", "2"], 2, "drop_path is 2.0; it must be from 0 to 0.99"),
        (["run", "--set", "epochs=many"], 2, "epochs is 'many'; it must be a number"),
        (["run", "--decoder", "magic"], 2, "'magic' is not one of 'auto'"),
    ],
)
def test_bad_input_is_one_line(home, monkeypatch, capfd, words, code, message):
    assert mimcl(monkeypatch, home, "eval", "finetune", *words) == code
    complaint = error_line(capfd.readouterr().err)
    assert message in complaint


@pytest.mark.parametrize(
    ("values", "micro_batch_size", "processes", "message"),
    [
        ({"mixing_group": 24}, None, 2, "fewer groups of 24 images .* than the 2 processes; .*--set mixing_group=12$"),
        ({"mixing_group": 8}, None, 25, "batch_size 24 is smaller than the 25 processes"),
        ({"mixing_group": 8}, 8, 2, "--micro-batch-size 8 .* 24 images .* 2 processes; make it 16"),
        ({"mixing_group": 8}, 7, 1, "--micro-batch-size 7 is less than mixing_group 8, .*--set mixing_group=7$"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_bad_usage(run, values, micro_batch_size, processes, message):
    with pytest.raises(ConfigError, match=message):
        finetune(run, None, SHORT | values, micro_batch_size, world=World(0, processes, 0, processes))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["finetune", "linear"])
def test_between_the_first_step_and_the_last_the_host_never_waits_for_the_device(run, kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    task = Task.load(run, None, World())
    if kind == "finetune":
        config = replace(FinetuneConfig(), **SHORT)
        group, learner = config.mixing_group, finetune_module._learner(task, config)
    else:
        config = LinearConfig(epochs=2, batch_size=24)
        group, learner = 1, linear_module._learner(task, config)
    course = Course.of(config, task.images, task.world, 24, group)
    decoder, _ = decoder_of("reference", task, task.splits.train, 24)
    batches = list(train_batches(task, course, decoder, None, 0))  # the thread that makes them may wait
    objective = LabelledObjective(learner.module, learner.optimizer, learner.losses, learner.rate, batch_size=24)
    loop = StepLoop(objective, task.device, batch_size=24, micro_batches=1, draws=course.draws)
    modes = {1: "error", 4: "default"}  # of 5 steps: torch raises at whatever waits between
    try:
        for step in loop.steps(batches):
            if step.number in modes:
                torch.cuda.set_sync_debug_mode(modes[step.number])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loop.position == course.draws == 5 * 24
