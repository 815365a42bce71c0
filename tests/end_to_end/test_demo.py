"""`mimcl demo`, smaller: the same flow as the command, on real files, with the real parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mimcl.cli.demo.demo import DemoConfig, demo, print_results
from mimcl.pipeline.files import DataError

pytestmark = pytest.mark.slow

SMALL = DemoConfig(train=240, val=120, epochs=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, result)."""
    out = tmp_path_factory.mktemp("home") / "demo"
    return out, demo(out, SMALL)


def test_the_flow_leaves_images_shards_a_run_and_a_picture(made):
    out, result = made
    assert sorted(path.name for path in out.iterdir()) == ["demo.png", "images", "run", "shards"]
    assert len(list((out / "images/train").rglob("*.jpg"))) == SMALL.train
    assert len(list((out / "images/val").rglob("*.jpg"))) == SMALL.val
    assert (out / "shards/prototypes/default/gallery.png").is_file()
    assert (result.train, result.val) == (SMALL.train, SMALL.val)
    lines = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text().splitlines()]
    fractions = [line["effective_fraction"] for line in lines if "window" in line]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.2
    assert result.checkpoint.is_relative_to(out / "run")


def test_the_picture_shows_images_curves_and_reconstructions(made):
    with Image.open(made[0] / "demo.png") as picture:
        picture.load()
        assert picture.size == (1210, 1012)
        thirds = [picture.convert("RGB").crop((0, top, 1210, top + 200)) for top in (30, 300, 700)]
    for part in thirds:
        assert len(set(part.get_flattened_data())) > 100


def test_the_table_shows_accuracies_and_next_commands(made, capsys):
    out, result = made
    print_results(out, result, 123.0)
    text = capsys.readouterr().out
    for name, shares in (("untrained", result.untrained), ("trained", result.trained)):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} encoder")]
        assert f"{100 * shares['nn']:.1f} ±" in line
    assert "2.0 minutes" in text
    for path in [word for line in text.splitlines() for word in line.split()[:1] if word.startswith(str(out))]:
        assert Path(path).exists()
    assert "mimcl shard YOUR_IMAGES/" in text


def test_an_existing_folder_is_left_alone(made):
    out = made[0]
    with pytest.raises(DataError, match=r"demo exists; .*--out"):
        demo(out, SMALL)
    before = sorted(out.rglob("*"))
    mimcl = str(Path(sys.executable).with_name("mimcl"))
    done = subprocess.run([mimcl, "demo", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"mimcl: {out} exists; ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(out.rglob("*")) == before
