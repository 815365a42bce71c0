"""A command imports no library that it does not need: torch, timm and others take seconds."""

import json
import os
import subprocess
import sys

import pytest
from helpers.exhaustive import exhaustive
from helpers.images import write_classes, write_flat
from helpers.run_folders import step_line, write_run

from mimcl.cli.run.device import has_cuda
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow

# What one command imports, the ones after it count as well.
PROGRAM = """
import json, sys
commands = json.loads(sys.argv[1])
from mimcl.cli.main import main
for words in commands:
    sys.argv[1:] = words
    code = 0
    try: main()
    except SystemExit as stop: code = stop.code or 0
    print("LOADED", json.dumps([code, sorted(sys.modules)]), flush=True)
"""
FOR_TORCH = {"torch", "timm", "torchvision", "transformers"}
FOR_PAGES = {"matplotlib", "scipy", "jinja2"}
NOT_FOR_TRAINING = {"timm", "torchvision", "transformers", "torch._dynamo", "sympy", "wandb", "sklearn", *FOR_PAGES}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval knn learned --k 99", "--k 99 is more than the"),
        ("eval few-shot learned --shots 1 --shots 9", "--shots 9 is more than the"),
    ],
)
def test_more_train_images_than_there_are_is_refused_before_torch(trained, folder, command, message):
    ((code, loaded, printed),) = ended(folder, command)
    assert code == 1
    assert message in printed
    assert not loaded & FOR_TORCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images, shards with and without a val split, and a run with a checkpoint."""
    folder = tmp_path_factory.mktemp("light")
    write_classes(folder / "images", {"a": 3, "b": 3})
    write_flat(folder / "flat", 3)
    for source, shards in (("images", "shards"), ("flat", "unlabelled")):
        pack(image_folder(folder / source), folder / shards, PackConfig(), on_progress=lambda count: None)
    write_run(folder / "run", [step_line(1, 1.0), step_line(2, 0.5)], index="0" * 32)
    return folder


def ended(folder, *commands) -> list[tuple[int, set[str], str]]:
    """Run `mimcl` commands in one process; return of each the exit code, all imported modules, and its output."""
    words = json.dumps([command.split() for command in commands])
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # so that messages and output stay in order
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env=environment,
    )
    found, printed = [], []
    for line in done.stdout.splitlines(keepends=True):
        if line.startswith("LOADED "):
            code, loaded = json.loads(line.removeprefix("LOADED "))
            found.append((code, set(loaded), "".join(printed)))
            printed = []
        else:
            printed.append(line)
    assert len(found) == len(commands), done.stdout
    return found


REFUSED = [
    ("train --curriculum prot", "'prot' is not one of"),
    ("train --recipe nope", "'nope' is not one of"),
    ("train --config nope.yaml", "nope.yaml cannot be read"),
    ("train --set nope=1", "unknown key 'nope'"),
    ("train --set trainer.epochs=many", "trainer.epochs is 'many'; it must be a number"),
    ("train --epochs 0", "trainer.epochs is 0.0; it must be above 0"),
    ("train --data nope", "nope is not a packed data set"),
    ("train --recipe cpu_small --data nope", "nope is not a packed data set"),
    ("train --recipe cpu_small --curriculum proto", "no prototypes in shards/prototypes/default"),
    ("train --out run", "run exists"),
    ("train --out run --resume --seed 3", "seed is 3 but the run in run has 0"),
    ("train --resume", "--resume needs the run"),
    ("plan --data nope", "nope is not a packed data set"),
    ("plan --recipe cpu_small --curriculum proto", "no prototypes in shards/prototypes/default"),
    ("compare --recipe cpu_small --arms epochs,nope", "arm 'nope'"),
    ("compare --recipe cpu_small --arms epochs,proto --data nope", "nope is not a packed data set"),
    ("compare --recipe cpu_small --arms epochs,proto", "no prototypes in shards/prototypes/default"),
    ("prototypes build --data nope", "nope is not a packed data set"),
    ("prototypes build --k 5", "--k is 5, more than half of the 6 images"),
    ("prototypes build --k 3 --levels 2", "--k is 3, too few clusters for --levels 2"),
    ("prototypes build --difficulty loss:nope", "nope does not exist; give runs/NAME"),
    ("prototypes import nope.npy", "nope.npy cannot be read (No such file or directory)"),
    ("prototypes import run", "run must end in .npy, .csv or .parquet"),
    ("prototypes import nope.csv --data nope", "nope is not a packed data set"),
    ("train --recipe cpu_small --balance", "--balance needs --curriculum proto or anti"),
    ("plan --recipe cpu_small --balance", "--balance needs --curriculum proto or anti"),
    ("compare --recipe cpu_small --arms epochs,uniform+balance", "balance has no effect"),
    ("eval knn nope", "nope does not exist; give runs/NAME"),
    ("eval linear run --data nope", "nope is not a packed data set"),
    ("eval few-shot run", "shards has no val split"),
    ("eval attentive run", "shards has no val split"),
    ("eval rank nope", "nope does not exist; give runs/NAME"),
    ("eval rank run --split val", "shards has no val split; it has train"),
    ("eval rank run --views 1", "--views"),
    ("eval finetune run --data unlabelled", "unlabelled has no val split"),
    ("eval finetune run --set mixupp=0", "unknown key 'mixupp'; did you mean mixup?"),
    ("export nope --out out", "nope does not exist; give runs/NAME"),
    ("export shards --out out", "shards is neither a checkpoint nor a run"),
    ("masks nope", "nope does not exist; give runs/NAME"),
    ("masks run --data nope", "nope is not a packed data set"),
    ("report images", "images is not a run (no config.yaml)"),
    ("report run nope", "nope is not a run (no config.yaml)"),
    ("inspect images", "images is not a mimcl folder"),
    ("verify nope", "nope is not a packed data set"),
    ("doctor --data nope", "nope is not a packed data set"),
]


@pytest.fixture(scope="module")
def refused(folder):
    """What became of each of the refused commands."""
    commands = [command for command, _ in REFUSED]
    return dict(zip(commands, ended(folder, *commands), strict=True))


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_a_refusal_imports_no_torch_and_nothing_for_pages(refused, command, message):
    code, loaded, printed = refused[command]
    assert code in (1, 2)
    assert message in " ".join(printed.split())
    assert not loaded & (FOR_TORCH | FOR_PAGES)


@pytest.mark.parametrize(
    "command",
    [
        "plan --recipe cpu_small --out plan.png",
        "compare --recipe cpu_small --arms epochs,uniform --eval= --dry-run",
        "inspect shards",
        "verify shards",
        "shard flat --out packed --overwrite",
        pytest.param("inspect run", marks=pytest.mark.skipif(has_cuda(), reason="asks the GPU for its precision")),
        pytest.param(
            "report run --no-pictures --out report.html",
            marks=pytest.mark.skipif(has_cuda(), reason="asks the GPU for its precision"),
        ),
    ],
)
def test_a_command_without_a_model_imports_no_torch(folder, command):
    ((code, loaded, printed),) = ended(folder, command)
    assert code == 0, printed
    assert not loaded & FOR_TORCH


@pytest.fixture(scope="module")
def trained(folder):
    """Shards with labels and a val split, and the runs of both maskers that learn."""
    assert ended(folder, "shard images --holdout 0.34 --out labelled")[0][0] == 0
    small = "--recipe cpu_small --data labelled --image-size 32 --batch-size 4 --epochs 2 --set data.micro_batch_size=4"
    end = "--set learned_masking.group_size=4 --set report=false --no-compile"
    return {
        name: ended(folder, f"train {small} {end} --masking {name} --out {name}")[0]
        for name in ("learned", "hard-patches")
    }


@pytest.mark.parametrize("name", ["learned", "hard-patches"])
def test_a_training_imports_neither_timm_nor_the_compiler(trained, name):
    code, loaded, printed = trained[name]
    assert code == 0, printed
    assert "step 2/" in printed
    assert "torch" in loaded
    assert not loaded & NOT_FOR_TRAINING


@pytest.mark.parametrize(
    "command", ["eval linear --epochs 2", "masks", *exhaustive("eval knn --k 1", "eval few-shot --shots 1")]
)
def test_results_of_a_run_import_no_timm(trained, folder, command):
    words = command.split()
    ((code, loaded, printed),) = ended(folder, " ".join([*words[:2], "learned", *words[2:]]))
    assert code == 0, printed
    assert not loaded & {"timm", "torchvision", "transformers"}
