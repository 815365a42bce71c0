"""`mimcl compare`: real runs of two arms and two seeds, interrupted and resumed; checks before running; dry runs."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.images import write_train_val
from helpers.small_runs import FEW_PATCHES, metrics, weights
from helpers.typed import error_line, mimcl

from mimcl.cli.compare import run_comparison
from mimcl.cli.compare.arms import arms
from mimcl.cli.compare.compare_config import CompareConfig
from mimcl.cli.compare.pilot import STEPS as STEPS_OF_PILOT
from mimcl.cli.compare.prepare import prepare
from mimcl.cli.config import parse_settings
from mimcl.cli.run.signals import StopSignals

pytestmark = pytest.mark.slow

ARMS, SEEDS = ("uniform", "proto"), 2
SETTINGS = (
    "data.batch_size=16",
    "data.image_size=32",
    "data.decoder=reference",
    "model.decoder_width=32",
    "model.decoder_depth=1",
    "trainer.precision=float32",
    "trainer.log_every_steps=1",
    FEW_PATCHES,
)
ASKED = (
    *("compare", "--recipe", "cpu_small", "--arms", ",".join(ARMS), "--seeds", str(SEEDS), "--epochs", "3.2"),
    *("--eval", ""),
    *(word for setting in SETTINGS for word in ("--set", setting)),
)
STEPS = 8  # 3.2 epochs of 40 images in batches of 16


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed images with a val split, and prototypes."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", {"ant": 20, "bee": 20}, {"ant": 4, "bee": 4})
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "prototypes", "build", "--features", "pixels", "--k", "3") == 0
    return folder


@pytest.fixture(scope="module")
def whole(home):
    """A comparison stopped by SIGTERM while its third run trained, then resumed; with its output."""
    command = [sys.executable, "-m", "mimcl.cli.main", *ASKED, "--out", "whole"]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, deadline = home / "whole" / "uniform-seed1.log", time.monotonic() + 200
    while time.monotonic() < deadline and not (log.exists() and "step 1/" in log.read_text()):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 75, out + err
    stopped = {path.parent.name: path.read_bytes() for path in (home / "whole").glob("*/metrics.jsonl")}
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=250, check=True)
    return home / "whole", stopped, err, done.stdout


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_finished_runs_are_not_repeated(whole):
    out, stopped, err, again = whole
    assert "mimcl compare --recipe cpu_small --arms" in err
    assert stopped.keys() == {"uniform-seed0", "proto-seed0", "uniform-seed1"}  # seed by seed
    assert "training uniform, seed 0" not in again
    assert "training proto, seed 0" not in again
    assert "training proto, seed 1 (4 of 4), 3.2 epochs: whole/proto-seed1.log" in again
    for name in ("uniform-seed0", "proto-seed0"):
        assert (out / name / "metrics.jsonl").read_bytes() == stopped[name]
        assert (out / f"{name}.log").read_text().count("run folder: ") == 1


def test_the_stopped_run_equals_an_uninterrupted_one(home, whole, monkeypatch):
    out, *_ = whole
    options = [word for setting in (*SETTINGS, "curriculum.uniform=replacement") for word in ("--set", setting)]
    flags = ["--recipe", "cpu_small", "--epochs", "3.2", "--seed", "1", "--out", "alone", "--set", "report=false"]
    assert mimcl(monkeypatch, home, "train", *flags, *options) == 0
    assert metrics(home / "alone") == metrics(out / "uniform-seed1")
    assert weights(home / "alone") == weights(out / "uniform-seed1")


def test_the_numbers_are_those_of_the_runs(whole):
    out, _, _, said = whole
    content = json.loads((out / "comparison.json").read_text())
    assert [(run["arm"], run["seed"]) for run in content["runs"]] == [(a, s) for s in range(SEEDS) for a in ARMS]
    losses = []
    for run in content["runs"]:
        last = [line for line in lines_of(out / f"{run['arm']}-seed{run['seed']}") if "step" in line][-1]
        assert (last["step"], run["draws"], run["loss"]) == (STEPS, 16 * STEPS, last["loss"])
        assert 0 < run["seconds"] < 100
        losses.append(run["loss"])
    uniform, proto = content["rows"]
    assert (uniform["arm"], proto["arm"]) == ARMS
    assert uniform["value"]["mean"] == pytest.approx((losses[0] + losses[2]) / 2)
    assert proto["difference"]["mean"] == pytest.approx((losses[1] + losses[3] - losses[0] - losses[2]) / 2)
    assert "against uniform" in said
    assert said.splitlines()[-1] == "wrote whole/comparison.json · report: whole/report.html"
    assert said.count("loss\n") == 1
    assert re.search(r"\(4 of 4\).*\n  about [\d.]+ s left for 1 run\n", said)
    assert {path.name for path in out.parent.iterdir()} <= {"images", "shards", "whole", "alone", "failing", "timed"}
    assert "uniform" in (out / "report.html").read_text()


@pytest.mark.exhaustive
def test_an_evaluation_may_be_added_later_and_is_not_repeated(home, whole, monkeypatch, capfd):
    out, *_ = whole
    asked = [*ASKED, "--out", "whole", "--seeds", "1", "--eval", "knn"]
    assert mimcl(monkeypatch, home, "eval", "knn", "whole/uniform-seed0", "--k", "5", "--no-cache") == 0
    capfd.readouterr()
    assert mimcl(monkeypatch, home, *asked) == 0
    said = capfd.readouterr().out
    assert "training " not in "".join(line for line in said.splitlines() if "seed" in line and ".log" in line)
    assert [line for line in said.splitlines() if "evaluating" in line] == [
        "evaluating uniform, seed 0 (1 of 2) with knn",
        "evaluating proto, seed 0 (2 of 2) with knn",
    ]
    assert mimcl(monkeypatch, home, *asked) == 0
    assert "evaluating" not in capfd.readouterr().out
    content = json.loads((out / "comparison.json").read_text())
    for run in content["runs"]:
        lines = [line for line in lines_of(out / f"{run['arm']}-seed0") if "evaluation" in line]
        (line,) = [line for line in lines if line["settings"]["k"] != 5]  # not the evaluation started by hand
        assert content["protocols"] == {"knn": {"settings": line["settings"], "index": line["index"]}}
        assert {q["name"]: q["value"] for q in run["qualities"]} == {n: line["values"][n] for n in ("nn", "knn")}
    assert [(row["arm"], row["quality"]["name"]) for row in content["rows"]] == [
        (arm, name) for name in ("nn", "knn") for arm in ARMS
    ]


def test_other_flags_are_refused_before_anything_runs(home, whole, monkeypatch, capfd):
    assert mimcl(monkeypatch, home, *ASKED, "--out", "whole", "--set", "optim.base_lr=0.5") == 2
    assert "whole/uniform-seed0" in capfd.readouterr().err
    assert mimcl(monkeypatch, home, *ASKED, "--out", "whole", "--epochs", "4") == 2
    assert "epochs is 4.0" in capfd.readouterr().err
    assert mimcl(monkeypatch, home, *ASKED, "--out", "whole", "--online-knn", "2") == 2
    complaint = capfd.readouterr().err
    assert "trainer.online_knn_epochs is 2.0 but the comparison in whole has 0.0; give another --out" in complaint


def test_a_run_that_fails_is_named_with_its_reason(home, monkeypatch, capfd):
    # Only training checks this: the batch size is not a multiple of the masker's group size, 32.
    asked = [word.replace("uniform,proto", "uniform+cl-mae") for word in ASKED]
    assert mimcl(monkeypatch, home, *asked, "--out", "failing") == 1
    complaint = capfd.readouterr().err
    assert complaint.startswith("mimcl: uniform+cl-mae-seed0: `mimcl train` failed with exit code 2")
    assert "group" in complaint
    assert "failing/uniform+cl-mae-seed0.log" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.exhaustive
def test_equal_time_measures_each_arm_once(home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    more = "trainer.epochs=3.2", "trainer.online_knn_epochs=1.0", "log.mlflow=sqlite:///mlflow.db"  # not for pilots
    settings = parse_settings([*SETTINGS, *more])
    config = CompareConfig("cpu_small", arms("uniform,proto"), 1, "time", settings, Path("timed"))
    Path("timed").mkdir()
    head = {"format": "mimcl-comparison/1", "recipe": "cpu_small", "budget": "time", "epochs": 3.2}
    head |= {"seconds_per_step": {"proto": 1.0}, "protocols": {}}
    Path("timed/comparison.json").write_text(json.dumps(head))
    trials, known = prepare(config)
    with StopSignals(pytest.fail) as signals:
        epochs = run_comparison._epochs(config, trials, known, signals)
    said = capfd.readouterr().out
    # Once for the page cache, and once to measure.
    assert said.index("warming up with uniform: timed/") < said.index("measuring uniform: timed/pilot/uniform.log")
    assert "measuring proto" not in said
    measured = json.loads(Path("timed/comparison.json").read_text())["seconds_per_step"]
    assert measured["proto"] == 1.0
    assert 0 < measured["uniform"] < 1
    assert epochs == {"uniform": 3.2, "proto": max(0.001, round(3.2 * measured["uniform"], 3))}
    log = Path("timed/pilot/uniform.log").read_text()
    assert log.count(f"step {STEPS_OF_PILOT}/{STEPS_OF_PILOT}") == 2
    assert "knn" not in log.replace("next: mimcl eval knn", "")
    assert not Path("mlflow.db").exists()
    assert not Path("timed/pilot/uniform").exists()


def test_a_dry_run_prints_the_commands_and_writes_nothing(home, monkeypatch, capfd):
    before = sorted(path.name for path in home.iterdir())
    asked = [*ASKED, "--dry-run", "--processes", "2", "--eval", "knn"]
    asked = [word.replace("uniform,proto", "epochs,anti+hpm") for word in asked]
    assert mimcl(monkeypatch, home, *asked) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * SEEDS
    train, evaluate = lines[2:4]
    assert " -m torch.distributed.run --standalone --nproc-per-node 2 -m mimcl.cli.main train --recipe" in train
    assert " --epochs 3.2 --data shards --seed 0 --set curriculum.name=anti --set masking.name=hard-patches" in train
    assert train.endswith("--out comparisons/cpu_small/anti+hpm-seed0 --resume")
    assert evaluate.endswith(
        "--nproc-per-node 2 -m mimcl.cli.main eval knn comparisons/cpu_small/anti+hpm-seed0 --data shards"
    )
    assert sorted(path.name for path in home.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--arms", "proto+hpn"], 2, "did you mean hpm?"),
        (["--recipe", "big"], 2, "'big'"),
        (["--budget", "money"], 2, "--budget"),
        (["--eval", "knn,guess"], 2, "--eval 'guess'"),
        (["--seeds", "0"], 2, "--seeds"),
        (["--set", "curriculum.name=none"], 2, "--set curriculum.name: arm uniform"),
        (["--set", "trainer.epochs=2"], 2, "--epochs"),
        (["--set", "optim.lr=2"], 2, "unknown key 'optim.lr'"),
        (["--data", "nowhere"], 1, "not a packed data set"),
        (["--set", "curriculum.prototypes=gone"], 2, "use --prototypes"),
        (["--prototypes", "gone"], 1, "mimcl prototypes build"),
        (["--out", "images"], 2, "images exists"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(home, monkeypatch, capfd, more, code, message):
    before = sorted(path.name for path in home.iterdir())
    assert mimcl(monkeypatch, home, *ASKED, *more) == code
    assert message in error_line(capfd.readouterr().err)
    assert sorted(path.name for path in home.iterdir()) == before
