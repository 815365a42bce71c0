"""`mimcl predict`: the accuracy of the fine-tuning, from shards, folders, files and exports alike."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import finetuned
from helpers.bad_samples import flip_byte
from helpers.typed import mimcl

from mimcl.cli.errors import ConfigError
from mimcl.cli.predict.predict import PredictOptions, predict
from mimcl.cli.predict.prediction import Prediction
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

REFERENCE = PredictOptions(decoder="reference")
CLASSES = {"blue", "green", "red"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """run/ with a fine-tuning, and its exports timm/, hf/ and own/."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        finetuned.write_run(folder, patch)
        finetuned.finetune(folder, patch)
        for target, out in (("timm", "timm"), ("hf", "hf"), ("safetensors", "own")):
            words = ("--classifier", "--format", target, "--out", out)
            assert mimcl(patch, folder, "export", "run", *words) == 0
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def tuning(here: Path) -> Path:
    (folder,) = (here / "run" / "evaluation" / "finetune").iterdir()
    return folder


def test_the_accuracy_on_val_is_that_of_the_fine_tuning(here, monkeypatch, capsys):
    known = json.loads((tuning(here) / "result.json").read_text())["top1"]
    found = list(predict(Path("run"), [Path("shards")], REFERENCE))
    assert len(found) == 75
    assert all(prediction.label == prediction.image.split("/")[0] for prediction in found)
    assert sum(bool(prediction.is_right) for prediction in found) / 75 == known
    assert 0.4 < known < 1, "an accuracy at which equality says little"
    capsys.readouterr()
    assert mimcl(monkeypatch, here, "predict", "run", "shards", "--top", "1", "--decoder", "reference") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 76
    assert lines[-1] == f"accuracy: {100 * known:.1f} % of 75 labelled images"


def test_a_folder_is_classified_as_its_shards(here):
    of_shards = list(predict(tuning(here), [Path("shards")], REFERENCE))
    of_folder = list(predict(tuning(here), [Path("images/val")], REFERENCE))
    assert [found.classes for found in of_folder] == [found.classes for found in of_shards]
    assert [found.image for found in of_folder] == [f"images/val/{found.image}" for found in of_shards]
    for found in of_folder:
        names, probabilities = zip(*found.classes, strict=True)
        assert set(names) == CLASSES
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert list(probabilities) == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("path", ["own", "own/weights.safetensors", "timm", "timm/model.safetensors", "hf", "run"])
def test_exports_classify_alike(here, path):
    options = PredictOptions(precision="float32", decoder="reference")
    images = [Path("images/val/red"), Path("images/val/blue")]
    expected = list(predict(tuning(here) / "weights.safetensors", images, options))
    found = list(predict(Path(path), images, options))
    assert [prediction.image for prediction in found] == [prediction.image for prediction in expected]
    for one, other in zip(found, expected, strict=True):
        assert dict(one.classes) == pytest.approx(dict(other.classes), abs=1e-5)


def test_bad_images_are_named_and_the_others_classified(here, tmp_path, monkeypatch, capsys):
    shutil.copytree("images/val/red", tmp_path / "red")
    names = sorted(path.name for path in (tmp_path / "red").iterdir())[:4]
    (tmp_path / "red" / names[1]).write_text("no image")
    (tmp_path / "red" / "notes.txt").write_text("not named like an image, so not looked at")
    given = [str(tmp_path / "red" / name) for name in (names[0], "missing.png", names[1], names[2])]
    words = ("--top", "2", "--decoder", "reference")
    assert mimcl(monkeypatch, here, "predict", "run", *given, *words) == 1
    captured = capsys.readouterr()
    assert [line.split("  ")[0] for line in captured.out.splitlines()] == [given[0], given[3]]
    assert all(line.count(" %") == 2 for line in captured.out.splitlines())
    assert f"{given[1]} is bad: unreadable: No such file or directory" in captured.err
    assert f"{given[2]} is bad: not a JPEG, PNG or WebP image" in captured.err
    assert captured.err.splitlines()[-1] == "mimcl: bad images: 2"
    assert mimcl(monkeypatch, here, "predict", "run", str(tmp_path / "red"), *words, "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == sorted(path.name for path in Path("images/val/red").iterdir())
    assert rows[1] == {"image": given[2], "error": "not a JPEG, PNG or WebP image"}
    assert [found["class"] for found in rows[0]["predictions"]] == [
        name for name, _ in next(predict(Path("run"), [Path(given[0])], REFERENCE)).classes[:2]
    ]


def test_bad_images_of_shards_do_not_count(here, tmp_path, monkeypatch, capsys):
    shards = Path(shutil.copytree("shards", tmp_path / "shards"))
    flip_byte(ShardIndex.load(shards, "val"), 5)
    assert mimcl(monkeypatch, here, "predict", "run", str(shards), "--decoder", "reference") == 1
    assert "of 74 labelled images" in capsys.readouterr().out.splitlines()[-1]


def test_predictions_without_a_class_are_neither_right_nor_wrong():
    assert Prediction("a.png", (("ant", 1.0),)).is_right is None
    assert Prediction("a.png", (("ant", 1.0),), "bee").is_right is False
    assert Prediction("a.png", (("ant", 1.0),), "ant").is_right is True
    assert Prediction("a.png", label="ant", error="bad").is_right is None


def test_several_fine_tunings_are_not_guessed_from(here, tmp_path):
    run = Path(shutil.copytree("run", tmp_path / "run"))
    (folder,) = (run / "evaluation" / "finetune").iterdir()
    shutil.copytree(folder, folder.with_name("another"))
    with pytest.raises(ConfigError, match="has 2 fine-tuned classifiers; give one of"):
        next(predict(run, [Path("images/val")], REFERENCE))
    assert next(predict(folder, [Path("images/val")], REFERENCE)).classes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "images"], "nothing not found; give a run, the folder of a fine-tuning"),
        (["run", "nothing.png"], "nothing.png not found; give image files"),
    ],
)
def test_what_is_missing_is_refused_before_torch_is_imported(here, words, message):
    program = (
        "import sys; sys.argv[1:] = " + repr(["predict", *words]) + "\n"
        "from mimcl.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.split()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["shards", "images"], 1, "shards is neither"),
        (["run", "empty"], 1, "empty has no images"),
        (["run", "images", "--top", "0"], 2, "--top"),
    ],
)
def test_bad_input_is_one_line(here, monkeypatch, capfd, words, code, message):
    Path("empty").mkdir(exist_ok=True)
    assert mimcl(monkeypatch, here, "predict", *words) == code
    complaint = capfd.readouterr().err
    assert message in complaint
    assert "Traceback" not in complaint
