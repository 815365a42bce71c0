"""`mimcl plan` against real runs with the same flags."""

import io
import json
import re

import numpy as np
import pytest
from helpers.images import write_classes
from helpers.typed import error_line, mimcl
from PIL import Image

from mimcl.cli.config import read_yaml
from mimcl.cli.plan.plan import forecast_run, table
from mimcl.cli.plan.plan_picture import DPI, HEIGHT, WIDTH, draw_picture
from mimcl.cli.run.folder import new_config
from mimcl.model import mae

pytestmark = pytest.mark.slow  # trains

FLAGS = ("--recipe", "cpu_small", "--curriculum", "proto", "--epochs", "12", "--curriculum-share", "0.75")
SETTINGS = ("data.image_size=32", "data.batch_size=8", "model.decoder_width=32", "model.decoder_depth=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """48 packed images with prototypes, and a run of 72 steps on them in run/."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "images", {"ant": 24, "bee": 24})
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "prototypes", "build", "--features", "pixels", "--k", "4") == 0
        command = ("train", *FLAGS, *settings, "--decoder", "reference", "--out", "run")
        assert mimcl(patch, folder, *command) == 0
    return folder


def config_of(home, **values):
    return new_config("cpu_small", {"data.root": str(home / "shards"), "curriculum.name": "proto"} | values)


def test_the_table_agrees_with_training_with_the_same_flags(home, monkeypatch, capsys):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    assert mimcl(monkeypatch, home, "plan", *FLAGS, *settings, "--out", "plan.png", "--rows", "5") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "48 images in shards, 12 epochs: 576 draws in 72 steps and 18 windows"
    assert out[1].startswith("curriculum proto, cosine from r0 0.15, multinomial, for 448 draws in windows of 32")
    assert out[-1] == "wrote plan.png"
    rows = [line.split() for line in out if line.split()[0][0].isdigit()][1:]
    assert [int(row[1].replace(",", "")) for row in rows] == [0, 128, 256, 416, 544]
    windows = {line["draw"]: line for line in metrics(home) if "window" in line}
    for row in rows:
        line = windows[int(row[1])]
        tau = "inf" if line["temperature"] is None else f"{line['temperature']:.3g}"
        assert row[2:4] == [tau, f"{line['effective_fraction']:.3f}"]


def test_a_slice_is_the_length_of_a_window_for_any_order(home, monkeypatch, capsys):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    more = ("--slice", "0.8", "--set", "curriculum.order=shard")
    assert mimcl(monkeypatch, home, "plan", *FLAGS, *settings, *more, "--out", "sliced.png") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "48 images in shards, 12 epochs: 576 draws in 72 steps and 15 windows"
    assert "in windows of 40" in out[1]  # 5 batches
    assert mimcl(monkeypatch, home, "plan", *FLAGS, *settings, "--slice", "1.2") != 0
    assert "curriculum.slice is 1.2" in capsys.readouterr().err


def metrics(home):
    return [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_s_configuration_gives_its_windows_to_the_last_bit(home, monkeypatch):
    monkeypatch.chdir(home)
    found = forecast_run(new_config(None, read_yaml(home / "run" / "config.yaml")))
    lines = [line for line in metrics(home) if "window" in line]
    assert len(found.forecasts) == found.windows == len(lines)
    for row, line in zip(found.forecasts, lines, strict=True):
        assert (row.window, row.draw) == (line["window"], line["draw"])
        assert row.temperature == (float("inf") if line["temperature"] is None else line["temperature"])
        assert row.effective_fraction == line["effective_fraction"]
        # One run is not an expectation, but 48 images scatter little.
        assert row.coverage == pytest.approx(line["coverage"], abs=0.15)
    assert found.forecasts[-1].coverage == pytest.approx(lines[-1]["coverage"], abs=0.01)


def pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_picture_has_its_size_and_a_line_for_each_schedule(home, monkeypatch):
    one = forecast_run(config_of(home, **{"trainer.epochs": 8}))
    other = forecast_run(config_of(home, **{"trainer.epochs": 8, "curriculum.temp_schedule": "step"}))
    first, both = pixels(draw_picture([one])), pixels(draw_picture([one, other]))
    assert first.shape == both.shape == (round(HEIGHT * DPI), round(WIDTH * DPI), 3)
    red = np.array([0xC8, 0x55, 0x3D])
    assert (np.abs(first.astype(int) - red).sum(-1) < 12).sum() == 0
    panels = np.array_split(np.abs(both.astype(int) - red).sum(-1) < 12, 3, axis=1)
    assert all(panel.sum() > 200 for panel in panels)


def test_schedules_side_by_side_and_a_uniform_one(home, monkeypatch, capsys):
    options = ("--recipe", "cpu_small", "--curriculum", "proto", "--epochs", "50", "--out", "both.png")
    assert mimcl(monkeypatch, home, "plan", *options, "--temp-schedule", "linear", "--temp-schedule", "step") == 0
    out = capsys.readouterr().out
    assert "proto, linear from r0" in out
    assert "proto, step from r0" in out
    assert mimcl(monkeypatch, home, "plan", "--recipe", "cpu_small", "--epochs", "2", "--out", "none.png") == 0
    out = capsys.readouterr().out
    assert "no data curriculum: every image once per pass" in out
    assert pixels((home / "none.png").read_bytes()).std() > 5


def test_a_resolution_curriculum_is_described_with_its_cost(home, monkeypatch, capsys):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    sides = ("--resolution", "16:0.5,24:0.25,32", "--out", "sides.png")
    assert mimcl(monkeypatch, home, "plan", *FLAGS, *settings, *sides) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"crops of 16 px for 50%, 24 px for 25%, 32 px for 25% of the run: 60% of the operations at 32 px", out[2]
    )
    rows = [line.split() for line in out if line.endswith(" px") and line.split()[0][0].isdigit()]
    assert [row[-2] for row in rows] == ["16" if int(row[1].replace(",", "")) < 288 else row[-2] for row in rows]
    assert {row[-2] for row in rows} == {"16", "24", "32"}
    assert Image.open(home / "sides.png").width == WIDTH * DPI


def test_one_window(home):
    found = forecast_run(config_of(home, **{"trainer.epochs": 0.1}))
    assert found.windows == 1
    assert len(table(found, 12)) == 5


def test_systematic_windows_are_called_approximate(home):
    lines = table(forecast_run(config_of(home, **{"curriculum.resampling": "systematic"})), 5)
    assert lines[-1].startswith("approximate")
    assert not any("approximate" in line for line in table(forecast_run(config_of(home)), 5))


def test_the_order_does_not_change_what_is_drawn(home, monkeypatch, capsys):
    tables, words = [], ("--recipe", "cpu_small", "--batch-size", "4", "--curriculum", "proto", "--order")
    for order in ("random", "shard"):
        assert mimcl(monkeypatch, home, "plan", *words, order) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--curriculum", "proto", "--temp-schedule", "learned"), "--temp-schedule learned"),
        (("--curriculum", "proto", "--set", "curriculum.prototypes=other"), "mimcl prototypes build"),
        (("--data", "nowhere"), "not a packed data set"),
        (("--curriculum", "proto", "--r0", "2"), "curriculum.r0 is 2"),
        (("--curriculum", "proto", "--temperature", "0.1"), "--temp-schedule constant"),
        (("--curriculum", "proto", "--temp-schedule", "sine"), "cosine"),
        (("--recipe", "mae"), "cpu_small"),
        (("--resolution", "32"), "must end with data.image_size (64)"),
        (("--resolution", "30:0.5,64"), "30, not a multiple of model.patch_size (8)"),
        (("--resolution", "small"), "or efficient"),
        (("--out", "nowhere/plan.png"), "cannot be written"),
        (("--set", "data.batch_size=8", "--set", "curriculum.window=12", "--curriculum", "proto"), "multiple of"),
    ],
)
def test_errors_are_one_line(home, monkeypatch, capsys, arguments, message):
    assert mimcl(monkeypatch, home, "plan", "--recipe", "cpu_small", *arguments) in (1, 2)
    line = error_line(capsys.readouterr().err)
    assert message in line
    assert not list(home.glob(".*.tmp"))
