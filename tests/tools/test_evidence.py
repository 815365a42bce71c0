"""tools/evidence.py: a rehearsal on a machine without mimcl, DALI and faiss: killed, continued, and out of time."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.bare_machine import bare_environment
from helpers.images import write_train_val

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "evidence.py"
SETTINGS = (
    *("data.image_size=16", "data.batch_size=16", "model.patch_size=8", "model.decoder_width=32"),
    *("model.decoder_depth=1", "trainer.precision=float32", "trainer.log_every_steps=1"),
)

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The file that prepare writes, of generated images."""
    folder = tmp_path_factory.mktemp("data")
    write_train_val(folder / "images", {"ant": 20, "bee": 20}, {"ant": 5, "bee": 5})
    words = ["prepare", "images", "--out", "out/data.tar.xz", "--features", "pixels", "--k", "3"]
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"wrote out/data.tar.xz: 0\.\d MB\n", done.stdout)
    return folder / "out" / "data.tar.xz"


def evidence(data, out, folder, *words) -> subprocess.Popen:
    """Start a run in `out`, on a machine without mimcl and what a GPU machine lacks."""
    site = folder / "site"
    bare = bare_environment(site, "nvidia.dali") if not site.exists() else os.environ | {"PYTHONPATH": str(site)}
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, str(SCRIPT), "run", str(data), "--out", str(out), *settings, *words]
    return subprocess.Popen(command, env=bare, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def results(out) -> list[dict]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_killed_run_keeps_its_results_and_the_same_command_continues(data, tmp_path):
    out = tmp_path / "out"
    words = ("--epochs", "20", "--most-seeds", "1", "--seconds", "500")
    process = evidence(data, out, tmp_path, *words)
    training = out / "comparison/proto-seed0/metrics.jsonl"
    while not (len(results(out)) == 2 and training.exists()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    plan, subset = results(out)
    assert (plan["device"], plan["epochs"], plan["samples"]) == ("CPU", 20, 40)
    assert plan["step_ms"] > 0
    assert (subset["arm"], subset["seed"], subset["draws"]) == ("subset", 0, 800)
    assert {"nn", "knn", "loss", "seconds"} < subset.keys()
    assert "subset" in (out / "table.txt").read_text()

    process = evidence(data, out, tmp_path, *words[2:])
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, printed + errors
    head, first, *others = results(out)
    assert (head, first) == (plan, subset)
    names = [(found["arm"], found["seed"]) for found in others]
    assert names == [("proto", 0), ("epochs", 0)]
    assert len({found["draws"] for found in results(out)[1:]}) == 1
    table = (out / "table.txt").read_text()
    assert printed.rstrip().endswith(f"results: {out / 'results.jsonl'}")
    assert table in printed
    for arm in ("subset", "proto", "epochs"):
        assert re.search(rf"^  {arm} +1 +[\d.]+", table, re.MULTILINE), table
    assert "against subset" in table

    process = evidence(data, out, tmp_path, "--epochs", "7")
    assert "--epochs is 7 but the runs in" in process.communicate()[1]
    assert process.returncode == 1


def test_it_ends_when_the_time_is_up_having_planned_as_many_epochs_as_fit(data, tmp_path):
    out = tmp_path / "out"
    process = evidence(data, out, tmp_path, "--seconds", "45", "--seeds", "1")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    assert "stopped and saved; the same command continues" in printed
    planned = json.loads((out / "plan.json").read_text()) if (out / "plan.json").exists() else {"epochs": 0.1}
    assert planned["epochs"] >= 0.1  # on a machine so slow that nothing fits, the least


def test_what_cannot_be_used_is_one_line(tmp_path, data):
    (tmp_path / "not").write_text("an archive")
    process = evidence(tmp_path / "not", tmp_path / "out", tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith("evidence: ")
    assert errors.count("\n") == 1
