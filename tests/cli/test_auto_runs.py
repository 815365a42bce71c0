"""Runs, forecasts and comparisons with --recipe auto, and runs of few steps, from the command line."""

import json
import shlex

import pytest
from helpers.images import write_train_val
from helpers.typed import mimcl

from mimcl.cli.config import read_yaml
from mimcl.cli.report.settings import settings
from mimcl.cli.run.config_diff import config_diff
from mimcl.cli.run.folder import open_run

pytestmark = pytest.mark.slow

IMAGES = 40
SMALL = shlex.split(
    "--decoder reference --set data.decode_threads=1 --set model.decoder_width=32 --set model.decoder_depth=1 "
    "--set trainer.precision=float32 --set trainer.log_every_steps=1 --set report=false"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed images."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", {"ant": 20, "bee": 20}, {})
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images/train", "--workers", "1") == 0
    return folder


@pytest.fixture(scope="module")
def auto_run(home):
    """A run with --recipe auto, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, home, "train", "--epochs", "0.5", *SMALL, "--out", "auto") == 0
    return home / "auto"


def test_a_run_keeps_what_auto_chose(auto_run, monkeypatch, capfd):
    values = read_yaml(auto_run / "config.yaml")
    assert values["recipe"] in ("cpu_small", "cifar_tiny")
    assert (values["data.batch_size"], values["data.micro_batch_size"], values["trainer.epochs"]) == (4, 4, 0.5)
    assert values["chosen_by_auto"] == "data.batch_size,data.micro_batch_size"
    again = open_run("auto", {}, auto_run, resume=True, inform=pytest.fail).config
    assert (again.recipe, again.data.batch_size) == (values["recipe"], 4)
    assert mimcl(monkeypatch, auto_run.parent, "train", "--recipe", "auto", "--out", "auto", "--resume") == 0
    assert "recipe auto" not in capfd.readouterr().out
    assert read_yaml(auto_run / "config.yaml") == values


def test_what_auto_chose_is_no_change_by_the_user(auto_run, monkeypatch, capfd):
    config = open_run(None, {}, auto_run, resume=True).config
    changed = config_diff(config, IMAGES).keys()
    assert "trainer.epochs" in changed
    assert not changed & {"data.batch_size", "data.micro_batch_size", "chosen_by_auto"}
    rows = {row.name: row for row in settings(read_yaml(auto_run / "config.yaml"), IMAGES)}
    assert (rows["batch_size"].chosen, rows["epochs"].chosen, rows["chosen_by_auto"].recipe) == (False, True, None)
    assert mimcl(monkeypatch, auto_run.parent, "inspect", "auto") == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "by auto data.batch_size: 4 " in out
    assert "changed data.batch_size" not in out


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--rows", "2"],
        ["plan", "--recipe", "auto", "--rows", "2", "--temp-schedule", "cosine", "--temp-schedule", "step"],
        ["compare", "--recipe", "auto", "--arms", "epochs,uniform", "--eval", "", "--dry-run"],
    ],
)
def test_commands_say_once_what_auto_chose(home, monkeypatch, capfd, words):
    assert mimcl(monkeypatch, home, *words) == 0
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("recipe auto: c") == 1
    assert "batch 4, " in printed.out + printed.err
    assert "one that fits" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["plan", "--recipe", "mae_b16"], "mimcl train --recipe mae_b16 "),
        (
            ["compare", "--recipe", "mae_b16", "--arms", "epochs,uniform", "--eval", "", "--lr", "1e-3", "--dry-run"],
            "mimcl compare --recipe mae_b16 --arms epochs,uniform --seeds 3 --eval '' --lr 0.001 ",
        ),
    ],
)
def test_a_batch_too_large_for_a_recipe_is_answered_by_a_command_that_works(home, monkeypatch, capfd, words, command):
    assert mimcl(monkeypatch, home, *words) == 0
    printed = capfd.readouterr()
    (line,) = [line for line in (printed.out + printed.err).splitlines() if "one that fits: " in line]
    suggested = line.partition("one that fits: ")[2]
    assert suggested.startswith(command)
    assert "--batch-size 4 --epochs " in suggested
    words = shlex.split(suggested.replace("mimcl train", "mimcl plan"))[1:]
    assert mimcl(monkeypatch, home, *words, *(["--dry-run"] if words[0] == "compare" else [])) == 0
    printed = capfd.readouterr()
    assert "one that fits" not in printed.out + printed.err


def test_a_comparison_keeps_what_auto_chose(home, monkeypatch, capfd):
    (home / "kept").mkdir()
    head = {"format": "mimcl-comparison/1", "recipe": "cifar_tiny", "budget": "samples", "epochs": 7.0}
    head |= {"seconds_per_step": {}, "chosen_by_auto": {"data.batch_size": 2, "trainer.epochs": 7.0}}
    (home / "kept" / "comparison.json").write_text(json.dumps(head))
    words = ["compare", "--recipe", "auto", "--arms", "epochs", "--eval", "", "--seeds", "1", "--out", "kept"]
    assert mimcl(monkeypatch, home, *words, "--dry-run") == 0
    printed = capfd.readouterr()
    assert "recipe auto: cifar_tiny, as when kept was started" in printed.err
    assert "train --recipe cifar_tiny --set report=false --set data.batch_size=2 --epochs 7.0" in printed.out


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_runs_of_few_steps_have_a_learning_rate_above_0(home, monkeypatch, steps):
    words = ["--recipe", "cpu_small", "--batch-size", "4", "--epochs", str(4 * steps / IMAGES), *SMALL]
    assert mimcl(monkeypatch, home, "train", *words, "--out", f"few-{steps}") == 0
    lines = map(json.loads, (home / f"few-{steps}" / "metrics.jsonl").read_text().splitlines())
    rates = [line["lr"] for line in lines if "step" in line]
    assert len(rates) == steps
    assert min(rates) > 0
