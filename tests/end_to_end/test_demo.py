"""`mimcl demo`, smaller: the same flow as the command, on real files, with the real parts."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.typed import mimcl
from PIL import Image

from mimcl.cli.demo.demo import demo
from mimcl.cli.demo.demo_config import ARMS, CONTROL, DemoConfig
from mimcl.cli.demo.demo_curves import drawn_atypicality
from mimcl.cli.demo.demo_images import atypicality_of
from mimcl.cli.demo.demo_table import print_files, print_table
from mimcl.cli.report.read import read_run
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow

SMALL = DemoConfig(train=160, val=80, epochs=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, which val images each encoder classifies correctly)."""
    out = tmp_path_factory.mktemp("home") / "demo"
    return out, demo(out, SMALL)


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_flow_leaves_images_shards_runs_and_pages(made):
    out, _ = made
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["demo.png", "images", "report.html", "shards", *ARMS, *(f"{arm}.log" for arm in ARMS)]
    )
    assert len(list((out / "images/train").rglob("*.jpg"))) == SMALL.train
    assert len(list((out / "images/val").rglob("*.jpg"))) == SMALL.val
    assert (out / "shards/prototypes/default/gallery.png").is_file()
    for arm in ARMS:
        assert "untrained" in (out / arm / "report.html").read_text()
        assert arm in (out / "report.html").read_text()


def test_both_runs_begin_with_the_same_weights_and_only_their_draws_differ(made):
    out, _ = made
    control, proto = (read_run(out / arm) for arm in (CONTROL, "proto"))
    differing = {key for key in proto.config if proto.config[key] != control.config[key]}
    assert differing == {"curriculum.name"}
    untrained = [
        line.values["untrained_nn"]
        for run in (control, proto)
        for line in run.evaluations
        if "nn" in line.values and "untrained_nn" in line.values
    ]
    assert len(untrained) == 2
    assert untrained[0] == untrained[1]
    fractions = proto.windows["effective_fraction"]
    assert fractions[0] < 0.2
    assert list(fractions) == sorted(fractions)


def test_correct_images_are_those_of_the_recorded_evaluation(made):
    out, correct = made
    assert list(correct) == ["untrained", *ARMS]
    for arm in ARMS:
        (line,) = [line for line in lines_of(out / arm) if line.get("evaluation") == "knn"]
        assert line["values"]["nn"] == np.mean(correct[arm])
        assert line["values"]["untrained_nn"] == np.mean(correct["untrained"])
        assert len(correct[arm]) == SMALL.val


def test_the_drawn_atypicality_is_that_of_the_draws(made):
    out, _ = made
    index = ShardIndex.load(out / "shards")
    for arm in ARMS:
        record = read_run(out / arm)
        draws, means = drawn_atypicality(record, index)
        lengths = np.diff([*draws, record.draws])
        expected = np.average(atypicality_of(index), weights=record.counts)
        assert np.average(means, weights=lengths) == pytest.approx(expected)


def test_the_picture_shows_images_curves_and_reconstructions(made):
    with Image.open(made[0] / "demo.png") as picture:
        picture.load()
        assert picture.width == 1350
        parts = [picture.convert("RGB").crop((0, top, 1350, top + 200)) for top in (60, 350, picture.height - 300)]
    for part in parts:
        assert len(set(part.get_flattened_data())) > 60
    assert (made[0] / "demo.png").stat().st_size < 230_000


def test_the_output_names_files_that_exist_and_commands_that_run(made, capsys, monkeypatch):
    out, correct = made
    print_table(correct, SMALL, out / "shards")
    print_files(out, 123.0)
    lines = capsys.readouterr().out.splitlines()
    for name, of in correct.items():
        (row,) = [line for line in lines if line.startswith(f"  {name} encoder")]
        assert f"{100 * np.mean(of):.1f} ±" in row
    for path in [word for line in lines for word in line.split()[:1] if word.startswith(str(out))]:
        assert Path(path).exists()
    assert "  mimcl shard YOUR_IMAGES/" in lines
    (compare,) = [line for line in lines if line.startswith("  mimcl compare")]
    assert mimcl(monkeypatch, out.parent, *shlex.split(compare)[1:], "--dry-run") == 0


def test_an_existing_folder_is_left_alone(made):
    out = made[0]
    with pytest.raises(DataError, match=r"demo exists; .*--out"):
        demo(out, SMALL)
    before = sorted(out.rglob("*"))
    command = str(Path(sys.executable).with_name("mimcl"))
    done = subprocess.run([command, "demo", "--fast", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"mimcl: {out} exists; ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(out.rglob("*")) == before
