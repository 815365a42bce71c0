"""`mimcl train --online-knn`: what it finds, that training does not notice, and that a resume repeats nothing."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import torchruns
from helpers.images import write_flat, write_train_val
from helpers.small_runs import assert_same_run, back_to, keep_every_checkpoint, metrics, weights
from helpers.typed import error_line, mimcl

from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.knn import knn
from mimcl.cli.report.read import read_run
from mimcl.cli.run.online import OnlineEvaluation
from mimcl.model.steps import Step
from mimcl.model.trainer import Trainer
from mimcl.pipeline.decode import ReferenceDecoder

pytestmark = pytest.mark.slow

TRAIN, VAL = {"ant": 14, "bee": 14, "cow": 12}, {"ant": 6, "bee": 5, "cow": 5}
SETTINGS = (
    *("data.image_size=32", "data.batch_size=8", "data.micro_batch_size=8", "data.decode_threads=1"),
    *("model.patch_size=16", "model.decoder_width=32", "model.decoder_depth=1", "trainer.precision=float32"),
    *("trainer.log_every_steps=2", "trainer.checkpoint_every_steps=5", "trainer.keep_last=9", "trainer.epochs=3"),
)
WORDS = ["train", "--recipe", "cpu_small", "--decoder", "reference", *(w for s in SETTINGS for w in ("--set", s))]
EVERY = ["--online-knn", "1"]  # of 5 steps, 15 in all


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Packed images and two runs: plain/ and watched/."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", TRAIN, VAL)
    with pytest.MonkeyPatch.context() as patch:
        keep_every_checkpoint(patch)
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, *WORDS, "--out", "plain") == 0
        assert mimcl(patch, folder, *WORDS, *EVERY, "--out", "watched") == 0
        shutil.copytree(folder / "watched", folder / "untouched")  # by what tests write into the other
    return folder


def found_in(run: Path) -> list[dict]:
    return [line for line in metrics(run) if "evaluation" in line]


def test_it_finds_what_eval_knn_finds_at_the_same_checkpoints(home, monkeypatch):
    monkeypatch.chdir(home)
    lines = found_in(Path("watched"))
    assert [line["draw"] for line in lines] == [40, 80, 120]
    assert {line["evaluation"] for line in lines} == {"online_knn"}
    for line, step in zip(lines, (5, 10, 15), strict=True):
        saved = Path("watched/checkpoints") / f"{step:08d}"
        assert line["values"] == knn(saved, options=FeatureOptions(decoder="reference", cache=False)).trained


def test_training_does_not_notice(home):
    assert weights(home / "plain") == weights(home / "watched")
    plain, watched = metrics(home / "plain"), metrics(home / "untouched")
    assert plain == [line for line in watched if "evaluation" not in line]
    assert len(plain) == len(watched) - 3


def test_the_decoder_of_the_training_ends_before_it_decodes(home, monkeypatch):
    running, found, decode = [], [], ReferenceDecoder.__call__

    def counted(self, batches):
        running.append(self)
        found.append(len(running))
        try:
            yield from decode(self, batches)
        finally:
            running.remove(self)

    monkeypatch.setattr(ReferenceDecoder, "__call__", counted)
    assert mimcl(monkeypatch, home, *WORDS, *EVERY, "--out", "counted") == 0
    assert len(found) > 6  # of three evaluations, two splits each
    assert set(found) == {1}
    assert weights(home / "counted") == weights(home / "plain")


def test_a_resumed_run_has_the_lines_of_an_unbroken_one(home, tmp_path, monkeypatch):
    # Step 10 was saved right after an evaluation: it is not lost, and not done again.
    resumed = back_to(10, home / "untouched", tmp_path / "resumed")
    assert mimcl(monkeypatch, home, "train", "--out", str(resumed), "--resume") == 0
    assert_same_run(home / "untouched", resumed)
    assert [line["draw"] for line in found_in(resumed)] == [40, 80, 120]


def test_who_is_asked_to_stop_does_not_begin_to_look_up(home, monkeypatch):
    steps = Trainer.steps

    def asking(self, *arguments):
        for step in steps(self, *arguments):
            yield step
            if step.number == 4:  # which the next step tells all ranks
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "steps", asking)
        assert mimcl(monkeypatch, home, *WORDS, *EVERY, "--out", "stopped") == 75
    assert found_in(home / "stopped") == []
    assert (home / "stopped" / "checkpoints" / "latest").read_text() == "00000005\n"
    assert mimcl(monkeypatch, home, "train", "--out", "stopped", "--resume") == 0
    assert [line["draw"] for line in found_in(home / "stopped")] == [80, 120]


def test_two_processes_share_it(home):
    log = home / "log"
    words = [*WORDS, *EVERY, "--out", "shared"]
    code = f"from mimcl.cli.app import app; app({words!r})"
    process = torchruns.start(log, ["--nproc-per-node", "2"], [str(torchruns.BIN / "python"), "-c", code], home)
    try:
        assert process.wait(200) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    lines = found_in(home / "shared")
    assert [line["draw"] for line in lines] == [40, 80, 120]
    for line, alone in zip(lines, found_in(home / "watched"), strict=False):
        for name, share in line["values"].items():
            assert share == pytest.approx(alone["values"][name], abs=2 / 16)  # weights agree but for rounding


def test_when_measures_are_due():
    online = object.__new__(OnlineEvaluation)
    steps = [Step(number, 8 * number, []) for number in range(1, 13)]
    online._measures, online._batch_size, online._draws = [("rare", 25.0), ("often", 3.0)], 8, 96
    assert [step.position for step in steps if "rare" in online.due(step)] == [32, 56, 80, 96]
    assert all("often" in online.due(step) for step in steps)  # more often than steps
    online._measures = []
    assert not any(online.due(step) for step in steps)


def test_without_labels_the_run_does_not_begin(home, monkeypatch, tmp_path, capfd):
    write_flat(tmp_path / "images", 16)
    assert mimcl(monkeypatch, tmp_path, "shard", "images", "--holdout", "0.25") == 0
    capfd.readouterr()
    assert mimcl(monkeypatch, tmp_path, *WORDS, *EVERY, "--out", "run") == 1
    complaint = error_line(capfd.readouterr().err)
    assert "have no labels" in complaint
    assert complaint.endswith(", or leave out --online-knn")
    assert not (tmp_path / "run").exists()
    assert mimcl(monkeypatch, tmp_path, *WORDS, "--online-knn", "-1", "--out", "run") == 2
    assert "trainer.online_knn_epochs is -1.0; it must not be negative" in capfd.readouterr().err


def test_val_images_of_classes_without_train_images_are_left_out(home, monkeypatch, tmp_path, capfd):
    known = {"ant": VAL["ant"], "bee": VAL["bee"]}
    lines = {}
    for name, val in (("known", known), ("more", known | {"fox": 4, "gnu": 3})):
        write_train_val(tmp_path / f"src-{name}", TRAIN, val)
        assert mimcl(monkeypatch, tmp_path, "shard", f"src-{name}", "--out", name) == 0
        capfd.readouterr()
        assert mimcl(monkeypatch, tmp_path, *WORDS, "--data", name, *EVERY, "--out", f"run-{name}") == 0
        note = "skipped: 7 of 18 val images, of classes without train images: fox, gnu"
        assert capfd.readouterr().out.count(note) == (name == "more")
        lines[name] = found_in(tmp_path / f"run-{name}")
    assert [line.pop("settings") for line in lines["more"]] == 3 * [{"val": 11, "val_of_unseen_classes": 7}]
    assert lines["more"] == lines["known"]
    (key,) = {evaluation.key for evaluation in read_run(tmp_path / "run-more").evaluations}
    assert json.loads(key.settings)["val"] == 11


def test_without_a_val_image_of_a_train_class_the_run_does_not_begin(monkeypatch, tmp_path, capfd):
    write_train_val(tmp_path / "images", TRAIN, {"fox": 4, "gnu": 3})
    assert mimcl(monkeypatch, tmp_path, "shard", "images") == 0
    capfd.readouterr()
    assert mimcl(monkeypatch, tmp_path, *WORDS, *EVERY, "--out", "run") == 1
    line = error_line(capfd.readouterr().err)
    assert "no val image of shards has a class that train has (val: fox, gnu)" in line
    assert line.endswith(", or leave out --online-knn")
    assert not (tmp_path / "run").exists()


def test_it_reaches_tensorboard(home):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(home / "watched"))
    events.Reload()
    shown = events.Scalars("online_knn/nn")
    lines = [json.loads(line) for line in (home / "watched" / "metrics.jsonl").read_text().splitlines()]
    expected = [line["values"]["nn"] for line in lines if line.get("evaluation") == "online_knn"]
    assert [round(event.value, 5) for event in shown] == [round(value, 5) for value in expected]
    assert [event.step for event in shown] == [40, 80, 120]
