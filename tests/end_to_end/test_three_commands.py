"""The README's three commands as real processes on real files; resume; bad input."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.images import write_classes
from helpers.typed import error_line

from mimcl.cli.main import main

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).parent / "mimcl"
IMAGES = 30
STEPS = 24  # of 64 draws: 50 epochs


def mimcl(folder: Path, *arguments: str, check: int = 0) -> subprocess.CompletedProcess:
    """Run the command; HF_HUB_OFFLINE avoids a download, so that auto uses sift."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An otherwise empty folder in which the three commands ran, and their outputs."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "imagenet" / "train", {"ant": IMAGES // 3, "bee": IMAGES // 3, "cow": IMAGES // 3})
    outputs = [
        mimcl(folder, "shard", "imagenet/"),
        mimcl(folder, "prototypes", "build"),
        mimcl(folder, "train", "--recipe", "cpu_small", "--curriculum", "proto", "--temp-schedule", "cosine"),
    ]
    return folder, [done.stdout for done in outputs]


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_files_are_the_documented_ones(home):
    folder, _ = home
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("imagenet/") and "tfevents" not in name}
    shards = {"dataset.json", "train-000000.tar", "train-000000.idx", "train.arrow", "rejected.jsonl"}
    prototypes = {"prototypes.json", "centroids.npy", "train.arrow", "gallery.png"}
    run = {"config.yaml", "metrics.jsonl", "draw_counts.npy", "checkpoints/latest", "report.html"}
    checkpoint = {"weights.safetensors", "state.pt", "meta.json"}
    assert found == {
        *(f"shards/{name}" for name in shards),
        *(f"shards/prototypes/default/{name}" for name in prototypes),
        *(f"runs/cpu_small-proto-random/{name}" for name in run),
        *(f"runs/cpu_small-proto-random/checkpoints/{STEPS:08d}/{name}" for name in checkpoint),
    }


def test_the_output_reports_each_stage(home):
    _, (packed, built, trained) = home
    assert "30 images, 3 classes" in packed
    assert "sift (auto" in built
    assert "Davies-Bouldin" in built
    assert "30 images" in built
    assert "cpu_small" in trained
    assert f"step 1/{STEPS}" in trained
    for figure in ("loss", "lr", "img/s", "data-wait", "tau", "r 0.1"):
        assert figure in trained
    assert trained.splitlines()[-1] == "runs/cpu_small-proto-random"


def test_the_curriculum_is_in_the_metrics(home):
    folder, _ = home
    lines = lines_of(folder / "runs" / "cpu_small-proto-random")
    steps, windows = ([line for line in lines if kind in line] for kind in ("step", "window"))
    assert steps[0]["step"] == 1
    assert steps[-1]["step"] == STEPS
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert [window["window"] for window in windows] == list(range(STEPS // 4))
    fractions = [window["effective_fraction"] for window in windows]
    assert fractions == sorted(fractions)
    assert fractions[0] == pytest.approx(0.15, abs=1e-4)
    assert fractions[-1] > 0.5
    assert windows[0]["distance_q50"] < windows[-1]["distance_q50"]
    assert windows[-1]["coverage"] == 1
    counts = np.load(folder / "runs" / "cpu_small-proto-random" / "draw_counts.npy", allow_pickle=False)
    assert counts.sum() == STEPS * 64
    assert windows[-1]["max_repeats"] == counts.max()


def test_the_resolved_configuration_is_saved(home):
    folder, _ = home
    config = yaml.safe_load((folder / "runs" / "cpu_small-proto-random" / "config.yaml").read_text())
    assert config["recipe"] == "cpu_small"
    assert config["curriculum"]["window"] == 256
    assert config["curriculum"]["temp_schedule"] == "cosine"
    assert config["trainer"]["precision"] in ("bfloat16", "float32")
    assert config["data"]["decoder"] in ("dali-cpu", "reference")


def weights(run: Path) -> str:
    name = (run / "checkpoints" / "latest").read_text().strip()
    return hashlib.sha256((run / "checkpoints" / name / "weights.safetensors").read_bytes()).hexdigest()


@pytest.mark.exhaustive
def test_a_killed_run_resumes_to_the_same_weights(home):
    folder, _ = home
    options = ["--recipe", "cpu_small", "--curriculum", "proto", "--epochs", "20", "--decoder", "reference"]
    for setting in (
        "data.batch_size=16",
        "data.image_size=32",
        "trainer.checkpoint_every_steps=8",
        "trainer.log_every_steps=5",
    ):
        options += ["--set", setting]
    mimcl(folder, "train", *options, "--out", "whole")
    process = subprocess.Popen(
        [SCRIPT, "train", *options, "--out", "broken"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / "broken" / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (folder / "broken" / "checkpoints" / "latest").read_text().strip() < "00000038"
    mimcl(folder, "train", "--out", "broken", "--resume")
    assert weights(folder / "broken") == weights(folder / "whole")
    for name in ("draw_counts.npy", "config.yaml"):
        assert (folder / "broken" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    drop = ("images_per_second", "data_wait")
    whole, broken = (
        [{k: v for k, v in line.items() if k not in drop} for line in lines_of(folder / run)]
        for run in ("whole", "broken")
    )
    assert broken == whole
    # A finished run that is resumed has nothing left to do.
    mimcl(folder, "train", "--out", "broken", "--resume")
    assert weights(folder / "broken") == weights(folder / "whole")


def test_the_run_gives_features_for_new_prototypes(home):
    folder, _ = home
    run = "runs/cpu_small-proto-random"
    done = mimcl(folder, "prototypes", "build", "--features", f"mae:{run}", "--name", "own", "--k", "4")
    assert f"features: mae:{run}" in done.stdout
    info = json.loads((folder / "shards" / "prototypes" / "own" / "prototypes.json").read_text())
    assert (info["k"], info["samples"]) == (4, IMAGES)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shard", "nowhere"], 1, "nowhere"),
        (["shard", "imagenet", "--short-side", "8"], 1, "shards"),
        (["shard", "imagenet", "--out", "imagenet/shards"], 1, "imagenet/shards"),
        (["shard"], 2, "SRC"),
        (["shard", "imagenet", "--shard-mb", "0"], 2, "--shard-mb"),
        (["prototypes", "build"], 1, "--overwrite"),
        (["prototypes", "build", "--name", "x", "--features", "magic"], 2, "magic"),
        (["prototypes", "build", "--name", "x", "--k", "none"], 2, "--k"),
        (["prototypes", "build", "--name", "x", "--k", "16"], 1, "30"),
        (["prototypes", "build", "--name", "../x"], 2, "../x"),
        (["prototypes", "build", "--data", "imagenet"], 1, "imagenet"),
        (["train", "--data", "nowhere"], 1, "mimcl shard"),
        (["train", "--curriculum", "easy"], 2, "anti"),
        (["train", "--curriculum", "proto", "--set", "curriculum.prototypes=gone"], 1, "mimcl prototypes build"),
        (["train", "--set", "optim.lr=1"], 2, "optim.lr"),
        (["train", "--curriculum", "proto", "--temperature", "0.3"], 2, "--temp-schedule constant"),
        (["train", "--recipe", "big"], 2, "big"),
        (["train", "--out", "runs/cpu_small-proto-random"], 2, "--resume"),
        (["train", "--resume"], 2, "--out"),
        (["train", "--decoder", "dali-gpu"], 1, "CUDA"),
        (["train", "--recipe", "cpu_small", "--set", "data.image_size=60"], 2, "model.patch_size"),
        (["train", "--wrong"], 2, "--wrong"),
        (["trian"], 2, "trian"),
    ],
)
def test_bad_input_is_one_line_with_the_right_exit_code(home, arguments, code, message, monkeypatch, capfd):
    folder, _ = home
    before = sorted(str(path) for path in folder.rglob("*"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mimcl", *arguments])
    with pytest.raises(SystemExit) as stopped:  # in this process: starting one costs seconds
        main()
    complaint = error_line(capfd.readouterr().err)
    assert stopped.value.code == code
    assert complaint.startswith("mimcl: ")
    assert message in complaint
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_debug_shows_the_traceback(home):
    done = mimcl(home[0], "shard", "nowhere", "--debug", check=1)
    assert "Traceback" in done.stderr


def test_a_prototype_set_of_another_index_is_refused(home, tmp_path):
    folder, _ = home
    write_classes(tmp_path / "src", {"a": 3})
    mimcl(folder, "shard", str(tmp_path / "src"), "--out", str(tmp_path / "other"))
    (folder / "shards" / "prototypes").rename(tmp_path / "other" / "prototypes")
    try:
        done = mimcl(folder, "train", "--data", str(tmp_path / "other"), "--curriculum", "proto", check=1)
        assert len(done.stderr.splitlines()) == 1
        assert str(tmp_path / "other") in done.stderr
    finally:
        (tmp_path / "other" / "prototypes").rename(folder / "shards" / "prototypes")


@pytest.mark.exhaustive
def test_a_damaged_sample_is_named_and_stops_no_prototypes(home, tmp_path):
    folder, _ = home
    write_classes(tmp_path / "src", {"a": 8})
    mimcl(folder, "shard", str(tmp_path / "src"), "--out", str(tmp_path / "shards"))
    shard = tmp_path / "shards" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[512 + 100] ^= 1
    shard.write_bytes(content)
    done = mimcl(folder, "prototypes", "build", "--data", str(tmp_path / "shards"))
    assert "a/00000.jpg (sample 000000000 of train-000000.tar) is bad" in done.stderr
    info = json.loads((tmp_path / "shards" / "prototypes" / "default" / "prototypes.json").read_text())
    assert info["bad"] == [{"key": "000000000", "path": "a/00000.jpg"}]
