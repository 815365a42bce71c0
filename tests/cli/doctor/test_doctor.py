"""`mimcl doctor` on this machine, with and without shards, and on damaged data."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.damage import flip
from helpers.images import write_flat
from helpers.typed import error_line, mimcl
from PIL import Image

from mimcl.cli import recipes
from mimcl.cli.doctor import doctor as doctor_module
from mimcl.cli.doctor import generated_shards
from mimcl.cli.doctor.doctor import doctor
from mimcl.cli.doctor.findings import Finding, found_by
from mimcl.cli.doctor.throughput import Trials
from mimcl.cli.doctor.verdict import IMAGENET
from mimcl.model import mae
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import ShardStore

SECONDS, IMAGES = 0.2, 22  # the eleven formats of tests/helpers/images.py, twice


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    write_flat(folder / "images", IMAGES)
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(), on_progress=lambda count: None)
    return folder / "shards"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))
    monkeypatch.setattr(generated_shards, "COUNT", 6)


def findings(found, section) -> dict[str, Finding]:
    (name,) = [name for name in found.sections if name.startswith(section)]
    return {finding.name: finding for finding in found.sections[name]}


def test_on_shards(shards):
    found = doctor(shards, "cpu_small", SECONDS)
    trials, data = findings(found, "trials"), findings(found, "data")
    assert not found.is_broken, found.sections
    rates = found.rates
    assert rates.read > 0
    assert {"dali-cpu", "reference"} <= rates.decode.keys()
    assert rates.model.keys() & {"bfloat16", "float32"}  # if a pass takes too long, only one precision is tried
    assert rates.end_to_end > 0
    assert 0 <= rates.data_wait <= 1
    assert f"{rates.end_to_end:,.1f} images/s" in trials["end to end"].text
    assert data["formats"].numbers == {"images": 2, "looked_at": IMAGES}  # CMYK
    verdict = found.verdict
    here, imagenet = verdict.predictions
    assert (here.images, imagenet.images, here.epochs) == (IMAGES, IMAGENET, 50)
    assert here.hours == pytest.approx(64 * 18 / rates.end_to_end / 3600)  # 1,100 draws are 18 batches
    assert verdict.bottleneck in ("read", "decode", "model")
    assert verdict.why.startswith(verdict.bottleneck)


def test_without_shards_images_are_generated(monkeypatch, tmp_path, capsys):
    assert mimcl(monkeypatch, tmp_path, "doctor", "--recipe", "cpu_small", "--seconds", str(SECONDS)) == 0
    captured = capsys.readouterr()
    out = captured.out
    assert "6 generated" in out
    assert "formats" not in out
    assert re.search(r"^bottleneck: (read|decode|model) takes", out, re.MULTILINE)
    assert "cpu_small on ImageNet-1K, 1,281,167 images, 50 epochs" in out
    assert all(line[2] in "✓·!✗" for line in out.splitlines() if line.startswith("  "))
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_json_says_the_same(shards, monkeypatch, tmp_path, capsys):
    options = ("--data", str(shards), "--recipe", "cpu_small", "--seconds", str(SECONDS), "--json")
    assert mimcl(monkeypatch, tmp_path, "doctor", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rates"]["end_to_end"] > 0
    assert found["verdict"]["predictions"][0]["images"] == IMAGES
    assert found["sections"]["data"][0] == {
        "name": "images",
        "text": f"{IMAGES} images in {shards}",
        "mark": "ok",
        "numbers": {},
    }


def test_the_trial_of_reading_drops_the_cached_shards_before_each_pass(shards, monkeypatch):
    calls, read, real_forget, real_read = [], [], os.posix_fadvise, ShardStore.read
    monkeypatch.setattr(os, "posix_fadvise", lambda *what: (calls.append((what[3], sum(read))), real_forget(*what)))
    monkeypatch.setattr(ShardStore, "read", lambda store, ids: (read.append(len(ids)), real_read(store, ids))[1])
    list(Trials(ShardIndex.load(shards), recipes.cpu_small(), SECONDS, False).read())
    dropped = [done for advice, done in calls if advice == os.POSIX_FADV_DONTNEED]
    assert len(dropped) > 1
    assert dropped == list(range(0, IMAGES * len(dropped), IMAGES))  # the 22 images lie in one shard


def broken(found) -> list[Finding]:
    return [finding for section in found.sections.values() for finding in section if finding.mark == "broken"]


def test_shards_that_are_not_there_are_refused(monkeypatch, tmp_path, capsys):
    assert mimcl(monkeypatch, tmp_path, "doctor", "--data", "nowhere", "--recipe", "cpu_small") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mimcl: nowhere is not a packed data set")


def test_damaged_images_are_a_finding(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    flip(copy / "train-000000.tar", 2000)  # in the first image
    found = doctor(copy, "cpu_small", SECONDS)
    assert found.is_broken
    texts = {finding.name: finding.text for finding in broken(found)}
    assert "mimcl verify" in texts["read"]
    assert texts["damaged images"].startswith("1 of 22")
    assert found.verdict.bottleneck is None
    assert found.rates.model


def test_a_missing_shard_does_not_stop_the_other_trials(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    (copy / "train-000000.tar").unlink()
    found = doctor(copy, "cpu_small", SECONDS)
    names = [finding.name for finding in broken(found)]
    assert names == ["read", "decode", "end to end"]
    assert found.rates.model
    assert found.verdict.predictions == []


def test_an_unknown_recipe_is_bad_usage(monkeypatch, tmp_path, capsys):
    assert mimcl(monkeypatch, tmp_path, "doctor", "--recipe", "mae") == 2
    assert "recipe" in error_line(capsys.readouterr().err)


def test_a_check_that_fails_is_a_finding():
    def check():
        yield Finding("one", "fine")
        raise OSError("no such\nfile")

    assert found_by("two", check) == [Finding("one", "fine"), Finding("two", "check failed: no such file", "warning")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(shards):
    found = doctor(shards, "mae_b16", 1.0)
    sections = {name: part for name, part in found.sections.items() if name != "versions"}  # some may be missing here
    assert not [finding for part in sections.values() for finding in part if finding.mark == "broken"]
    assert "GPU 0" in findings(found, "GPU")
    assert "dali-gpu" in found.rates.decode


@pytest.mark.parametrize(
    ("width", "height", "wanted"), [(500, 375, True), (300, 900, False), (256, 256, False), (310, 2000, True)]
)
def test_the_advice_to_shrink_is_a_command_that_works_as_it_is(tmp_path, monkeypatch, width, height, wanted):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (width, height), (number, 0, 0)).save(folder / f"{number}.jpg")
    pack(image_folder(folder), Path("my shards"), PackConfig(workers=1), on_progress=lambda count: None)
    index = ShardIndex.load("my shards")
    line = doctor_module._shrink_command(index)
    assert (line is not None) == wanted
    if line:
        program, *arguments = shlex.split(line)
        assert program == "mimcl"
        assert mimcl(monkeypatch, tmp_path, *arguments) == 0
        shrunk = ShardIndex.load(Path(f"{index.root}-256"))
        assert np.minimum(shrunk.width, shrunk.height).tolist() == [256] * 3
