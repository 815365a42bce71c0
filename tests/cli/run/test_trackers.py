"""`mimcl train --wandb --mlflow` with the real libraries: one run there, over a resume and an evaluation."""

import importlib.util
import json

import pytest
from helpers.images import write_train_val
from helpers.small_runs import FEW_PATCHES, back_to, metrics, train
from helpers.tracker_stores import closed_port, mlflow_runs, wandb_runs
from helpers.typed import mimcl

from mimcl.cli.config import Config, flatten, override, read_yaml
from mimcl.cli.errors import ConfigError
from mimcl.cli.run.trackers import existing_trackers, require_libraries
from mimcl.model.trackers import LogConfig, Tracker
from mimcl.pipeline.files import DataError

STEPS, SAVED = 6, 4
URI = "sqlite:///mlflow.db"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed images with a val split, and prototypes."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", {"ant": 20, "bee": 20}, {"ant": 4, "bee": 4})
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "prototypes", "build", "--features", "pixels", "--k", "3") == 0
    return folder


def arguments(out, *more):
    return [*train(out, FEW_PATCHES, f"trainer.checkpoint_every_steps={SAVED}", *more, steps=STEPS)]


def points(lines, key):
    return [(line["draw"], line[key]) for line in lines if key in line]


@pytest.mark.slow
def test_one_run_over_a_resume_and_an_evaluation(home, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(Tracker, "close_timeout_s", 60.0)
    assert mimcl(monkeypatch, home, *arguments("run"), "--wandb", "trial", "--mlflow", URI) == 0
    again = back_to(SAVED, home / "run", home / "again")
    assert mimcl(monkeypatch, home, "train", "--out", "again", "--resume") == 0
    assert mimcl(monkeypatch, home, "eval", "knn", "again", "--decoder", "reference") == 0
    assert "mimcl:" not in capfd.readouterr().err
    known = json.loads((again / "trackers.json").read_text())
    assert known == {"id": known["id"], "wandb": "trial", "mlflow": URI}

    lines = metrics(again)
    evaluated = lines.pop()
    assert evaluated["evaluation"] == "knn"
    params = flatten(override(Config(), read_yaml(again / "config.yaml")))
    (run,) = mlflow_runs(URI)
    assert (run["id"], run["name"], run["status"]) == (known["id"], "run", "FINISHED")
    assert run["params"] == {key: str(list(v) if isinstance(v, tuple) else v) for key, v in params.items()}
    assert run["metrics"]["loss"] == points(lines, "loss")
    assert run["metrics"]["coverage"] == points(lines, "coverage")
    assert run["metrics"]["knn/nn"] == [(evaluated["draw"], evaluated["values"]["nn"])]

    first, second, judged = [*wandb_runs(home / "run"), *wandb_runs(again)][-3:]
    assert {r["id"] for r in (first, second, judged)} == {known["id"]}
    assert first["config"].items() >= {k: list(v) if isinstance(v, tuple) else v for k, v in params.items()}.items()
    assert points(first["history"], "loss") == points(lines, "loss")
    assert points(second["history"], "loss") == points(lines, "loss")[SAVED:]
    assert points(judged["history"], "knn/nn") == [(evaluated["draw"], evaluated["values"]["nn"])]


@pytest.mark.slow
def test_a_dead_server_changes_nothing_and_a_resume_may_use_another_tracker(home, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = closed_port()
    assert mimcl(monkeypatch, home, *arguments("plain", "trainer.checkpoint_every_steps=99")) == 0
    assert not (home / "plain" / "trackers.json").exists()
    capfd.readouterr()
    assert mimcl(monkeypatch, home, *arguments("alone", "trainer.checkpoint_every_steps=99"), "--mlflow", address) == 0
    (complaint,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mimcl:")]
    assert "mlflow" in complaint
    assert address.removeprefix("http://").partition(":")[0] in complaint
    assert metrics(home / "alone") == metrics(home / "plain")
    before = json.loads((home / "alone" / "trackers.json").read_text())
    # A resume may do without a tracker, or use another one.
    assert mimcl(monkeypatch, home, "train", "--out", "alone", "--resume", "--set", "log.mlflow=null") == 0
    assert json.loads((home / "alone" / "trackers.json").read_text()) == before
    assert "mimcl:" not in capfd.readouterr().err


def test_a_missing_library_is_an_error_before_training(home, monkeypatch, capfd):
    (home / "wandb").mkdir(exist_ok=True)  # a folder of that name is not the library
    real = importlib.util.find_spec
    nowhere = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: nowhere if name == "wandb" else real(name))
    assert mimcl(monkeypatch, home, *arguments("never"), "--wandb", "trial") == 2
    (complaint,) = capfd.readouterr().err.splitlines()
    assert complaint.startswith("mimcl: --wandb ")
    assert "mimcl[wandb]" in complaint
    assert not (home / "never").exists()


def test_a_password_is_not_written_into_the_run_folder():
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        require_libraries(LogConfig(mlflow="https://me:secret@host:5000"))
    require_libraries(LogConfig(mlflow="https://host:5000"))


@pytest.mark.parametrize("content", ["", "[]", '{"wandb": "trial"}', '{"id": 3}', "\xff{"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, content):
    (tmp_path / "trackers.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"trackers.json is damaged"):
        existing_trackers(tmp_path, pytest.fail)
