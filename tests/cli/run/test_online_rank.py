"""`mimcl train --online-rank`: without labels, what `eval rank` finds, beside --online-knn, and after a resume."""

import json
from pathlib import Path

import pytest
from helpers.images import write_flat, write_train_val
from helpers.small_runs import assert_same_run, back_to, keep_every_checkpoint, metrics, weights
from helpers.typed import error_line, mimcl

from mimcl.cli.encoders import split_features
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.rank import rank
from mimcl.cli.report.compared import compared_charts, measurements
from mimcl.cli.report.read import read_run
from mimcl.cli.report.several import arms_of
from mimcl.cli.run import online_rank

pytestmark = pytest.mark.slow

SETTINGS = (
    *("data.image_size=32", "data.batch_size=8", "data.micro_batch_size=8", "data.decode_threads=1"),
    *("model.patch_size=16", "model.decoder_width=32", "model.decoder_depth=1", "trainer.precision=float32"),
    *("trainer.log_every_steps=2", "trainer.checkpoint_every_steps=5", "trainer.keep_last=9", "trainer.epochs=3"),
)
WORDS = ["train", "--recipe", "cpu_small", "--decoder", "reference", *(w for s in SETTINGS for w in ("--set", s))]
EVERY = ["--online-rank", "1"]  # of 5 steps, 15 in all
IMAGES = 20  # for LiDAR


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """40 images without labels and two runs: plain/ and watched/."""
    folder = tmp_path_factory.mktemp("home")
    write_flat(folder / "images", 40)
    with pytest.MonkeyPatch.context() as patch:
        keep_every_checkpoint(patch)
        patch.setattr(online_rank, "_FEWEST", IMAGES)
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, *WORDS, "--out", "plain") == 0
        assert mimcl(patch, folder, *WORDS, *EVERY, "--out", "watched") == 0
    return folder


def found_in(run: Path, name: str = "online_rank") -> list[dict]:
    return [line for line in metrics(run) if line.get("evaluation") == name]


def test_it_finds_what_eval_rank_finds_and_training_does_not_notice(home, monkeypatch):
    monkeypatch.chdir(home)
    lines = found_in(Path("watched"))
    assert [line["draw"] for line in lines] == [40, 80, 120]
    assert weights(Path("plain")) == weights(Path("watched"))
    assert metrics(Path("plain")) == [line for line in metrics(Path("watched")) if "evaluation" not in line]
    options = FeatureOptions(decoder="reference", cache=False)
    for line, step in zip(lines, (5, 10, 15), strict=True):
        saved = Path("watched/checkpoints") / f"{step:08d}"
        expected = rank(saved, images=IMAGES, views=10, options=options)
        assert line["values"] | {"dimensions": 192} == expected.trained
        assert line["settings"] | {"pool": "mean"} == expected.settings | {"train": 40}


def test_a_resumed_run_has_the_lines_of_an_unbroken_one(home, tmp_path, monkeypatch):
    monkeypatch.setattr(online_rank, "_FEWEST", IMAGES)
    # eval rank added lines to the run.
    untouched = "".join(
        line + "\n"
        for line in (home / "watched" / "metrics.jsonl").read_text().splitlines()
        if json.loads(line).get("evaluation") != "rank"
    )
    (home / "watched" / "metrics.jsonl").write_text(untouched)
    resumed = back_to(10, home / "watched", tmp_path / "resumed")
    assert mimcl(monkeypatch, home, "train", "--out", str(resumed), "--resume") == 0
    assert_same_run(home / "watched", resumed)
    assert [line["draw"] for line in found_in(resumed)] == [40, 80, 120]


def test_with_knn_beside_it_images_are_decoded_once(monkeypatch, tmp_path):
    passes, stream = [], split_features._stream

    def counting(index, decoder, sample_ids, views):
        passes.append((index.split, len(sample_ids), views))
        return stream(index, decoder, sample_ids, views)

    write_train_val(tmp_path / "images", {"ant": 20, "bee": 20}, {"ant": 6, "bee": 5})
    assert mimcl(monkeypatch, tmp_path, "shard", "images") == 0
    assert mimcl(monkeypatch, tmp_path, *WORDS, "--online-knn", "1", "--out", "knn") == 0
    monkeypatch.setattr(split_features, "_stream", counting)
    assert mimcl(monkeypatch, tmp_path, *WORDS, "--online-knn", "1", "--online-rank", "1.5", "--out", "both") == 0
    knn = [("train", 40, 0), ("val", 11, 0)]
    assert passes == [*knn, ("train", 40, 0), ("train", 40, 10), *knn, *knn, ("train", 40, 10)]  # draws 40, 64, 80, 120
    assert [line["draw"] for line in found_in(tmp_path / "both")] == [64, 120]
    assert found_in(tmp_path / "both", "online_knn") == found_in(tmp_path / "knn", "online_knn")


def test_the_report_of_several_runs_has_means_and_curves(home, tmp_path):
    runs = [read_run(home / "watched"), read_run(home / "watched")]
    arms = arms_of(runs, ["a", "b"])
    found = {m.title: m for m in measurements(arms) if m.title.startswith("online_rank")}
    assert found.keys() == {"online_rank: rank me", "online_rank: lidar"}
    last = found_in(home / "watched")[-1]["values"]
    for name, measurement in (("rank me", "rank_me"), ("lidar", "lidar")):
        assert not found[f"online_rank: {name}"].is_share
        assert found[f"online_rank: {name}"].rows[0].values == [last[measurement]]
    charts = [chart for chart in compared_charts(arms) if "dimensions" in chart.title]
    assert [(chart.title, chart.x_kind, chart.y_format) for chart in charts] == [
        (f"{name}, dimensions", kind, "number") for name in ("RankMe", "LiDAR") for kind in ("samples", "time")
    ]
    assert charts[0].x == [40, 80, 120]


def test_what_cannot_be_measured_is_refused_before_the_run_begins(monkeypatch, tmp_path, capfd):
    write_flat(tmp_path / "images", 1)
    assert mimcl(monkeypatch, tmp_path, "shard", "images") == 0
    capfd.readouterr()
    words = [*WORDS, "--set", "data.batch_size=1", "--set", "data.micro_batch_size=1", *EVERY]
    assert mimcl(monkeypatch, tmp_path, *words, "--out", "run") == 1
    complaint = error_line(capfd.readouterr().err)
    assert complaint.endswith("a single train image; LiDAR needs 2, or leave out --online-rank")
    assert not (tmp_path / "run").exists()
    assert mimcl(monkeypatch, tmp_path, *WORDS, "--online-rank", "-1", "--out", "run") == 2
    assert "trainer.online_rank_epochs is -1.0; it must not be negative" in capfd.readouterr().err
