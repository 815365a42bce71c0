"""The shell completes commands, options, choices and open lists; files where a path is expected."""

import os
import subprocess
import sys

import pytest


def complete(shell: str, *words: str, cwd=None) -> list[str]:
    environment = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": " ".join(words)},
        "fish": {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment |= {"_MIMCL_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-X", "importtime", "-m", "mimcl.cli.main"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=cwd)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "timm", "pyarrow"}  # or it would take seconds
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_choices(shell):
    found = " ".join(complete(shell, "mimcl", "train", "--curriculum", "pro" if shell == "bash" else "pr"))
    assert "proto" in found
    assert "anti" not in found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], ["train"]),
        (["eval", "l"], ["linear"]),
        (["train", "--temp"], ["--temp-schedule", "--temperature"]),
        (["plan", "--temp-schedule", "step", "--temp-schedule", "c"], ["cosine", "constant"]),
        (["train", "--set", "optim.b"], ["optim.base_lr=", "optim.betas="]),
        (["train", "--set", "masking.clock"], ["masking.clock=", "masking.clock=epoch", "masking.clock=step"]),
        (["train", "--allow-change", "in"], ["index", "init"]),
        (["eval", "finetune", "run", "--set", "mixing_g"], ["mixing_group=", "mixing_group=32"]),
        (["keys", "log"], ["log.wandb", "log.mlflow"]),
        (["compare", "--arms", "uniform,proto+hp"], ["uniform,proto+hpm"]),
        (["compare", "--eval", "knn,"], ["knn,linear", "knn,attentive", "knn,few-shot", "knn,rank"]),
        (["prototypes", "build", "--features", "p"], ["pixels"]),
        (["prototypes", "build", "--difficulty", ""], ["distance", "loss:"]),
        (["compare", "--arms", "proto+ba"], ["proto+balance"]),
        (["train", "--prototypes", ""], ["default", "dino"]),
        (["train", "--data", "elsewhere", "--prototypes", ""], [""]),
        (["inspect", ""], [""]),  # nothing: the shell completes files
        (["train", "--out", "ru"], [""]),
    ],
)
def test_what_bash_gets(tmp_path, words, found):
    for name in ("default", "dino"):
        (tmp_path / "shards" / "prototypes" / name).mkdir(parents=True)
        (tmp_path / "shards" / "prototypes" / name / "prototypes.json").touch()
    assert complete("bash", "mimcl", *words, cwd=tmp_path) == found
