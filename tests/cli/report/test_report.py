"""The page is complete and self-contained and shows the run's numbers, whatever the run has or lacks."""

import base64
import io
import json
import re
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
from helpers import small_runs
from helpers.images import write_classes
from helpers.pages import Page
from helpers.run_folders import BATCH, evaluation_line, long_run, step_line, window_line, write_run
from helpers.typed import error_line, mimcl
from PIL import Image

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.patch_features import patch_features
from mimcl.cli.heat_maps import heat_maps
from mimcl.cli.prototypes.gallery import images_of
from mimcl.cli.report import at_end, single, writer
from mimcl.cli.report.samples_to_target import RESAMPLES
from mimcl.cli.report.writer import write_report
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

HOSTILE = "<script>alert(1)<script>"
CLOSING = "</script><script>alert(2)</script><img src=x onerror=alert(3)>"
STEPS = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A packed, clustered, labelled data set and a run on it, with what was printed."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "images", {"ant": 16, "bee": 24})
    train = small_runs.train("run", "report=true", small_runs.FEW_PATCHES, steps=STEPS)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        for command in (["shard", "images"], ["prototypes", "build", "--features", "pixels", "--k", "4"], train):
            assert mimcl(patch, folder, *command) == 0
    return folder, said.getvalue()


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """The same folder again, to be changed; it is the working folder."""
    shutil.copytree(home[0], tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_training_writes_a_report_at_its_end(home):
    folder, said = home
    assert "report: run/report.html" in said
    page = Page(folder / "run" / "report.html")
    page.assert_valid()
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps, windows = [x for x in lines if "step" in x], [x for x in lines if "window" in x]
    charts = page.charts
    np.testing.assert_allclose(charts["Loss"]["series"][0]["y"], [x["loss"] for x in steps], rtol=1e-4)
    assert charts["Loss"]["x"] == [x["draw"] for x in steps]
    curriculum = [w for w in windows if w["temperature"] is not None]
    shown = [y for y in charts["Temperature"]["series"][0]["y"] if y is not None]
    np.testing.assert_allclose(shown, [w["temperature"] for w in curriculum], rtol=1e-4)
    distinct = [round(w["coverage"] * 40) for w in windows]
    assert charts["Distinct images"]["series"][0]["y"] == distinct
    assert (charts["Distinct images"]["yFormat"], charts["Distinct images"]["whole"]) == ("count", 40)
    assert f"{100 * distinct[-1] / 40:.1f} % of 40" in page.text
    assert {"Most repeats", "Distance of drawn images", "Throughput", "Data-wait", "Times drawn"} <= charts.keys()
    counts = np.load(folder / "run" / "draw_counts.npy")
    bars, width = charts["Times drawn"], -(-(int(np.ptp(counts)) + 1) // 50)
    expected = [int(((counts >= x) & (counts < x + width)).sum()) for x in bars["x"]]
    assert bars["series"][0]["y"] == expected
    assert (sum(expected), bars["x"][0]) == (len(counts), counts.min())
    assert f"{steps[-1]['loss']:.4g}" in page.text
    assert f"{STEPS * BATCH:,}" in page.text
    assert "trained on 40 images for 16 epochs: 75 % of each image's patches are removed, at random" in page.text
    assert "ant" in page.text
    share = counts[16:].sum() / counts.sum()
    assert f"({100 * share:.1f} %)" in page.text
    assert "mimcl train --recipe cpu_small" in page.text
    assert "mimcl eval knn run" in page.text


def test_pictures_of_the_checkpoints_have_tooltips(home):
    folder, _ = home
    page, index = Page(folder / "run" / "report.html"), ShardIndex.load(folder / "shards")
    checkpoints = len(list((folder / "run" / "checkpoints").glob("0*")))
    found = PrototypeSet.load(folder / "shards" / "prototypes" / "default", index.fingerprint)
    tips = [
        f"{index.path(row)} · key {index.key(row)} · class {('ant', 'bee')[row >= 16]} · distance "
        f"{found.distance[row]:.3f}"
        for row in range(40)
    ]
    tiles = page.all("img")
    # For six images: crops, masked crops and reconstructions; crops, features and attention. Then the clusters.
    rows = (1 + 2 * checkpoints) + 3
    assert [tile["title"] for tile in tiles[: 6 * rows]] == [tips[row] for row in (0, 7, 15, 23, 31, 39)] * rows
    assert all(tile["alt"].endswith(tile["title"]) and tile["tabindex"] == "0" for tile in tiles)
    sizes = np.bincount(found.cluster)
    assert len(tiles[6 * rows :]) == sum(min(10, size) for size in sizes)
    assert {tile["title"] for tile in tiles[6 * rows :]} <= set(tips)


def test_features_are_those_of_the_last_checkpoint(home):
    folder, _ = home
    index, run = ShardIndex.load(folder / "shards"), folder / "run"
    crops = images_of(index, np.array([0, 7, 15, 23, 31, 39]), 32)
    found = patch_features(Encoder.load(run).model(), crops)
    tiles = [tile for tile in Page(run / "report.html").all("img") if tile["alt"].startswith("Features of")]
    for tile, expected in zip(tiles, found.colours, strict=True):
        shown = pixels(tile).reshape(2, 16, 2, 16, 3).mean((1, 3)) / 255
        np.testing.assert_allclose(shown, expected, atol=0.12)  # the file is lossy
    tiles = [tile for tile in Page(run / "report.html").all("img") if tile["alt"].startswith("Attention in")]
    for tile, expected in zip(tiles, heat_maps(crops, found.attention.numpy()), strict=True):
        assert np.abs(pixels(tile).astype(int) - expected).mean() < 12


def pixels(tile):
    with Image.open(io.BytesIO(base64.b64decode(tile["src"].split(",")[1]))) as image:
        return np.asarray(image.convert("RGB"))


def test_every_chart_is_explained(home):
    page = Page(home[0] / "run" / "report.html")
    explained = re.findall(r'<figcaption class="explained">([^<]+)</figcaption>', page.source)
    assert len(explained) >= len(page.charts) + 1  # and the class balance
    assert all(text.strip().endswith(".") and len(text) > 40 for text in explained)
    chart = page.charts["What the temperature lets through"]
    assert len(chart["series"]) == 4
    assert (sum(chart["series"][0]["y"]), chart["whole"]) == (40, 40)
    assert page.source.count('type="range"') == 1


def test_the_gallery_has_no_background(home):
    """A dark page shows through; the text is grey, for both."""
    folder, _ = home
    with Image.open(folder / "shards" / "prototypes" / "default" / "gallery.png") as image:
        drawn = np.asarray(image.convert("RGBA"))
    assert drawn[0, 0, 3] == drawn[-1, -1, 3] == 0
    assert (drawn[..., 3] == 255).mean() > 0.1  # images
    title = drawn[:20]  # pixels, above the images
    text = title[title[..., 3] == 255]
    assert len(text) > 20
    assert (text[:, :3] == 0x7A).mean() > 0.9


def test_every_table_scrolls_in_its_card_and_a_spread_stands_beside_its_value(tmp_path):
    line = evaluation_line(640, 0.5, "few_shot", shots=[1, 5, 10])
    shots = {f"{before}{n}_shot": n / 50 for before in ("", "untrained_") for n in (1, 5, 10)}
    line["values"] = shots | {f"{name}_std": 0.0123 for name in shots}
    balanced = [evaluation_line(640, 0.5)]
    one = write_run(tmp_path / "one", [step_line(1, 1.0), line, *balanced])
    other = write_run(tmp_path / "other", [step_line(1, 1.0), line], seed=1, masking__mask_ratio=0.5)
    for path in (write_report([one]), write_report([one, other], tmp_path / "both.html")):
        page = Page(path)
        page.assert_valid()
        assert page.all("table")
        opened = page.source.count('<table class="cards">')
        assert opened == len(page.all("table")) - page.source.count("<table>\n")
        assert len(re.findall(r'<div class="scroll" [^>]*tabindex="0">\s*<table class="cards">', page.source)) == opened
        assert ".scroll { overflow-x: auto; }" in page.raw["style"][0]
    page = Page(tmp_path / "one" / "report.html")
    headings = re.findall(r'<th scope="col" class="n">(\d+ shot|untrained \d+ shot)</th>', page.source)
    assert len(headings) == 6
    assert "20.0 ± 1.2 %" in page.text
    assert "shot std" not in page.text
    assert '<div class="card full">' in page.source  # six columns get the whole width


def test_the_command_leaves_the_run_folder_unchanged(copy, monkeypatch, capsys):
    (copy / "run" / "report.html").unlink()
    before = {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()}
    assert mimcl(monkeypatch, copy, "report", "run", "--out", "page.html", "--no-pictures") == 0
    assert capsys.readouterr().out.startswith("wrote page.html (")
    assert {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()} == before
    page = Page(copy / "page.html")
    page.assert_valid()
    assert not page.all("img")
    assert re.search(r"pictures: not drawn.*mimcl report run", page.text)


def test_missing_shards_and_checkpoints_are_listed(copy):
    shutil.move(copy / "shards", copy / "gone")
    page = Page(write_report([copy / "run"]))
    page.assert_valid()
    assert re.search(r"class balance, distances and pictures: shards ", page.text)
    assert "Loss" in page.charts
    shutil.move(copy / "gone", copy / "shards")
    shutil.rmtree(copy / "run" / "checkpoints")
    (copy / "run" / "draw_counts.npy").unlink()
    page = Page(write_report([copy / "run"]))
    page.assert_valid()
    assert "draw_counts.npy" in page.text
    assert page.charts["Distinct images"]["yFormat"] == "percent"
    assert re.search(r"reconstructions and features: .*checkpoint", page.text)
    assert "What the temperature lets through" in page.charts


@pytest.mark.slow
def test_shards_and_prototypes_of_other_images_are_not_shown(copy, monkeypatch):
    shutil.rmtree(copy / "shards" / "prototypes")
    assert mimcl(monkeypatch, copy, "prototypes", "build", "--features", "pixels", "--k", "5") == 0
    page = Page(write_report([copy / "run"], pictures=False))
    assert "distances and prototypes: shards/prototypes/default" in page.text
    assert not page.all("img")
    shutil.rmtree(copy / "shards")
    write_classes(copy / "others", {"cow": 40})
    assert mimcl(monkeypatch, copy, "shard", "others") == 0
    page = Page(write_report([copy / "run"]))
    page.assert_valid()
    assert "class balance, distances and pictures: shards " in page.text
    assert "cow" not in page.text


def test_a_damaged_checkpoint_is_left_out_and_listed(copy):
    saved = sorted((copy / "run" / "checkpoints").glob("0*"))
    (saved[0] / "weights.safetensors").write_bytes(b"broken")
    page = Page(write_report([copy / "run"]))
    page.assert_valid()
    assert sum("Step" in tile["alt"] for tile in page.all("img")) == 6 * 2 * (len(saved) - 1)
    assert re.search(rf"reconstructions: .*{saved[0].name}", page.text)


def test_a_checkpoint_deleted_meanwhile_is_left_out_alone(copy, monkeypatch):
    read = single.model_rows
    saved = sorted((copy / "run" / "checkpoints").glob("0*"))

    def thinned_out_first(*arguments):
        shutil.rmtree(saved[-1])
        return read(*arguments)

    monkeypatch.setattr(single, "model_rows", thinned_out_first)
    page = Page(write_report([copy / "run"]))
    page.assert_valid()
    assert sum("Step" in tile["alt"] for tile in page.all("img")) == 6 * 2 * (len(saved) - 1)
    assert f"at step {int(saved[-2].name):,}." in page.text  # features of the newest one left
    assert "--online-knn" in page.text


def test_hostile_names_stay_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [window_line(0, 0, 1, 0.1), *(step_line(n, 1.0, **{CLOSING: 0.5, "<b>": n}) for n in (1, 2, 3))]
    lines += [evaluation_line(draw, 0.3, CLOSING, **{CLOSING: CLOSING}) for draw in (64, 128)]
    values = {"data__root": CLOSING, "curriculum__prototypes": HOSTILE}
    one = write_run(tmp_path / HOSTILE, lines, **values)
    other = write_run(tmp_path / "other", lines, seed=1, **values)
    for path in (write_report([one]), write_report([one, other], labels=[CLOSING, HOSTILE])):
        page = Page(path)
        page.assert_valid()
        assert HOSTILE in page.text
        assert "alert(2)" in page.text
        assert "<script>alert" not in page.source
        assert "<img src=x" not in page.source


def test_hostile_classes_stay_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [HOSTILE, *(f"<b>{number:02d}" for number in range(40))]
    write_classes(tmp_path / "images", dict.fromkeys(names, 1))
    assert mimcl(monkeypatch, tmp_path, "shard", "images") == 0
    counts = np.arange(len(names), 0, -1)
    run = write_run(tmp_path / "run", [step_line(1, 1.0)], counts, recipe=None)
    page = Page(write_report([run]))
    page.assert_valid()
    chart = page.charts["Class balance"]
    assert set(chart["names"]) == set(names)
    assert chart["series"][0]["y"] == sorted(chart["series"][0]["y"], reverse=True)
    np.testing.assert_allclose(sum(chart["series"][0]["y"]), len(names), rtol=1e-3)
    assert "<b>" in page.text


def test_a_long_run_s_page_stays_small_and_keeps_its_extremes(tmp_path):
    run = long_run(tmp_path / "run", 20_000, 1000)
    losses = [x["loss"] for x in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in x]
    path = write_report([run])
    assert path.stat().st_size < 500_000
    page = Page(path)
    page.assert_valid()
    series = page.charts["Loss"]["series"][0]
    assert len(series["y"]) <= 600
    assert max(series["high"]) == pytest.approx(max(losses), rel=1e-4)
    assert min(series["low"]) == pytest.approx(min(losses), rel=1e-4)
    assert {"hard share", "ranking accuracy", "Evaluation: online_knn"} <= page.charts.keys()


def test_several_runs_on_one_page(tmp_path, monkeypatch, capsys):
    for arm, gain in (("none", 0.0), ("proto", 0.1)):
        for seed in range(2):
            steps = [step_line(n, 2.0 / n + gain + seed / 100) for n in (1, 2, 3, 4)]
            evaluations = [evaluation_line(n * BATCH, 0.1 * n + gain + seed / 50) for n in (1, 2, 3, 4)]
            write_run(tmp_path / f"{arm}-{seed}", [*steps, *evaluations], curriculum__name=arm, seed=seed)
    names = [f"{arm}-{seed}" for arm in ("none", "proto") for seed in range(2)]
    assert mimcl(monkeypatch, tmp_path, "report", *names) == 0
    assert capsys.readouterr().out.startswith("wrote report.html (")
    page = Page(tmp_path / "report.html")
    page.assert_valid()
    titles = [chart["title"] for chart in json.loads(page.raw["script"][0])]
    assert titles.count("Loss") == titles.count("nn accuracy") == 2
    assert {chart["xKind"] for chart in json.loads(page.raw["script"][0])} == {"samples", "time"}
    assert "41.0 ± 1.4 %" in page.text  # of 40 and 42
    assert "51.0 ± 1.4 %" in page.text
    assert "curriculum.name" in page.text
    assert "too narrow" in page.text
    assert f"{RESAMPLES:,} resamples" in page.text
    assert mimcl(monkeypatch, tmp_path, "report", *names, "--label", "x") == 1
    assert "1 labels" in capsys.readouterr().err


def test_without_curves_of_nn_the_page_says_how_to_get_them(tmp_path):
    runs = [write_run(tmp_path / str(n), [step_line(1, 1.0)], seed=n) for n in range(2)]
    page = Page(write_report(runs, tmp_path / "page.html"))
    page.assert_valid()
    assert "--online-knn N" in page.text


def test_a_bad_run_or_output_path_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    assert mimcl(monkeypatch, tmp_path, "report", "nowhere") == 1
    line = error_line(capsys.readouterr().err)
    assert "nowhere" in line
    assert "config.yaml" in line
    run = write_run(tmp_path / "run", [step_line(1, 1.0)])
    with pytest.raises(DataError, match=r"page\.html cannot be written .*No such file or directory"):
        write_report([run], tmp_path / "missing" / "page.html")


@pytest.mark.parametrize("error", [ValueError("no\nroom"), MemoryError(), KeyboardInterrupt()])
def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch, capsys, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(writer, "write_report", fail)
    at_end.report_at_end(tmp_path / "run", finished=True)
    line = error_line(capsys.readouterr().err)
    assert line.startswith("mimcl: the report ")
    assert f"mimcl report {tmp_path}/run" in line
